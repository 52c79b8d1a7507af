#pragma once

#include <cstdint>

#include "launch.cuh"
#include "matrix_units.cuh"
#include "moment.cuh"

namespace eigendamage::cuda {

constexpr int kTile = 64;  ///< outputs, and columns offset·inputs + input: a block's weights
constexpr int kTileThreads = 128;

/// Blocks that a multiprocessor has room for: as registers allow.
template <class T>
constexpr int kTileBlocks = sizeof(T) == sizeof(double) ? 2 : 3;

/// The tiles of a group of channels.
struct Tiling {
  int row_tiles, column_tiles;
  bool g_in_fours;  ///< its channels can be read four at a time
};

/// A few positions in shared memory: a tile's rows of g, then its columns of x.
template <class T, Order order>
struct Stage {
  static constexpr int kPositions = WarpTile<T>::kDepthStep;
  static constexpr int kRows = 2 * kTile;
  static constexpr int kStride =
      order == Order::kDepthInside ? kPositions + WarpTile<T>::kVector : kRows + (sizeof(T) == sizeof(double) ? 1 : 8);
  static constexpr int kSize = (order == Order::kDepthInside ? kRows : kPositions) * kStride;

  __device__ static int at(int row, int position) {
    return order == Order::kDepthInside ? row * kStride + position : position * kStride + row;
  }
};

/// A column's element of x, seen from that of the first channel with which a patch begins.
struct alignas(16) Column {
  std::int64_t offset;
  std::int32_t down, right;
};

constexpr std::int32_t kNowhere = -(1 << 30);  ///< a row outside of every image, as twice of it is

/// What a block is to sum: some weights over the examples of a split. In shared memory, where it takes no registers.
struct TileWork {
  Column columns[kTile];
  std::int64_t first_output, first_column;  ///< the first of all, the latter of the group's
  int output_count, column_count;
  int split, first_example, last_example;

  __device__ void fill(const Moment& m, const Tiling& tiling) {
    const int column_tile = static_cast<int>(blockIdx.x) % tiling.column_tiles;
    const int rest = static_cast<int>(blockIdx.x) / tiling.column_tiles;
    const std::int64_t row_tile = rest % tiling.row_tiles, group = rest / tiling.row_tiles % m.groups;
    const std::int64_t inputs = m.out.inputs, count = m.offsets * inputs - column_tile * kTile;
    if (threadIdx.x == 0) {
      first_output = group * m.outputs + row_tile * kTile;
      first_column = column_tile * kTile;
      output_count = static_cast<int>(min(m.outputs - row_tile * kTile, static_cast<std::int64_t>(kTile)));
      column_count = static_cast<int>(min(count, static_cast<std::int64_t>(kTile)));
      split = static_cast<int>(rest / tiling.row_tiles / m.groups);
      first_example = static_cast<int>(m.first_example(split));
      last_example = static_cast<int>(m.first_example(split + 1));
    }
    if (const int i = static_cast<int>(threadIdx.x); i < kTile) {
      const std::int64_t offset = (column_tile * kTile + i) / inputs, input = (column_tile * kTile + i) % inputs;
      const std::int64_t width = m.geometry.horizontal.kernel;
      const std::int64_t down = offset / width * m.geometry.vertical.dilation,
                         right = offset % width * m.geometry.horizontal.dilation;
      columns[i] = {(group * inputs + input) * m.x.channel_stride + down * m.x.height_stride + right * m.x.width_stride,
                    i < count ? static_cast<std::int32_t>(down) : kNowhere, static_cast<std::int32_t>(right)};
    }
    __syncthreads();
  }
};

/// What a thread reads of a stage, in registers on its way to shared memory: of g and x alike, every few rows at a position,
/// neighbouring threads at neighbouring positions; with Order::kDepthOutside, four channels together at some positions.
template <class Element, Order order>
class Fetcher {
 public:
  using T = Sum<Element>;
  using Memory = Stage<T, order>;

  __device__ Fetcher(const Moment& m, const Tiling& tiling, const TileWork& work)
      : m_(m), tiling_(tiling), work_(work) {}

  /// Reads the positions of example n from `first` on.
  __device__ void fetch(int n, int first) {
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      const Place place = locate(n, first + position(i));
      if constexpr (order == Order::kDepthInside) {
        fetch_rows(place);
      } else {
        fetch_four(place, 4 * i);
      }
    }
  }

  /// Writes them as factors of products.
  __device__ void store(T* stage) const {
    if (m_.one_by_one) {
      store(stage, [](T value) { return value * value; });
    } else {
      store(stage, [](T value) { return value; });
    }
  }

