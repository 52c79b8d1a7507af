#pragma once

#include <cstdint>

#include "elements.cuh"
#include "gram_operands.cuh"
#include "launch.cuh"
#include "matrix_units.cuh"
#include "warpgroup_units.cuh"

/// Grams of whole images, whose pixels follow one another, by the matrix units that four warps share.
namespace eigendamage::cuda {

/// Four neighbouring pixels of a channel are read at a time.
constexpr int kPixelsAtOnce = 4;

/// Whether the pixels of every channel of an image are one line of memory, which can be read kPixelsAtOnce at a time; with
/// weights, no four of them in two rows.
inline bool is_dense(const ImageView& x, std::size_t element_bytes, bool weighted) {
  const auto in_fours = [](std::int64_t number) { return number % kPixelsAtOnce == 0; };
  constexpr std::int64_t kMostPixels = 1 << 24;
  const bool one_line = x.width_stride == 1 && (x.height == 1 || x.height_stride == x.width);
  return one_line && in_fours(x.height * x.width) && in_fours(x.channel_stride) && in_fours(x.batch_stride) &&
         reinterpret_cast<std::uintptr_t>(x.data) % (kPixelsAtOnce * element_bytes) == 0 &&
         (!weighted || in_fours(x.width)) && x.height * x.width <= kMostPixels && x.batch < kMostPixels;
}

template <class Element>
struct alignas(kPixelsAtOnce * sizeof(Element)) Four {
  Element elements[kPixelsAtOnce];
};

/// Where a thread reads: a chunk of four pixels in every stage.
struct DensePlace {
  int image, row, column;

  /// Of the chunk with this number.
  __device__ static DensePlace of(std::int64_t chunk, int height, int width) {
    const std::int64_t pixels = chunk * kPixelsAtOnce;
    const auto in_image = static_cast<int>(pixels % (height * width));
    return {static_cast<int>(pixels / (height * width)), in_image / width, in_image % width};
  }
  __device__ void add(const DensePlace& step, int height, int width) {
    column += step.column;
    row += step.row + (column >= width);
    column -= column >= width ? width : 0;
    image += step.image + (row >= height);
    row -= row >= height ? height : 0;
  }
};

/// A block of four warps that multiply a tile by a tile together. The units sum up half a stage, which is then rounded to the
/// sum; of split floats first lo·hi + hi·lo, which is so small that what they cut off does not count.
template <class Element, Factor factor, bool weighted>
class DenseGramBlock {
  static_assert(sizeof(Sum<Element>) == sizeof(float) && kTile == Chunks::kRows);
  static constexpr bool kSplits = factor == Factor::kSplit;
  static constexpr int kChunks = kDepth / kPixelsAtOnce;       ///< neighbouring threads read
  static constexpr int kStep = kGramThreads / kChunks;         ///< from a row that a thread reads to the next
  static constexpr int kRowsRead = kTile / kStep;              ///< of either operand
  using Stage = float[kSplits ? 2 : 1][Chunks::size(kDepth)];  ///< hi, lo
  using Read = Four<Element>[kRowsRead];
  static_assert(kRowsRead == 4 && 2 * kStep == kPanel);

  /// The rows of a tile that a thread reads: two, kStep apart, of either panel.
  struct Rows {
    const Element* first;
    bool there[kRowsRead];
  };

 public:
  struct Shared {
    alignas(16) Stage stages[2][2];
  };

  __device__ DenseGramBlock(const Gram& gram, Shared& shared)
      : gram_(gram),
        shared_(shared),
        pair_(gram.tiling.pair(gram.first_pair + blockIdx.x % gram.pairs)),
        split_(gram.part_list[blockIdx.x / gram.pairs].split),
        height_(static_cast<int>(gram.x.height)),
        width_(static_cast<int>(gram.x.width)),
        chunk_(static_cast<int>(threadIdx.x % kChunks)),
        row_(static_cast<int>(threadIdx.x / kChunks)),
        to_next_(kStep * gram.x.channel_stride),
        to_next_panel_(gram.tiling.panel_rows() * gram.x.channel_stride),
        rows_of_a_(rows(pair_.i)),
        rows_of_b_(rows(pair_.j)) {}

  __device__ void run() {
    if (__syncthreads_or(!sum<false>())) sum<true>();
  }

 private:
  __device__ Rows rows(std::int64_t tile) const {
    const Panel panels[2] = {gram_.tiling.panel(pair_.set, tile, 0), gram_.tiling.panel(pair_.set, tile, 1)};
    const std::int64_t stride = gram_.x.channel_stride;
    Rows rows{static_cast<const Element*>(gram_.x.data) + (panels[0].first + row_) * stride, {}};
#pragma unroll
    for (int i = 0; i < kRowsRead; ++i) rows.there[i] = row_ + i % 2 * kStep < panels[i / 2].count;
    return rows;
  }

  /// Reads the thread's chunk of its rows.
  __device__ void read(const DensePlace& at, const Rows& rows, Read& to) const {
    const Element* from = rows.first + (at.image * gram_.x.batch_stride + (at.row * width_ + at.column));
    const bool there = at.image < static_cast<int>(gram_.x.batch);
#pragma unroll
    for (int i = 0; i < kRowsRead; ++i) {
      to[i] = Four<Element>{};
      if (there && rows.there[i]) {
        to[i] = *reinterpret_cast<const Four<Element>*>(from + i % 2 * to_next_ + i / 2 * to_next_panel_);
      }
    }
  }

