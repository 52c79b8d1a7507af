#pragma once

#include <cstdint>

#include "../kernels.h"
#include "gram_operands.cuh"

namespace eigendamage::cuda {

/// A block (k1, k2) of the output is the sum over the walks terms[begin … end); none of this batch where end is negative.
struct BlockTerms {
  std::int32_t begin, end;
};

/// out = beta·out + alpha·(sums of partials), and the same mirrored. A block of threads adds up `rows` rows of a tile by half
/// its columns, of `kernel_rows` offsets k1 by all k2, where these lie side by side in the output.
template <class T>
struct Combine {
  RowTiling tiling;
  std::int64_t first_pair;
  std::uint32_t pairs, parts;
  const Walk* walks;
  const BlockTerms* blocks;  ///< [k1][k2]
  const std::int32_t* terms;
  int offsets;  ///< K: row r of a group and offset k are row r·K + k of the output
  int rows, kernel_rows, split_lanes;
  const T* partials;
  FactorView out;
  Update update;
  bool bias;
  double count;  ///< the constant against itself

  __host__ __device__ int row_steps() const { return kTile / rows; }
  __host__ __device__ int kernel_steps() const { return (offsets + kernel_rows - 1) / kernel_rows; }
  /// From a row of the staged tile to the next: odd, for columns to lie in different banks.
  __host__ __device__ int stride() const { return kPanel * offsets + 1 - kPanel * offsets % 2; }
};

constexpr int kCombineWarps = 8;

template <class T>
class Combiner {
 public:
  /// A row or column of the tile: where it begins in the output, and in which group; none where that is negative.
  struct Line {
    std::int64_t group, first;
  };
  struct Shared {
    double sums[32 * kCombineWarps];
    Line rows[kTile], columns[kPanel];
  };  // and the staged tile, of T

  __device__ Combiner(const Combine<T>& c)
      : c_(c), shared_(*shared_memory<Shared>()), tile_(reinterpret_cast<T*>(&shared_ + 1)) {
    int index = static_cast<int>(blockIdx.x % (2 * steps()));
    const std::uint32_t local = blockIdx.x / (2 * steps());
    column_half_ = index % 2;
    index /= 2;
    first_offset_ = index % c.kernel_steps() * c.kernel_rows;
    step_ = index / c.kernel_steps();
    offset_count_ = min(c.kernel_rows, c.offsets - first_offset_);
    pair_ = c.tiling.pair(c.first_pair + local);
    partials_ = c.partials + static_cast<std::int64_t>(local) * c.parts * (kTile * kTile);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kTile) shared_.rows[thread] = line(pair_.i, thread);
    if (thread < kPanel) shared_.columns[thread] = line(pair_.j, column_half_ * kPanel + thread);
    __syncthreads();
  }

  __device__ void run() {
    if (step_ == c_.row_steps()) return add_row_sums();
    const int items = c_.rows * offset_count_ * c_.offsets, lane = static_cast<int>(threadIdx.x % 32);
    const int warp = static_cast<int>(threadIdx.x / 32), split_lane = warp % c_.split_lanes;
    const int at_once = kCombineWarps / c_.split_lanes;
    for (int first = 0; first < items; first += at_once) {
      const int item = first + warp / c_.split_lanes, k2 = item % c_.offsets, row = item / c_.offsets;
      double sum = 0;
      const bool there = item < items && needed(row, lane, k2);
      if (there) {
        sum = add_splits(k1(row), k2, (first_row() + row / offset_count_) * kTile + column_half_ * kPanel + lane,
                         split_lane);
      }
      sum = over_split_lanes(sum, warp, split_lane, lane);
      if (there && split_lane == 0)
        tile_[row * c_.stride() + lane * c_.offsets + k2] = static_cast<T>(c_.update.alpha * sum);
    }
    __syncthreads();
    write();
  }

 private:
  /// Blocks of a half of a pair: those that add up rows, and one for each step over k1 for the sums of rows.
  __device__ unsigned steps() const {
    return static_cast<unsigned>((c_.row_steps() + (c_.bias ? 1 : 0)) * c_.kernel_steps());
  }
  __device__ int first_row() const { return step_ * c_.rows; }
  /// Rows of the staged tile are those of the tile, each with offset_count_ offsets k1.
  __device__ int k1(int row) const { return first_offset_ + row % offset_count_; }

  __device__ Line line(std::int64_t tile, int row) const {
    const RowTiling& tiling = c_.tiling;
    const Panel panel = tiling.panel(pair_.set, tile, row / kPanel);
    if (row % kPanel >= panel.count) return {-1, 0};
    const std::int64_t channel = panel.first + row % kPanel, group = channel / tiling.rows;
    return {group, (channel - group * tiling.rows) * c_.offsets};
  }