 private:
  static constexpr int kHeld = kTile * Memory::kPositions / kTileThreads;
  static constexpr int kTogether = order == Order::kDepthInside ? kHeld : 4;  ///< rows at a place
  static constexpr int kPlaces = kHeld / kTogether;
  struct alignas(sizeof(Element) == 2 ? 8 : 16) Four {
    Element elements[4];
  };

  /// A position of g, and the first pixel of its patch of x.
  struct Place {
    std::int64_t g, x;
    std::int32_t row, column;
    bool counts;
  };

  __device__ static int row(int i) {
    const int thread = static_cast<int>(threadIdx.x);
    if (order == Order::kDepthInside) return thread / Memory::kPositions + i * (kTileThreads / Memory::kPositions);
    return thread % (kTile / 4) * 4 + i % 4;
  }
  __device__ static int position(int place) {
    const int thread = static_cast<int>(threadIdx.x);
    if (order == Order::kDepthInside) return thread % Memory::kPositions;
    return thread / (kTile / 4) + place * (kTileThreads / (kTile / 4));
  }

  template <class Change>
  __device__ void store(T* stage, const Change& changed) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      stage[Memory::at(row(i), position(i / kTogether))] = changed(widened(of_g_[i]));
      stage[Memory::at(kTile + row(i), position(i / kTogether))] = changed(widened(of_x_[i]));
    }
  }

  __device__ Place locate(int n, int position) const {
    const ConvAxis &v = m_.geometry.vertical, &u = m_.geometry.horizontal;
    const auto width = static_cast<std::uint32_t>(u.output), at = static_cast<std::uint32_t>(position);
    const auto row = static_cast<std::int32_t>(at / width), column = static_cast<std::int32_t>(at % width);
    Place place;
    place.row = row * static_cast<std::int32_t>(v.stride) - static_cast<std::int32_t>(v.pad);
    place.column = column * static_cast<std::int32_t>(u.stride) - static_cast<std::int32_t>(u.pad);
    place.g = static_cast<std::int64_t>(n) * m_.g.batch_stride + row * m_.g.height_stride + column * m_.g.width_stride;
    place.x = static_cast<std::int64_t>(n) * m_.x.batch_stride + place.row * m_.x.height_stride +
              place.column * m_.x.width_stride;
    place.counts = position < static_cast<int>(n == m_.x.batch - 1 ? m_.last_positions : m_.positions);
    if (!place.counts) place.row = kNowhere;
    return place;
  }

  __device__ bool inside(const Place& place, const Column& column) const {
    return static_cast<std::uint32_t>(place.row + column.down) < static_cast<std::uint32_t>(m_.x.height) &&
           static_cast<std::uint32_t>(place.column + column.right) < static_cast<std::uint32_t>(m_.x.width);
  }

  __device__ const Element* x() const { return static_cast<const Element*>(m_.x.data); }
  __device__ const Element* g() const {
    return static_cast<const Element*>(m_.g.data) + work_.first_output * m_.g.channel_stride;
  }

  __device__ void fetch_rows(const Place& place) {
    constexpr int kStep = kTileThreads / Memory::kPositions;
    const int outputs = place.counts ? work_.output_count : 0;
    const Element* of_g = g() + (place.g + row(0) * m_.g.channel_stride);
#pragma unroll
    for (int i = 0; i < kHeld; ++i, of_g += kStep * m_.g.channel_stride) {
      of_g_[i] = row(i) < outputs ? *of_g : Element{};
    }
    if (m_.out.inputs % kTile == 0) {
      const Column column = work_.columns[0];
      const bool read = inside(place, column);
      const Element* of_x = x() + (place.x + column.offset + row(0) * m_.x.channel_stride);
#pragma unroll
      for (int i = 0; i < kHeld; ++i, of_x += kStep * m_.x.channel_stride) of_x_[i] = read ? *of_x : Element{};
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        const Column column = work_.columns[row(i)];
        of_x_[i] = inside(place, column) ? x()[place.x + column.offset] : Element{};
      }
    }
  }

  __device__ void fetch_four(const Place& place, int first) {
    Four of_g{}, of_x{};
    const int outputs = place.counts ? work_.output_count : 0;
    if (row(0) < outputs) {
      const Element* at = g() + (place.g + row(0) * m_.g.channel_stride);
      if (tiling_.g_in_fours) {
        of_g = *reinterpret_cast<const Four*>(at);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j, at += m_.g.channel_stride) {
          if (row(j) < outputs) of_g.elements[j] = *at;
        }
      }
    }
    const Column column = work_.columns[row(0)];
    if (inside(place, column)) of_x = *reinterpret_cast<const Four*>(x() + (place.x + column.offset));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      of_g_[first + j] = of_g.elements[j];
      of_x_[first + j] = of_x.elements[j];
    }
  }

  const Moment& m_;
  const Tiling& tiling_;
  const TileWork& work_;
  Element of_g_[kHeld], of_x_[kHeld];
};

