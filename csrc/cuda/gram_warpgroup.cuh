#pragma once

#include <cstdint>

#include "gram_operands.cuh"
#include "launch.cuh"
#include "matrix_units.cuh"
#include "warpgroup_units.cuh"

namespace eigendamage::cuda {

/// A block of four warps that multiply a tile by a tile together. The units sum up the kDepth positions of a stage, which is
/// then rounded to the sum; of split floats first lo·hi + hi·lo, which is so small that what they cut off does not count.
template <class Element, bool patches, Factor factor>
class WarpgroupGramBlock {
  static_assert(sizeof(Sum<Element>) == sizeof(float) && kTile == Chunks::kRows);
  static constexpr bool kSplits = factor == Factor::kSplit;
  using Operands = GramOperands<Element, patches>;
  using Stage = float[kSplits ? 2 : 1][Chunks::size(kDepth)];  ///< hi, lo

 public:
  struct Shared {
    alignas(16) Stage stages[2][2];
    typename Operands::Work work;
  };

  __device__ WarpgroupGramBlock(const Gram& gram, Shared& shared)
      : shared_(shared), operands_(gram, shared.work), adds_rows_(gram.bias && shared.work.alike) {}

  __device__ void run() {
    if (operands_.idle()) return;
    if (__syncthreads_or(!sum<false>())) sum<true>();
  }

 private:
  template <bool plainly>
  __device__ void stage(Stage& to, const Element (&values)[2][kRowsOfThread], bool weighted) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = Chunks::at(operands_.first_row, operands_.first_position + i * kPositionStep);
#pragma unroll
      for (int row = 0; row < kRowsOfThread; ++row) {
        const float value = widened(values[i][row]), x = weighted ? value * operands_.weights[i] : value;
        const int place = at + row * kRowStep * Chunks::kWidth;
        if constexpr (plainly || factor == Factor::kExact) {
          to[0][place] = x;
        } else if constexpr (kSplits) {
          const Halves halves = split(x);
          to[0][place] = halves.hi;
          to[1][place] = halves.lo;
        } else {
          to[0][place] = rounded_to_tf32(x);
        }
      }
    }
  }

  __device__ static void multiply_plainly(const Stage& a, const Stage& b, float (&sums)[32]) {
#pragma unroll 1
    for (int k = 0; k < kDepth; ++k) {
      for_each_pair([&](int row, int column, int i) {
        const float left = a[0][Chunks::at(row, k)];
        sums[i] += left * b[0][Chunks::at(column, k)];
        sums[i + 1] += left * b[0][Chunks::at(column + 1, k)];
      });
    }
  }

  /// The sum of half of a stage of a row, one half for each of two neighbouring threads.
  template <bool plainly>
  __device__ static float row_sum(const Stage& a) {
    const int row = static_cast<int>(threadIdx.x / 2), first = static_cast<int>(threadIdx.x % 2) * (kDepth / 2);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kDepth / 2; ++k) {
      const int at = Chunks::at(row, first + k);
      sum += kSplits && !plainly ? a[0][at] + a[kSplits][at] : a[0][at];
    }
    return sum;
  }

  __device__ void add_to_partial(float (&sums)[32], float& row_sum, bool first) const {
    float* const partial = operands_.partial();
    for_each_pair([&](int row, int column, int i) {
      if (adds_rows_ && row >= kPanel && column < kPanel) return;
      Two& to = *reinterpret_cast<Two*>(partial + row * kTile + column);
      const Two before = first ? Two{} : to;
      to = {before.left + sums[i], before.right + sums[i + 1]};
      sums[i] = sums[i + 1] = 0;
    });
    if (!adds_rows_) return;
    const float whole = row_sum + __shfl_xor_sync(0xFFFFFFFF, row_sum, 1);
    row_sum = 0;
    if (threadIdx.x % 2 != 0) return;
    const int row = static_cast<int>(threadIdx.x / 2);
    float& to = partial[(kPanel + row / kPanel) * kTile + row % kPanel];
    to = first ? whole : to + whole;
  }

  /// Whether all sums are finite, of those that the thread holds.
  template <bool plainly>
  __device__ bool sum() {
    const int count = operands_.stages();
    float sums[32] = {}, products[32] = {}, sum_of_row = 0;
    if (count == 0) {
      add_to_partial(sums, sum_of_row, true);
      return true;
    }
    bool finite = true;
    Digits at = operands_.start();
    operands_.fetch(at);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const bool alike = shared_.work.alike, weighted = operands_.weighted();
      Stage &a = shared_.stages[i % 2][0], &b = alike && !weighted ? a : shared_.stages[i % 2][1];
      stage<plainly>(a, operands_.a, weighted);
      if (!alike) {
        stage<plainly>(b, operands_.b, false);
      } else if (weighted) {
        stage<plainly>(b, operands_.a, false);
      }
      show_to_units();
      __syncthreads();
      if constexpr (plainly) {
        multiply_plainly(a, b, sums);
      } else {
        hold(products);
        begin_products();
        if constexpr (kSplits) {
          multiply(products, a[1], b[0], false);
          multiply(products, a[0], b[1], true);
        }
        multiply(products, a[0], b[0], kSplits);
        end_products();
      }
      if (adds_rows_) sum_of_row += row_sum<plainly>(a);
      if (i + 1 < count) operands_.fetch(at);
      if constexpr (!plainly) {
        wait_for_products();
        hold(products);
#pragma unroll
        for (int j = 0; j < 32; ++j) sums[j] += products[j];
      }
      if ((i + 1) % kStagesInSum == 0 || i + 1 == count) {
        finite = finite && all_finite(sums);
        add_to_partial(sums, sum_of_row, i < kStagesInSum);
      }
    }
    return finite;
  }

  /// By all k of a stage; the sums are new unless `adds`.
  __device__ static void multiply(float (&sums)[32], const float* a, const float* b, bool adds) {
    constexpr int kStep = Chunks::size(8);
#pragma unroll
    for (int k = 0; k < kDepth / 8; ++k) multiply_64x64x8(sums, a + k * kStep, b + k * kStep, adds || k > 0);
  }

  __device__ static bool all_finite(const float (&sums)[32]) {
    float probe = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) probe += sums[i] * 0;
    return probe == 0;
  }

  struct alignas(8) Two {
    float left, right;
  };

  Shared& shared_;
  Operands operands_;
  const bool adds_rows_;
};

/// Patches take more registers to read.
template <class Element, bool patches, Factor factor>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks<Sum<Element>> - patches)
    warpgroup_gram_kernel(const __grid_constant__ Gram gram) {
  using Block = WarpgroupGramBlock<Element, patches, factor>;
  Block(gram, *shared_memory<typename Block::Shared>()).run();
}

}  // namespace eigendamage::cuda