  __device__ void read_weights(const DensePlace& at, Four<float>& weights) const {
    const float of_row = gram_.row_weights[at.row];
#pragma unroll
    for (int i = 0; i < kPixelsAtOnce; ++i) weights.elements[i] = of_row * gram_.column_weights[at.column + i];
  }

  /// Stages what was read, `times` its weights.
  template <bool plainly, bool times>
  __device__ void store(Stage& stage, const Read& from, const Four<float>& weights) const {
#pragma unroll
    for (int i = 0; i < kRowsRead; ++i) {
      Four<float> hi, lo;
#pragma unroll
      for (int j = 0; j < kPixelsAtOnce; ++j) {
        const float value = widened(from[i].elements[j]), x = times ? weights.elements[j] * value : value;
        if constexpr (plainly || factor == Factor::kExact) {
          hi.elements[j] = x;
        } else if constexpr (kSplits) {
          const Halves halves = split(x);
          hi.elements[j] = halves.hi;
          lo.elements[j] = halves.lo;
        } else {
          hi.elements[j] = rounded_to_tf32(x);
        }
      }
      const int place = Chunks::at(row_ + i * kStep, chunk_ * kPixelsAtOnce);
      *reinterpret_cast<Four<float>*>(stage[0] + place) = hi;
      if constexpr (kSplits && !plainly) *reinterpret_cast<Four<float>*>(stage[1] + place) = lo;
    }
  }

  __device__ static void multiply(float (&sums)[32], const float* a, const float* b, bool adds) {
    constexpr int kNext = Chunks::size(8);
    multiply_64x64x8(sums, a, b, adds);
    multiply_64x64x8(sums, a + kNext, b + kNext, true);
  }

  /// Begins the products of half a stage, new sums.
  __device__ static void multiply_half(float (&sums)[32], const Stage& a, const Stage& b, int half) {
    const int from = half * Chunks::size(kDepth / 2);
    if constexpr (kSplits) {
      multiply(sums, a[1] + from, b[0] + from, false);
      multiply(sums, a[0] + from, b[1] + from, true);
    }
    multiply(sums, a[0] + from, b[0] + from, kSplits);
    end_products();
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
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x % gram_.pairs) * gram_.parts + split_;
    float* const partial = static_cast<float*>(gram_.partials) + index * (kTile * kTile);
    const bool adds_rows = gram_.bias && pair_.diagonal();
    for_each_pair([&](int row, int column, int i) {
      if (adds_rows && row >= kPanel && column < kPanel) return;
      Two& to = *reinterpret_cast<Two*>(partial + row * kTile + column);
      const Two before = first ? Two{} : to;
      to = {before.left + sums[i], before.right + sums[i + 1]};
      sums[i] = sums[i + 1] = 0;
    });
    if (!adds_rows) return;
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
    const Walk& walk = gram_.walks[0];
    const std::int64_t all = (gram_.x.batch * height_ * width_ + kDepth - 1) / kDepth;
    const std::int64_t begin = all * split_ / walk.splits;
    const auto count = static_cast<int>(all * (split_ + 1) / walk.splits - begin);
    const bool alike = pair_.diagonal(), adds_rows = gram_.bias && alike;
    const DensePlace step = DensePlace::of(kChunks, height_, width_);
    DensePlace at = DensePlace::of(begin * kChunks + chunk_, height_, width_);
    float sums[32] = {}, sum_of_row = 0;
    bool finite = true;
    Read of_a, of_b;
    Four<float> weights{};
    const auto read_next = [&] {
      read(at, rows_of_a_, of_a);
      if (!alike) read(at, rows_of_b_, of_b);
      if constexpr (weighted) read_weights(at, weights);
      at.add(step, height_, width_);
    };
    if (count == 0) {
      add_to_partial(sums, sum_of_row, true);
      return true;
    }
    read_next();
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      Stage &a = shared_.stages[i % 2][0], &b = alike && !weighted ? a : shared_.stages[i % 2][1];
      store<plainly, weighted>(a, of_a, weights);
      if (!alike) {
        store<plainly, false>(b, of_b, weights);
      } else if (weighted) {
        store<plainly, false>(b, of_a, weights);
      }
      show_to_units();
      __syncthreads();
      if constexpr (plainly) {
        multiply_plainly(a, b, sums);
        if (i + 1 < count) read_next();
      } else {
        float first[32], second[32];
        begin_products();
        multiply_half(first, a, b, 0);
        multiply_half(second, a, b, 1);
        if (i + 1 < count) read_next();
        wait_for_products<1>();
        hold(first);
#pragma unroll
        for (int j = 0; j < 32; ++j) sums[j] += first[j];
        wait_for_products<0>();
        hold(second);
#pragma unroll
        for (int j = 0; j < 32; ++j) sums[j] += second[j];
      }
      if (adds_rows) sum_of_row += row_sum<plainly>(a);
      if ((i + 1) % kStagesInSum == 0 || i + 1 == count) {
        finite = finite && all_finite(sums);
        add_to_partial(sums, sum_of_row, i < kStagesInSum);
      }
    }
    return finite;
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

  const Gram& gram_;
  Shared& shared_;
  const TilePair pair_;
  const std::int64_t split_;
  const int height_, width_, chunk_, row_;
  const std::int64_t to_next_, to_next_panel_;
  const Rows rows_of_a_, rows_of_b_;
};

template <class Element, Factor factor, bool weighted>
__global__ void __launch_bounds__(kGramThreads, kGramBlocks<Sum<Element>>)
    dense_gram_kernel(const __grid_constant__ Gram gram) {
  using Block = DenseGramBlock<Element, factor, weighted>;
  Block(gram, *shared_memory<typename Block::Shared>()).run();
}

}  // namespace eigendamage::cuda