/// A block's work.
template <class Element, Order order, Factor factor>
class MomentTile {
 public:
  using T = Sum<Element>;
  using Memory = Stage<T, order>;

  static std::size_t shared_bytes(const Moment& m) {
    const int kept = m.positions > m.positions_in_sum ? kTile * kTile : 0;
    return sizeof(Shared) + static_cast<std::size_t>(kept) * sizeof(T);
  }

  __device__ MomentTile(const Moment& m) : m_(m), shared_(*shared_memory<Shared>()), work_(shared_.work) {}

  __device__ void run(const Tiling& tiling) {
    work_.fill(m_, tiling);
    Fetcher<Element, order> fetcher(m_, tiling, work_);
    int begin = work_.first_example;
    do {
      const int end = begin + min(work_.last_example - begin, static_cast<int>(m_.examples_in_sum));
      const bool finite = add_squares(fetcher, begin, end);
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < kTile * kTile; i += kTileThreads) {
        if (i / kTile >= work_.output_count || i % kTile >= work_.column_count) continue;
        const std::int64_t output = work_.first_output + i / kTile, column = work_.first_column + i % kTile;
        const std::int64_t offset = column / m_.out.inputs, input = column % m_.out.inputs;
        const T sum = finite ? shared_.sums[i] : plain_moment<Element>(m_, output, offset, input, begin, end);
        enter<T>(m_, work_.split, output, offset, input, sum, begin > work_.first_example);
      }
      __syncthreads();
      begin = end;
    } while (begin < work_.last_example);
  }

 private:
  /// A block's memory, and where a gradient is of many positions, a tile more for the sums of those before.
  struct Shared {
    TileWork work;
    union {
      alignas(16) T stages[2][Memory::kSize];
      T sums[kTile * kTile];
    };
  };

  /// sums = Σ_n (Σ_t g_nt a_nt)² over the examples [n, end), a tile of which the columns are contiguous; returns
  /// whether they are finite. If not, they may be wrong: units that split factors do not know infinity, and what is
  /// outside the image is a factor 0 to them.
  __device__ bool add_squares(Fetcher<Element, order>& fetcher, int n, int end) {
    const int warp_row = static_cast<int>(threadIdx.x) / 64 * 32, warp_column = static_cast<int>(threadIdx.x) & 32;
    const int positions = static_cast<int>(m_.positions), within_sum = static_cast<int>(m_.positions_in_sum) - 1;
    T* kept = reinterpret_cast<T*>(&shared_ + 1) + threadIdx.x;
    int position = 0, parity = 1;
    WarpTile<T> gradient, squares;
    gradient.zero();
    squares.zero();
    if (n < end) fetcher.fetch(n, 0);
    while (n < end) {
      parity = 1 - parity;
      T* stage = shared_.stages[parity];
      fetcher.store(stage);
      __syncthreads();
      const bool any_kept = position > within_sum;
      position += Memory::kPositions;
      const bool complete = position >= positions;
      if (complete) {
        position = 0;
        ++n;
      }
      if (n < end) fetcher.fetch(n, position);
      if (warp_row >= work_.output_count || warp_column >= work_.column_count) continue;
      gradient.template multiply_add<order, factor, factor>(
          {stage + Memory::at(warp_row, 0), Memory::kStride},
          {stage + Memory::at(kTile + warp_column, 0), Memory::kStride}, Memory::kPositions);
      if (complete) {
        squares.for_each([&](int row, int column, T& sum) {
          T entry = gradient.sums[row][column];
          if (any_kept) entry += kept[index(row, column) * kTileThreads];
          sum += m_.one_by_one ? entry : entry * entry;
        });
      } else if ((position & within_sum) == 0) {
        gradient.for_each([&](int row, int column, T& sum) {
          T& sum_before = kept[index(row, column) * kTileThreads];
          sum_before = any_kept ? sum_before + sum : sum;
        });
      } else {
        continue;
      }
      gradient.zero();
    }
    const bool finite = __syncthreads_and(squares.finite());
    T* sums = shared_.sums + (warp_row + squares.first_row()) * kTile + warp_column + squares.first_column();
    squares.for_each([&](int row, int column, T& sum) { sums[row * kTile + column] = sum; });
    __syncthreads();
    return finite;
  }

  __device__ static int index(int row, int column) { return row * WarpTile<T>::kColumns + column; }

  const Moment& m_;
  Shared& shared_;
  TileWork& work_;
};

template <class Element, Order order, Factor factor>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<Sum<Element>>)
    moment_tiles_kernel(const __grid_constant__ Moment m, const __grid_constant__ Tiling tiling) {
  MomentTile<Element, order, factor>(m).run(tiling);
}

}  // namespace eigendamage::cuda
