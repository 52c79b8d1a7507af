#pragma once

#include <cstdint>

#include "gram_operands.cuh"
#include "launch.cuh"
#include "matrix_units.cuh"

namespace eigendamage::cuda {

/// A block of four warps, each of which multiplies a panel of rows by one of columns.
template <class Element, bool patches, Factor a_factor, Factor b_factor>
class GramBlock {
  using T = Sum<Element>;
  using Operands = GramOperands<Element, patches>;
  static constexpr int kStride = kDepth + 16 / static_cast<int>(sizeof(T));

 public:
  /// Stages of both operands, one filled while the other is multiplied, and what all threads know.
  struct Shared {
    T stages[2][2][kTile * kStride];
    typename Operands::Work work;
  };

  __device__ GramBlock(const Gram& gram, Shared& shared) : shared_(shared), operands_(gram, shared.work) {
    const auto& [set, i, j] = operands_.pair;
    const bool alike = shared.work.alike;
    // The warp with nothing to multiply is another one in every block: each has its own part of the multiprocessor.
    role_ = static_cast<int>((threadIdx.x / 32 + blockIdx.x + blockIdx.x / gram.pairs) % 4);
    const bool needed = gram.tiling.bundled() ? row_half() == column_half() : !alike || row_half() <= column_half();
    multiplies_ =
        needed && gram.tiling.panel(set, i, row_half()).count > 0 && gram.tiling.panel(set, j, column_half()).count > 0;
    adds_ = gram.bias && alike && row_half() > column_half();
  }

  __device__ void run() {
    if (operands_.idle()) return;
    if (__syncthreads_or(!sum<false>())) sum<true>();
  }

 private:
  __device__ int row_half() const { return role_ / 2; }
  __device__ int column_half() const { return role_ % 2; }

  __device__ void stage(T* tile, const Element (&values)[2][kRowsOfThread], bool weighted) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* to = tile + operands_.first_row * kStride + operands_.first_position + i * kPositionStep;
#pragma unroll
      for (int row = 0; row < kRowsOfThread; ++row) {
        const T value = widened(values[i][row]);
        to[row * kRowStep * kStride] = weighted ? value * static_cast<T>(operands_.weights[i]) : value;
      }
    }
  }

  /// The warp that adds up rows has the tile for it.
  __device__ static T* row_sums(WarpTile<T>& sums) { return sums.sums[0]; }

  /// Sums what is staged of two rows, each lane's in an order of its own, so that no two use a bank at the same time.
  __device__ void add_rows(const T* tile, T* row_sums) const {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      T sum = 0;
      for (int i = 0; i < kDepth; ++i) sum += tile[(half * kPanel + lane) * kStride + (i + lane / 8) % kDepth];
      row_sums[half] += sum;
    }
  }

  __device__ void add_to_partial(WarpTile<T>& sums, bool first) const {
    T* own = operands_.partial() + (row_half() * kTile + column_half()) * kPanel;
    if (multiplies_) {
      own += sums.first_row() * kTile + sums.first_column();
      sums.for_each([&](int row, int column, T& sum) {
        T& to = own[row * kTile + column];
        to = first ? sum : to + sum;
        sum = 0;
      });
    } else if (adds_) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        T &to = own[half * kTile + threadIdx.x % 32], &sum = row_sums(sums)[half];
        to = first ? sum : to + sum;
        sum = 0;
      }
    }
  }

  /// Whether all sums are finite, of those that the thread holds.
  template <bool plainly>
  __device__ bool sum() {
    const int count = operands_.stages();
    WarpTile<T> sums;
    sums.zero();
    if (count == 0) {
      add_to_partial(sums, true);
      return true;
    }
    bool finite = true;
    Digits at = operands_.start();
    operands_.fetch(at);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      T *a = shared_.stages[i % 2][0], *b = shared_.stages[i % 2][1];
      const bool weighted = operands_.weighted();
      stage(a, operands_.a, weighted);
      if (!shared_.work.alike) {
        stage(b, operands_.b, false);
      } else if (weighted) {
        stage(b, operands_.a, false);
      } else {
        b = a;
      }
      __syncthreads();
      if (i + 1 < count) operands_.fetch(at);
      if (multiplies_) {
        const Operand<T> left{a + row_half() * kPanel * kStride, kStride};
        const Operand<T> right{b + column_half() * kPanel * kStride, kStride};
        if constexpr (plainly) {
          sums.template multiply_add_plainly<Order::kDepthInside>(left, right, kDepth);
        } else {
          constexpr int kStep = WarpTile<T>::kDepthStep;
#pragma unroll 1
          for (int k = 0; k < kDepth; k += kStep) {
            sums.template multiply_add<Order::kDepthInside, a_factor, b_factor>({left.tile + k, kStride},
                                                                                {right.tile + k, kStride}, kStep);
          }
        }
      } else if (adds_) {
        add_rows(a, row_sums(sums));
      }
      if ((i + 1) % kStagesInSum == 0 || i + 1 == count) {
        finite = finite && (!multiplies_ || sums.finite());
        add_to_partial(sums, i < kStagesInSum);
      }
    }
    return finite;
  }

  Shared& shared_;
  Operands operands_;
  int role_;
  bool multiplies_, adds_;
};

template <class Element, bool patches, Factor a_factor, Factor b_factor>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks<Sum<Element>>)
    gram_kernel(const __grid_constant__ Gram gram) {
  using Block = GramBlock<Element, patches, a_factor, b_factor>;
  Block(gram, *shared_memory<typename Block::Shared>()).run();
}

}  // namespace eigendamage::cuda
