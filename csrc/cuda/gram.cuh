#pragma once

#include <cstdint>

#include "../views.h"
#include "elements.cuh"
#include "launch.cuh"
#include "matrix_units.cuh"
#include "row_tiles.cuh"

namespace eigendamage::cuda {

constexpr int kDepth = 32;         ///< positions that a block stages at a time
constexpr int kStagesInSum = 16;   ///< that sums in registers are of
constexpr int kGramThreads = 128;  ///< a warp for each panel of rows and of columns

/// Blocks that a multiprocessor has room for: as registers and shared memory allow.
template <class T>
constexpr int kGramBlocks = sizeof(T) == sizeof(double) ? 2 : 3;

/// Positions to sum over: the lines row + row_step·u and column + column_step·v of every image, u < rows, v < columns. The
/// second factor is `down` and `right` of the first. Sums are split into as many partial ones, from `first_partial` on.
struct Walk {
  std::int64_t row, rows, row_step, column, columns, column_step;
  std::int64_t down, right;
  std::int32_t splits, first_partial;

  __device__ bool lagged() const { return down != 0 || right != 0; }
  __device__ bool backward() const { return down != 0 ? down < 0 : right < 0; }
};

/// One partial sum.
struct Part {
  std::int32_t walk, split;
};

/// partials[pair][part] (kTile, kTile) = Σ over a split of a walk of m·a·bᵀ, a and b rows of a pair of tiles. What nobody
/// needs is left as it is: the half below the diagonal of sums without a lag, all backward lags of tiles with themselves,
/// and products of bundles. With `bias`, kPanel rows below the diagonal hold in their first columns the sums of rows
/// instead.
struct Gram {
  ImageView x;
  RowTiling tiling;
  std::int64_t first_pair;
  std::uint32_t pairs, parts;
  const Walk* walks;
  const Part* part_list;
  const float *row_weights, *column_weights;                                ///< m = their product, by pixel; null for 1
  std::int64_t kernel_height, kernel_width, row_dilation, column_dilation;  ///< where rows are those of patches
  bool bias, rows_first;  ///< rows_first: neighbouring rows are closer in memory than neighbouring positions
  void* partials;
};

/// Goes through the positions of a walk in steps.
class Walker {
 public:
  static constexpr int kStep = kDepth / 2;

  __device__ Walker(const Walk& walk, std::int64_t position) : walk_(walk) {
    split(position, image, row, column);
    split(kStep, image_step_, row_step_, column_step_);
  }

  __device__ void advance() {
    column += column_step_;
    row += row_step_;
    image += image_step_;
    if (column >= walk_.columns) {
      column -= walk_.columns;
      ++row;
    }
    if (row >= walk_.rows) {
      row -= walk_.rows;
      ++image;
    }
  }

  std::int64_t image, row, column;

 private:
  __device__ void split(std::int64_t position, std::int64_t& n, std::int64_t& r, std::int64_t& c) const {
    c = position % walk_.columns;
    const std::int64_t lines = position / walk_.columns;
    r = lines % walk_.rows;
    n = lines / walk_.rows;
  }

  const Walk& walk_;
  std::int64_t image_step_, row_step_, column_step_;
};

/// A position of x; elements of a row are `offset` from those of the first one.
struct Position {
  std::int64_t row, column, offset;
  bool read;
};

/// Every kRowStep-th row of a tile, from `first` on, is a thread's to fetch.
constexpr int kRowStep = 8, kRowsOfThread = kTile / kRowStep, kRowsOfPanel = kPanel / kRowStep;

/// A tile's rows as channels of x.
template <class Element>
class PixelRows {
 public:
  struct Entry {};
  static constexpr std::size_t kEntries = 0;

  __device__ PixelRows(const Gram& gram, const Panel (&panels)[2], int first, Entry*)
      : stride_(gram.x.channel_stride), first_(first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows_[half] = static_cast<const Element*>(gram.x.data) + (panels[half].first + first) * stride_;
      count_[half] = panels[half].count;
    }
  }

  __device__ void fetch(const Position& at, Element (&values)[kRowsOfThread]) const {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const int half = i / kRowsOfPanel, row = i % kRowsOfPanel * kRowStep;
      values[i] = at.read && first_ + row < count_[half] ? rows_[half][at.offset + row * stride_] : Element{};
    }
  }

 private:
  const Element* rows_[2];
  int count_[2];
  std::int64_t stride_;
  int first_;
};

/// A tile's rows as numbers of a patch, in the order (channel, kernel row, kernel column), 0 outside the image.
template <class Element>
class PatchRows {
 public:
  struct Entry {
    std::int64_t offset, down, right;  ///< from the patch's first pixel
  };
  static constexpr std::size_t kEntries = kTile;
  static constexpr std::int64_t kNowhere = std::int64_t{1} << 62;

