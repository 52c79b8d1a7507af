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

  __device__ std::int64_t positions() const { return rows * columns; }
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

/// A position of a walk, as the digits of its number: columns count fastest.
struct Digits {
  std::int64_t image, row, column;

  __device__ static Digits of(std::int64_t number, const Walk& walk) {
    const std::int64_t lines = number / walk.columns;
    return {lines / walk.rows, lines % walk.rows, number % walk.columns};
  }

  __device__ void add(const Digits& step, const Walk& walk) {
    column += step.column;
    row += step.row;
    image += step.image;
    if (column >= walk.columns) {
      column -= walk.columns;
      ++row;
    }
    if (row >= walk.rows) {
      row -= walk.rows;
      ++image;
    }
  }
};

constexpr int kPositionStep = kDepth / 2;  ///< between a thread's two positions of a stage

/// A position of x; elements of a row are `offset` from those of the first one.
struct Position {
  std::int64_t row, column, offset;
  bool read;
};

/// Every kRowStep-th row of a tile, from `first` on, is a thread's to fetch.
constexpr int kRowStep = 8, kRowsOfThread = kTile / kRowStep, kRowsOfPanel = kPanel / kRowStep;

/// A tile's rows as channels of x. Entries are what a block knows of an operand.
template <class Element>
struct PixelRows {
  struct Entry {  ///< a panel; its first channel from that of x
    std::int64_t offset;
    int count;
  };
  static constexpr int kEntries = 2;

  __device__ static Entry entry(const Gram& gram, std::int64_t set, std::int64_t tile, int half) {
    const Panel panel = gram.tiling.panel(set, tile, half);
    return {panel.first * gram.x.channel_stride, panel.count};
  }

  /// Of every kRowStep-th row from `first` on the number at a position.
  __device__ static void fetch(const Gram& gram, const Entry* entries, int first, const Position& at,
                               Element (&values)[kRowsOfThread]) {
    const std::int64_t stride = gram.x.channel_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Element* from =
          static_cast<const Element*>(gram.x.data) + (entries[half].offset + at.offset + first * stride);
      const int left = at.read ? entries[half].count - first : 0;
#pragma unroll
      for (int i = 0; i < kRowsOfPanel; ++i) {
        values[half * kRowsOfPanel + i] = i * kRowStep < left ? from[i * kRowStep * stride] : Element{};
      }
    }
  }
};

/// A tile's rows as numbers of a patch, in the order (channel, kernel row, kernel column), 0 outside the image.
template <class Element>
struct PatchRows {
  struct Entry {  ///< a row: from a patch's first pixel to the row's
    std::int64_t offset, down, right;
  };
  static constexpr int kEntries = kTile;

  __device__ static Entry entry(const Gram& gram, std::int64_t set, std::int64_t tile, int row) {
    constexpr std::int64_t kNowhere = std::int64_t{1} << 62;
    const Panel panel = gram.tiling.panel(set, tile, row / kPanel);
    if (row % kPanel >= panel.count) return {0, kNowhere, 0};
    const std::int64_t number = panel.first + row % kPanel, lines = number / gram.kernel_width;
    const std::int64_t channel = lines / gram.kernel_height;
    const std::int64_t down = lines % gram.kernel_height * gram.row_dilation;
    const std::int64_t right = number % gram.kernel_width * gram.column_dilation;
    return {channel * gram.x.channel_stride + down * gram.x.height_stride + right * gram.x.width_stride, down, right};
  }

  __device__ static void fetch(const Gram& gram, const Entry* entries, int first, const Position& at,
                               Element (&values)[kRowsOfThread]) {
    const ImageView& x = gram.x;
#pragma unroll
    for (int i = 0; i < kRowsOfThread; ++i) {
      const Entry entry = entries[first + i * kRowStep];
      const std::int64_t row = at.row + entry.down, column = at.column + entry.right;
      const bool inside = at.read && 0 <= row && row < x.height && 0 <= column && column < x.width;
      values[i] = inside ? static_cast<const Element*>(x.data)[at.offset + entry.offset] : Element{};
    }
  }
};

template <class Element, bool patches, Factor a_factor, Factor b_factor>
class GramBlock {
  using T = Sum<Element>;
  using Rows = std::conditional_t<patches, PatchRows<Element>, PixelRows<Element>>;
  static constexpr int kStride = kDepth + 16 / static_cast<int>(sizeof(T));

 public:
  /// Stages of both operands, one filled while the other is multiplied, and what all threads know.
  struct Shared {
    T stages[2][2][kTile * kStride];
    Walk walk;
    Digits step;
    std::int32_t split;
    bool alike;  ///< both operands are the same numbers, but for m
    typename Rows::Entry entries[2][Rows::kEntries];
  };

  __device__ GramBlock(const Gram& gram, Shared& shared)
      : GramBlock(gram, shared, gram.part_list[blockIdx.x / gram.pairs],
                  gram.tiling.pair(gram.first_pair + blockIdx.x % gram.pairs)) {}

  __device__ void run() {
    if (idle_) return;
    if (__syncthreads_or(!sum<false>())) sum<true>();
  }

