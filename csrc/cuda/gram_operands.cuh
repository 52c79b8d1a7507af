#pragma once

#include <cstdint>

#include "../views.h"
#include "elements.cuh"
#include "launch.cuh"
#include "row_tiles.cuh"

namespace eigendamage::cuda {

constexpr int kDepth = 32;         ///< positions that a block stages at a time
constexpr int kStagesInSum = 16;   ///< that sums in registers are of
constexpr int kGramThreads = 128;  ///< of a block

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

/// What a block reads: a part of a walk's positions, of the rows of two tiles. On its way to shared memory a thread has
/// kRowsOfThread rows of either tile, at two positions of a stage.
template <class Element, bool patches>
class GramOperands {
 public:
  using T = Sum<Element>;
  using Rows = std::conditional_t<patches, PatchRows<Element>, PixelRows<Element>>;

  /// In shared memory: what all threads know.
  struct Work {
    Walk walk;
    Digits step;
    std::int32_t split;
    bool alike;  ///< both operands are the same numbers, but for m
    typename Rows::Entry entries[2][Rows::kEntries];
  };

  __device__ GramOperands(const Gram& gram, Work& work)
      : gram(gram),
        work(work),
        pair(gram.tiling.pair(gram.first_pair + blockIdx.x % gram.pairs)),
        first_row(gram.rows_first ? threadIdx.x % 8 : threadIdx.x / 32 + threadIdx.x % 32 / 16 * 4),
        first_position(gram.rows_first ? threadIdx.x / 8 : threadIdx.x % 16) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < Rows::kEntries) {
      work.entries[0][thread] = Rows::entry(gram, pair.set, pair.i, thread);
      work.entries[1][thread] = Rows::entry(gram, pair.set, pair.j, thread);
    }
    if (thread == kGramThreads - 1) {
      const Part part = gram.part_list[blockIdx.x / gram.pairs];
      work.walk = gram.walks[part.walk];
      work.split = part.split;
      work.alike = pair.diagonal() && !work.walk.lagged();
      if (work.walk.positions() > 0) work.step = Digits::of(kPositionStep, work.walk);
    }
    __syncthreads();
  }

  __device__ bool weighted() const { return gram.row_weights != nullptr; }
  /// Whether nobody needs the sums.
  __device__ bool idle() const { return pair.diagonal() && work.walk.backward(); }

  /// Stages of kDepth positions, from the part's first position on.
  __device__ int stages() const { return static_cast<int>(begin(1) - begin(0)); }
  __device__ Digits start() const { return Digits::of(begin(0) * kDepth + first_position, work.walk); }

  /// Fetches what the thread stages of the next kDepth positions.
  __device__ void fetch(Digits& at) {
    const ImageView& x = gram.x;
    const Walk& walk = work.walk;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Position position;
      position.read = at.image < x.batch;
      position.row = walk.row + at.row * walk.row_step;
      position.column = walk.column + at.column * walk.column_step;
      position.offset = at.image * x.batch_stride + position.row * x.height_stride + position.column * x.width_stride;
      if (weighted()) {
        weights[i] = position.read ? gram.row_weights[position.row] * gram.column_weights[position.column] : 0.0f;
        position.read = weights[i] != 0;
      }
      Rows::fetch(gram, work.entries[0], first_row, position, a[i]);
      if (!work.alike) {
        position.offset += walk.down * x.height_stride + walk.right * x.width_stride;
        Rows::fetch(gram, work.entries[1], first_row, position, b[i]);
      }
      at.add(work.step, walk);
    }
  }

  /// The block's partial sum (kTile, kTile).
  __device__ T* partial() const {
    const std::int64_t index =
        static_cast<std::int64_t>(blockIdx.x % gram.pairs) * gram.parts + work.walk.first_partial + work.split;
    return static_cast<T*>(gram.partials) + index * (kTile * kTile);
  }

  const Gram& gram;
  Work& work;
  const TilePair pair;
  const int first_row, first_position;
  Element a[2][kRowsOfThread], b[2][kRowsOfThread];  ///< what was fetched last
  float weights[2];                                  ///< m

 private:
  __device__ std::int64_t begin(int after) const {
    const std::int64_t all = (gram.x.batch * work.walk.positions() + kDepth - 1) / kDepth;
    return all * (work.split + after) / work.walk.splits;
  }
};

}  // namespace eigendamage::cuda