  __device__ PatchRows(const Gram& gram, const Panel (&panels)[2], int first, Entry* entries)
      : x_(gram.x), first_(first), entries_(entries) {
    for (int row = static_cast<int>(threadIdx.x); row < kTile; row += kGramThreads) {
      const Panel& panel = panels[row / kPanel];
      const std::int64_t number = panel.first + row % kPanel, lines = number / gram.kernel_width;
      const std::int64_t channel = lines / gram.kernel_height;
      const std::int64_t down = lines % gram.kernel_height * gram.row_dilation;
      const std::int64_t right = number % gram.kernel_width * gram.column_dilation;
      entries[row] = {channel * x_.channel_stride + down * x_.height_stride + right * x_.width_stride,
                      row % kPanel < panel.count ? down : kNowhere, right};
    }
  }

  __device__ void fetch(const Position& at, Element (&values)[kRowsOfThread]) const {
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const Entry entry = entries_[first_ + i * kRowStep];
      const std::int64_t row = at.row + entry.down, column = at.column + entry.right;
      const bool inside = at.read && 0 <= row && row < x_.height && 0 <= column && column < x_.width;
      values[i] = inside ? static_cast<const Element*>(x_.data)[at.offset + entry.offset] : Element{};
    }
  }

 private:
  const ImageView& x_;
  int first_;
  const Entry* entries_;
};

template <class Element, bool patches, Factor a_factor, Factor b_factor>
class GramBlock {
  using T = Sum<Element>;
  using Rows = std::conditional_t<patches, PatchRows<Element>, PixelRows<Element>>;
  static constexpr int kStride = kDepth + 16 / static_cast<int>(sizeof(T)), kTileSize = kTile * kStride;

 public:
  static constexpr std::size_t kSharedBytes =
      4 * kTileSize * sizeof(T) + 2 * Rows::kEntries * sizeof(typename Rows::Entry);

  __device__ GramBlock(const Gram& gram, T* shared)
      : GramBlock(gram, shared, gram.part_list[blockIdx.x / gram.pairs],
                  gram.tiling.pair(gram.first_pair + blockIdx.x % gram.pairs)) {}

  __device__ void run() {
    if (pair_.diagonal() && walk_.backward()) return;
    if (__syncthreads_or(!sum<false>())) sum<true>();
  }

 private:
  struct Panels {
    Panel halves[2];
  };

  __device__ static Panels panels(const RowTiling& tiling, const TilePair& pair, std::int64_t tile) {
    return {{tiling.panel(pair.set, tile, 0), tiling.panel(pair.set, tile, 1)}};
  }

  __device__ GramBlock(const Gram& gram, T* shared, const Part& part, const TilePair& pair)
      : gram_(gram),
        shared_(shared),
        walk_(gram.walks[part.walk]),
        split_(part.split),
        pair_(pair),
        thread_row_(gram.rows_first ? threadIdx.x % 8 : threadIdx.x / 32 + threadIdx.x % 32 / 16 * 4),
        thread_position_(gram.rows_first ? threadIdx.x / 8 : threadIdx.x % 16),
        a_(gram, panels(gram.tiling, pair, pair.i).halves, thread_row_, entries(0)),
        b_(gram, panels(gram.tiling, pair, pair.j).halves, thread_row_, entries(1)),
        alike_(pair.diagonal() && !walk_.lagged()) {
    if constexpr (patches) __syncthreads();
    // The warp with nothing to multiply is another one in every block: each has its own part of the multiprocessor.
    const int role = static_cast<int>((threadIdx.x / 32 + blockIdx.x + blockIdx.x / gram.pairs) % 4);
    row_half_ = role / 2;
    column_half_ = role % 2;
    const bool needed = gram.tiling.bundled() ? row_half_ == column_half_ : !alike_ || row_half_ <= column_half_;
    multiplies_ = needed && gram.tiling.panel(pair.set, pair.i, row_half_).count > 0 &&
                  gram.tiling.panel(pair.set, pair.j, column_half_).count > 0;
    adds_ = gram.bias && alike_ && row_half_ > column_half_;
    partial_ = static_cast<T*>(gram.partials) +
               (static_cast<std::int64_t>(blockIdx.x % gram.pairs) * gram.parts + walk_.first_partial + split_) *
                   (kTile * kTile) +
               (row_half_ * kTile + column_half_) * kPanel;
  }

  __device__ typename Rows::Entry* entries(int operand) const {
    return reinterpret_cast<typename Rows::Entry*>(shared_ + 4 * kTileSize) + operand * Rows::kEntries;
  }

