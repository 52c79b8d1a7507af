#pragma once

#include <cstdint>

#include "../kernels.h"
#include "gram_operands.cuh"

namespace eigendamage::cuda {

/// Block (k1, k2) of the output: the sum over the walks terms[begin … end).
struct BlockTerms {
  std::int32_t k1, k2, begin, end;
};

/// out = beta·out + alpha·(sums of partials), and the same mirrored.
template <class T>
struct Combine {
  RowTiling tiling;
  std::int64_t first_pair;
  std::uint32_t pairs, parts;
  const Walk* walks;
  const BlockTerms* blocks;
  const std::int32_t* terms;
  std::uint32_t block_count;
  std::int64_t offsets;  ///< K: row r of a group and offset k are row r·K + k of the output
  const T* partials;
  FactorView out;
  Update update;
  bool bias;
  double count;  ///< the constant against itself
  std::uint32_t split_lanes;
};

constexpr unsigned kCombineWarps = 8;

template <class T>
class Combiner {
 public:
  /// Rows of a tile that are added up: its own, and the two of sums of rows.
  static constexpr unsigned kRows = kTile + 2;

  __device__ Combiner(const Combine<T>& c) : c_(c) {
    const unsigned row_steps = (kRows * c.split_lanes + kCombineWarps - 1) / kCombineWarps;
    std::uint32_t index = blockIdx.x;
    column_half_ = static_cast<int>(index % 2);
    index /= 2;
    row_ = index % row_steps * (kCombineWarps / c.split_lanes) + threadIdx.x / 32 / c.split_lanes;
    index /= row_steps;
    block_ = c.blocks[index % c.block_count];
    local_pair_ = index / c.block_count;
    pair_ = c.tiling.pair(c.first_pair + local_pair_);
    locate();
  }

  __device__ void run() {
    double* sums = shared_memory<double>();
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, split_lane = warp % c_.split_lanes;
    double sum = needed_ ? add_splits(split_lane) : 0;
    if (c_.split_lanes > 1) {
      sums[threadIdx.x] = sum;
      __syncthreads();
      if (split_lane > 0) return;
      for (unsigned other = 1; other < c_.split_lanes; ++other) sum += sums[(warp + other) * 32 + lane];
    }
    if (needed_) {
      const T value = updated(out_row_, out_column_, sum);
      at(out_row_, out_column_) = value;
      at(out_column_, out_row_) = value;
    }
    if (corner_) at(c_.out.size - 1, c_.out.size - 1) = updated(c_.out.size - 1, c_.out.size - 1, c_.count);
  }

 private:
  /// Finds the thread's entry of a partial sum, and of the output.
  __device__ void locate() {
    const RowTiling& tiling = c_.tiling;
    const int lane = static_cast<int>(threadIdx.x % 32);
    needed_ = corner_ = false;
    if (row_ >= kTile) {
      const int half = static_cast<int>(row_) - kTile;
      if (!c_.bias || half > 1 || column_half_ > 0 || !pair_.diagonal() || block_.k1 != block_.k2) return;
      const Panel panel = tiling.panel(pair_.set, pair_.i, half);
      const std::int64_t row = panel.first + lane;
      needed_ = lane < panel.count;
      group_ = needed_ ? row / tiling.rows : pair_.set;
      out_row_ = (row - group_ * tiling.rows) * c_.offsets + block_.k1;
      out_column_ = c_.out.size - 1;
      entry_ = (kPanel + half) * kTile + lane;
      corner_ = needed_ ? out_row_ == 0 : tiling.rows == 0 && half == 0 && lane == 0 && block_.k1 == 0;
      return;
    }
    const int row_half = static_cast<int>(row_) / kPanel, row_in_panel = static_cast<int>(row_) % kPanel;
    const Panel a = tiling.panel(pair_.set, pair_.i, row_half), b = tiling.panel(pair_.set, pair_.j, column_half_);
    if (row_in_panel >= a.count || lane >= b.count) return;
    const std::int64_t row = a.first + row_in_panel, column = b.first + lane;
    group_ = row / tiling.rows;
    out_row_ = (row - group_ * tiling.rows) * c_.offsets + block_.k1;
    out_column_ = (column - group_ * tiling.rows) * c_.offsets + block_.k2;
    entry_ = static_cast<int>(row_) * kTile + column_half_ * kPanel + lane;
    needed_ = column / tiling.rows == group_ &&
              (!pair_.diagonal() || block_.k1 < block_.k2 || (block_.k1 == block_.k2 && row <= column));
  }

  __device__ double add_splits(unsigned split_lane) const {
    const T* own = c_.partials + static_cast<std::int64_t>(local_pair_) * c_.parts * (kTile * kTile) + entry_;
    double sum = 0;
    for (std::int32_t term = block_.begin; term < block_.end; ++term) {
      const Walk& walk = c_.walks[c_.terms[term]];
      const T* partial = own + static_cast<std::int64_t>(walk.first_partial) * (kTile * kTile);
#pragma unroll 8
      for (int split = static_cast<int>(split_lane); split < walk.splits; split += static_cast<int>(c_.split_lanes)) {
        sum += static_cast<double>(partial[static_cast<std::int64_t>(split) * (kTile * kTile)]);
      }
    }
    return sum;
  }

  __device__ T& at(std::int64_t row, std::int64_t column) const {
    return static_cast<T*>(c_.out.data)[group_ * c_.out.group_stride + row * c_.out.row_stride + column];
  }

  __device__ T updated(std::int64_t row, std::int64_t column, double sum) const {
    const double before = c_.update.beta == 0 ? 0 : c_.update.beta * static_cast<double>(at(row, column));
    return static_cast<T>(before + c_.update.alpha * sum);
  }

  const Combine<T>& c_;
  int column_half_;
  std::uint32_t row_, local_pair_;
  BlockTerms block_;
  TilePair pair_;
  std::int64_t group_, out_row_, out_column_;
  int entry_;
  bool needed_, corner_;
};

template <class T>
__global__ void __launch_bounds__(32 * kCombineWarps) combine_kernel(const __grid_constant__ Combine<T> c) {
  Combiner<T>(c).run();
}

}  // namespace eigendamage::cuda