 private:
  __device__ GramBlock(const Gram& gram, Shared& shared, const Part& part, const TilePair& pair)
      : gram_(gram),
        shared_(shared),
        thread_row_(gram.rows_first ? threadIdx.x % 8 : threadIdx.x / 32 + threadIdx.x % 32 / 16 * 4),
        thread_position_(gram.rows_first ? threadIdx.x / 8 : threadIdx.x % 16) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < Rows::kEntries) {
      shared.entries[0][thread] = Rows::entry(gram, pair.set, pair.i, thread);
      shared.entries[1][thread] = Rows::entry(gram, pair.set, pair.j, thread);
    }
    if (thread == kGramThreads - 1) {
      shared.walk = gram.walks[part.walk];
      shared.split = part.split;
      shared.alike = pair.diagonal() && !shared.walk.lagged();
      if (shared.walk.positions() > 0) shared.step = Digits::of(kPositionStep, shared.walk);
    }
    __syncthreads();
    // The warp with nothing to multiply is another one in every block: each has its own part of the multiprocessor.
    role_ = static_cast<int>((threadIdx.x / 32 + blockIdx.x + blockIdx.x / gram.pairs) % 4);
    idle_ = pair.diagonal() && shared.walk.backward();
    const bool needed =
        gram.tiling.bundled() ? row_half() == column_half() : !shared.alike || row_half() <= column_half();
    multiplies_ = needed && gram.tiling.panel(pair.set, pair.i, row_half()).count > 0 &&
                  gram.tiling.panel(pair.set, pair.j, column_half()).count > 0;
    adds_ = gram.bias && shared.alike && row_half() > column_half();
  }

  __device__ int row_half() const { return role_ / 2; }
  __device__ int column_half() const { return role_ % 2; }

  /// Fetches what the thread stages of the next kDepth positions.
  __device__ void fetch(Digits& at) {
    const ImageView& x = gram_.x;
    const Walk& walk = shared_.walk;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Position position;
      position.read = at.image < x.batch;
      position.row = walk.row + at.row * walk.row_step;
      position.column = walk.column + at.column * walk.column_step;
      position.offset = at.image * x.batch_stride + position.row * x.height_stride + position.column * x.width_stride;
      if (gram_.row_weights) {
        weight_[i] = position.read ? gram_.row_weights[position.row] * gram_.column_weights[position.column] : 0.0f;
        position.read = weight_[i] != 0;
      }
      Rows::fetch(gram_, shared_.entries[0], thread_row_, position, a_values_[i]);
      if (!shared_.alike) {
        position.offset += walk.down * x.height_stride + walk.right * x.width_stride;
        Rows::fetch(gram_, shared_.entries[1], thread_row_, position, b_values_[i]);
      }
      at.add(shared_.step, walk);
    }
  }

  __device__ void stage(T* tile, const Element (&values)[2][kRowsOfThread], bool weighted) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* to = tile + thread_row_ * kStride + thread_position_ + i * kPositionStep;
#pragma unroll
      for (int row = 0; row < kRowsOfThread; ++row) {
        const T value = widened(values[i][row]);
        to[row * kRowStep * kStride] = weighted ? value * static_cast<T>(weight_[i]) : value;
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
    const std::int64_t index =
        static_cast<std::int64_t>(blockIdx.x % gram_.pairs) * gram_.parts + shared_.walk.first_partial + shared_.split;
    T* own = static_cast<T*>(gram_.partials) + index * (kTile * kTile) + (row_half() * kTile + column_half()) * kPanel;
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
    const std::int64_t stages = (gram_.x.batch * shared_.walk.positions() + kDepth - 1) / kDepth;
    const std::int64_t begin = stages * shared_.split / shared_.walk.splits;
    const auto count = static_cast<int>(stages * (shared_.split + 1) / shared_.walk.splits - begin);
    WarpTile<T> sums;
    sums.zero();
    if (count == 0) {
      add_to_partial(sums, true);
      return true;
    }
    bool finite = true;
    Digits at = Digits::of(begin * kDepth + thread_position_, shared_.walk);
    fetch(at);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      T *a = shared_.stages[i % 2][0], *b = shared_.stages[i % 2][1];
      const bool weighted = gram_.row_weights != nullptr;
      stage(a, a_values_, weighted);
      if (!shared_.alike) {
        stage(b, b_values_, false);
      } else if (weighted) {
        stage(b, a_values_, false);
      } else {
        b = a;
      }
      __syncthreads();
      if (i + 1 < count) fetch(at);
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

  const Gram& gram_;
  Shared& shared_;
  const int thread_row_, thread_position_;
  int role_;
  bool idle_, multiplies_, adds_;
  Element a_values_[2][kRowsOfThread], b_values_[2][kRowsOfThread];
  float weight_[2];
};

template <class Element, bool patches, Factor a_factor, Factor b_factor>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks<Sum<Element>>)
    gram_kernel(const __grid_constant__ Gram gram) {
  using Block = GramBlock<Element, patches, a_factor, b_factor>;
  Block(gram, *shared_memory<typename Block::Shared>()).run();
}

}  // namespace eigendamage::cuda