  /// Fetches what the thread stages of the next kDepth positions.
  __device__ void fetch(Walker& walker) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Position at;
      at.read = walker.image < gram_.x.batch;
      at.row = walk_.row + walker.row * walk_.row_step;
      at.column = walk_.column + walker.column * walk_.column_step;
      at.offset =
          walker.image * gram_.x.batch_stride + at.row * gram_.x.height_stride + at.column * gram_.x.width_stride;
      if (gram_.row_weights && at.read) {
        weight_[i] = gram_.row_weights[at.row] * gram_.column_weights[at.column];
        at.read = weight_[i] != 0;
      }
      a_.fetch(at, a_values_[i]);
      if (!alike_) {
        at.offset += walk_.down * gram_.x.height_stride + walk_.right * gram_.x.width_stride;
        b_.fetch(at, b_values_[i]);
      }
      walker.advance();
    }
  }

  __device__ void stage(T* tile, const Element (&values)[2][kRowsOfThread], bool weighted) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* to = tile + thread_row_ * kStride + thread_position_ + i * Walker::kStep;
#pragma unroll
      for (int row = 0; row < kRowsOfThread; ++row) {
        const T value = widened(values[i][row]);
        to[row * kRowStep * kStride] = weighted ? value * static_cast<T>(weight_[i]) : value;
      }
    }
  }

  /// Sums what is staged of two rows, each lane's in an order of its own, so that no two use a bank at the same time.
  __device__ void add_rows(const T* tile, T (&row_sums)[2]) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T sum = 0;
      for (int i = 0; i < kDepth; ++i) sum += tile[(half * kPanel + lane) * kStride + (i + lane / 8) % kDepth];
      row_sums[half] += sum;
    }
  }

  __device__ void add_to_partial(WarpTile<T>& sums, T (&row_sums)[2], bool first) const {
    if (multiplies_) {
      T* own = partial_ + sums.first_row() * kTile + sums.first_column();
      sums.for_each([&](int row, int column, T& sum) {
        T& to = own[row * kTile + column];
        to = first ? sum : to + sum;
        sum = 0;
      });
    } else if (adds_) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T& to = partial_[half * kTile + threadIdx.x % 32];
        to = first ? row_sums[half] : to + row_sums[half];
        row_sums[half] = 0;
      }
    }
  }

  /// Whether all sums are finite, of those that the thread holds.
  template <bool plainly>
  __device__ bool sum() {
    const std::int64_t stages = (gram_.x.batch * walk_.rows * walk_.columns + kDepth - 1) / kDepth;
    const std::int64_t begin = stages * split_ / walk_.splits, end = stages * (split_ + 1) / walk_.splits;
    WarpTile<T> sums;
    T row_sums[2] = {};
    sums.zero();
    bool finite = true;
    if (begin == end) add_to_partial(sums, row_sums, true);
    if (begin == end) return true;
    Walker walker(walk_, begin * kDepth + thread_position_);
    fetch(walker);
    for (std::int64_t i = begin; i < end; ++i) {
      T* a = shared_ + i % 2 * (2 * kTileSize);
      T* b = a + kTileSize;
      const bool weighted = gram_.row_weights != nullptr, shares = alike_ && !weighted;
      stage(a, a_values_, weighted);
      if (alike_ && weighted) stage(b, a_values_, false);
      if (!alike_) stage(b, b_values_, false);
      __syncthreads();
      if (i + 1 < end) fetch(walker);
      if (multiplies_) {
        const Operand<T> left{a + row_half_ * kPanel * kStride, kStride};
        const Operand<T> right{(shares ? a : b) + column_half_ * kPanel * kStride, kStride};
        if constexpr (plainly) {
          sums.template multiply_add_plainly<Order::kDepthInside>(left, right, kDepth);
        } else {
          sums.template multiply_add<Order::kDepthInside, a_factor, b_factor>(left, right, kDepth);
        }
      } else if (adds_) {
        add_rows(a, row_sums);
      }
      if ((i + 1 - begin) % kStagesInSum == 0 || i + 1 == end) {
        finite = finite && (!multiplies_ || sums.finite());
        add_to_partial(sums, row_sums, i - begin < kStagesInSum);
      }
    }
    return finite;
  }

  const Gram& gram_;
  T* const shared_;  ///< two stages of two tiles, one filled while the other is multiplied
  const Walk walk_;
  const std::int32_t split_;
  const TilePair pair_;
  const int thread_row_, thread_position_;
  const Rows a_, b_;
  const bool alike_;  ///< both operands are the same numbers, but for m
  int row_half_, column_half_;
  bool multiplies_, adds_;
  T* partial_;
  Element a_values_[2][kRowsOfThread], b_values_[2][kRowsOfThread];
  float weight_[2];
};

template <class Element, bool patches, Factor a_factor, Factor b_factor>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks<Sum<Element>>)
    gram_kernel(const __grid_constant__ Gram gram) {
  GramBlock<Element, patches, a_factor, b_factor>(gram, shared_memory<Sum<Element>>()).run();
}

}  // namespace eigendamage::cuda