  /// Whether the output has that entry from here: not from above the diagonal as well as from below it.
  __device__ bool needed(int row, int column, int k2) const {
    const int a = first_row() + row / offset_count_, k = k1(row);
    const Line &down = shared_.rows[a], &right = shared_.columns[column];
    if (down.group < 0 || down.group != right.group || c_.blocks[k * c_.offsets + k2].end < 0) return false;
    return !pair_.diagonal() || k < k2 || (k == k2 && a <= column_half_ * kPanel + column);
  }

  __device__ double add_splits(int k1, int k2, int entry, int split_lane) const {
    const BlockTerms block = c_.blocks[k1 * c_.offsets + k2];
    double sum = 0;
    for (std::int32_t term = block.begin; term < block.end; ++term) {
      const Walk& walk = c_.walks[c_.terms[term]];
      const T* partial = partials_ + static_cast<std::int64_t>(walk.first_partial) * (kTile * kTile) + entry;
#pragma unroll 8
      for (int split = split_lane; split < walk.splits; split += c_.split_lanes) {
        sum += static_cast<double>(partial[static_cast<std::int64_t>(split) * (kTile * kTile)]);
      }
    }
    return sum;
  }

  /// The sum of what the warps with the same entries have, for the first of them.
  __device__ double over_split_lanes(double sum, int warp, int split_lane, int lane) const {
    if (c_.split_lanes == 1) return sum;
    shared_.sums[threadIdx.x] = sum;
    __syncthreads();
    for (int other = 1; split_lane == 0 && other < c_.split_lanes; ++other)
      sum += shared_.sums[(warp + other) * 32 + lane];
    __syncthreads();
    return sum;
  }

  /// Writes the staged tile along its rows, and then along its columns, mirrored.
  __device__ void write() const {
    const int rows = c_.rows * offset_count_, columns = kPanel * c_.offsets, threads = 32 * kCombineWarps;
    for (const bool mirrored : {false, true}) {
      for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += threads) {
        const int row = mirrored ? i % rows : i / columns, place = mirrored ? i / rows : i % columns;
        const int column = place / c_.offsets, k2 = place % c_.offsets;
        if (!needed(row, column, k2)) continue;
        const Line &down = shared_.rows[first_row() + row / offset_count_], &right = shared_.columns[column];
        const std::int64_t out_row = down.first + k1(row), out_column = right.first + k2;
        if (mirrored && out_row == out_column) continue;
        enter(down.group, mirrored ? out_column : out_row, mirrored ? out_row : out_column,
              tile_[row * c_.stride() + place]);
      }
    }
  }

  /// The row and column of the constant.
  __device__ void add_row_sums() {
    const int half = column_half_, lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
    if (!pair_.diagonal()) return;
    for (int k = warp; k < offset_count_; k += kCombineWarps) {
      const int offset = first_offset_ + k;
      const Line& row = shared_.rows[half * kPanel + lane];
      if (c_.blocks[offset * c_.offsets + offset].end < 0) continue;
      const std::int64_t last = c_.out.size - 1;
      const bool first = row.group >= 0 && row.first + offset == 0;
      if (row.group >= 0) {
        double sum = 0;
        for (int split_lane = 0; split_lane < c_.split_lanes; ++split_lane) {
          sum += add_splits(offset, offset, (kPanel + half) * kTile + lane, split_lane);
        }
        const T term = static_cast<T>(c_.update.alpha * sum);
        enter(row.group, row.first + offset, last, term);
        enter(row.group, last, row.first + offset, term);
      }
      const bool alone = c_.tiling.rows == 0 && half == 0 && lane == 0 && offset == 0;
      if (first || alone) enter(first ? row.group : pair_.set, last, last, static_cast<T>(c_.update.alpha * c_.count));
    }
  }

  __device__ void enter(std::int64_t group, std::int64_t row, std::int64_t column, T term) const {
    T& to = static_cast<T*>(c_.out.data)[group * c_.out.group_stride + row * c_.out.row_stride + column];
    to = c_.update.beta == 0 ? term
                             : static_cast<T>(c_.update.beta * static_cast<double>(to) + static_cast<double>(term));
  }

  const Combine<T>& c_;
  Shared& shared_;
  T* tile_;
  int column_half_, first_offset_, offset_count_, step_;
  TilePair pair_;
  const T* partials_;
};

template <class T>
__global__ void __launch_bounds__(32 * kCombineWarps) combine_kernel(const __grid_constant__ Combine<T> c) {
  Combiner<T>(c).run();
}

}  // namespace eigendamage::cuda
