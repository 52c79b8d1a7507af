// Householder's reflectors applied a block at a time, under the rules of simd_text.h.

#pragma once

#include "tridiagonal_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Reflectors of a block, at most, and numbers from one row to the next in what is made of them.
constexpr std::int64_t kBlock = 32;

/// Some reflectors of a Triangle, H₁·H₂·… = 1 − Y·T·Yᵀ.
template <class T>
struct ReflectorBlock {
  std::int64_t count, length;  // of reflectors, and of the longest
  T* rows;                     // Yᵀ in panels [panel][reflector][kPanel]
  T* columns;                  // Y·T, [length][kBlock]
};

/// to[c·kBlock + r] = from[r·kPanel + c] for r < kRows and c < kPanel.
template <class T>
void transpose_rows(const T* from, T* to) {
  for (std::int64_t r = 0; r < kRows; r += kLanes<T>) {
    for (std::int64_t c = 0; c < kPanel<T>; c += kLanes<T>) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = load(from + (r + i) * kPanel<T> + c);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) store(to + (c + i) * kBlock + r, square[i]);
    }
  }
}

template <class T>
void copy_panel(const T* from, std::int64_t rows, T* to) {
  for (std::int64_t i = 0; i < rows * kPanel<T>; i += kLanes<T>) store(to + i, load(from + i));
}

/// out = left · right over some rows and `columns` columns.
template <class T>
void product_of(Left<T> left, Right<T> right, std::int64_t inner, std::int64_t rows, T* const* out,
                std::int64_t columns) {
  for (std::int64_t c = 0; c < columns; c += kPanel<T>) {
    const std::int64_t width = c + kPanel<T> < columns ? kPanel<T> : columns - c;
    product<T, false>(left, {right.entries + c, right.inner_step}, inner, rows, out, c, width);
  }
}

/// Fills the block of the reflectors from `first` on, a multiple of kRows. table: length pointers; scratch:
/// (round_up(length, kWidest) + 3·kBlock)·kBlock numbers.
template <class T>
void make_block(Triangle<T> a, const T* taus, std::int64_t first, ReflectorBlock<T> block, T** table, T* scratch) {
  constexpr std::int64_t vectors = kBlock / kLanes<T>;
  const std::int64_t count = round_up(block.count, kRows), length = block.length;
  T *gram = scratch, *t = gram + kBlock * kBlock, *transposed = t + kBlock * kBlock, *y = transposed + kBlock * kBlock;
  const auto point = [&](T* to, std::int64_t rows) {
    for (std::int64_t r = 0; r < rows; ++r) table[r] = to + r * kBlock;
    return table;
  };
  for (std::int64_t c = 0; c < length; c += kPanel<T>) {
    for (std::int64_t r = 0; r < count; r += kRows) {
      const T* from = a.at(first + r, c);
      T* const to = block.rows + c * count + r * kPanel<T>;
      transpose_rows(from, y + c * kBlock + r);
      copy_panel(from, kRows, to);
    }
  }
  product_of<T>({y, 1, kBlock}, {y, kBlock}, length, count, point(gram, count), count);
  for (std::int64_t j = 0; j < count; ++j) {
    const T tau = j < block.count ? taus[first + j] : T(0);
    Vector<T> sums[vectors] = {};
    for (std::int64_t i = 0; i < j; ++i) {
      for (int v = 0; v < vectors; ++v) sums[v] += load(t + i * kBlock + v * kLanes<T>) * gram[i * kBlock + j];
    }
    for (int v = 0; v < vectors; ++v) store(t + j * kBlock + v * kLanes<T>, sums[v] * -tau);
    t[j * kBlock + j] = tau;
  }
  for (std::int64_t r = 0; r < count; ++r) {
    for (std::int64_t c = 0; c < count; ++c) transposed[c * kBlock + r] = t[r * kBlock + c];
  }
  product_of<T>({y, kBlock, 1}, {transposed, kBlock}, count, length, point(block.columns, length), count);
}

/// Numbers of scratch that `apply_reflectors` needs.
constexpr std::int64_t reflector_scratch(std::int64_t n) {
  return round_up(n, kWidest) * (round_up(n, kWidest) + 4 * kBlock) + 4 * kBlock * kBlock;
}

/// rows ← rows·Qᵀ, some rows at a time, so that they stay in the cache for all blocks of reflectors. table: n pointers.
template <class T>
void apply_reflectors(Triangle<T> a, const T* taus, T* const* rows, std::int64_t row_step, T** table, T* scratch) {
  constexpr std::int64_t cache = 3 << 18;  // bytes
  const std::int64_t n = a.n, most = cache / (row_step * static_cast<std::int64_t>(sizeof(T))) / 8 * 8;
  const std::int64_t some = most < n ? most : n;
  const std::int64_t size = n <= (kPanel<T> == kBlock ? 128 : 256) ? kRows : kBlock;
  T *const products = scratch, *const work = products + n * kBlock,
           *const blocks = work + (round_up(n, kWidest) + 3 * kBlock) * kBlock;
  for (std::int64_t begin = 0; begin < n; begin += some) {
    const std::int64_t height = begin + some < n ? some : n - begin;
    T* numbers = blocks;
    for (std::int64_t first = 0; first < n; first += size) {
      const std::int64_t length = first + size < n ? first + size : n, count = length - first;
      const std::int64_t padded = round_up(length, kWidest), kept = round_up(count, kRows);
      const ReflectorBlock<T> block{count, length, numbers, numbers + padded * kept};
      if (begin == 0) make_block(a, taus, first, block, table, work);
      if (some < n) numbers += padded * (kept + kBlock);  // blocks are used again
      for (std::int64_t r = 0; r < height; ++r) table[r] = products + r * kBlock;
      product_of<T>({rows[begin], row_step, 1}, {block.columns, kBlock}, length, height, table, kept);
      for (std::int64_t c = 0; c < length; c += kPanel<T>) {
        product<T, true>({products, kBlock, 1}, {block.rows + c * kept, kPanel<T>}, kept, height, rows + begin, c,
                         c + kPanel<T> < length ? kPanel<T> : length - c);
      }
    }
  }
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
