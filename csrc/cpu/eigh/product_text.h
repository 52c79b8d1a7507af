// Products of packed matrices, under the rules of simd_text.h.

#pragma once

#include "../simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Columns of a panel. A packed matrix is [panel][row][kPanel].
template <class T>
constexpr std::int64_t kPanel = 2 * kLanes<T>;

/// A left factor, read entry by entry.
template <class T>
struct Left {
  const T* entries;
  std::int64_t row_step, inner_step;
};

/// A right factor's columns, of which a panel is taken.
template <class T>
struct Right {
  const T* entries;
  std::int64_t inner_step;
};

enum class Into { kReplace, kAdd, kSubtract };

template <class T, int Rows, int Vectors, Into Way>
__attribute__((noinline)) void product_tile(Left<T> left, Right<T> right, std::int64_t inner, T* const* out,
                                            std::int64_t column) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {  // on its way while the sums are made
    __builtin_prefetch(out[r] + column, 1);
    if (Vectors > 1) __builtin_prefetch(out[r] + column + kLanes<T>, 1);
  }
  Vector<T> sum[Rows][Vectors] = {};
  const T *entry = left.entries, *columns = right.entries;
  for (; inner > 0; --inner, entry += left.inner_step, columns += right.inner_step) {
    Vector<T> across[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) across[v] = load(columns + v * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += across[v] * entry[r * left.row_step];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* to = out[r] + column + v * kLanes<T>;
      store(to, Way == Into::kReplace    ? sum[r][v]
                : Way == Into::kSubtract ? load(to) - sum[r][v]
                                         : load(to) + sum[r][v]);
    }
  }
}

template <class T, int Rows, Into Way>
std::int64_t product_rows(Left<T> left, Right<T> right, std::int64_t inner, std::int64_t begin, std::int64_t rows,
                          T* const* out, std::int64_t column, std::int64_t columns) {
  for (std::int64_t rest = rows - begin; rest >= Rows; rest -= Rows, begin += Rows) {
    const Left<T> from{left.entries + begin * left.row_step, left.row_step, left.inner_step};
    if (columns > kLanes<T>) {
      product_tile<T, Rows, 2, Way>(from, right, inner, out + begin, column);
    } else {
      product_tile<T, Rows, 1, Way>(from, right, inner, out + begin, column);
    }
  }
  return begin;
}

template <class T, Into Way>
void product_into(Left<T> left, Right<T> right, std::int64_t inner, std::int64_t rows, T* const* out,
                  std::int64_t column, std::int64_t columns) {
  constexpr int most = kTileRows < kLanes<T> ? kTileRows : kLanes<T>;
  std::int64_t done = product_rows<T, most, Way>(left, right, inner, 0, rows, out, column, columns);
  if constexpr (most > 4) done = product_rows<T, 4, Way>(left, right, inner, done, rows, out, column, columns);
  if constexpr (most > 2) done = product_rows<T, 2, Way>(left, right, inner, done, rows, out, column, columns);
  product_rows<T, 1, Way>(left, right, inner, done, rows, out, column, columns);
}

/// out[r][column + c] = or −= Σ_i left(r, i) · right(i, c) for r < rows, c < columns ≤ kPanel. Whole vectors are written:
/// `right` holds zeros beyond the columns. The sum is made in pieces of which `right` stays in the first cache.
template <class T, bool Subtract>
void product(Left<T> left, Right<T> right, std::int64_t inner, std::int64_t rows, T* const* out, std::int64_t column,
             std::int64_t columns) {
  constexpr std::int64_t piece = 192;
  constexpr Into first = Subtract ? Into::kSubtract : Into::kReplace, next = Subtract ? first : Into::kAdd;
  product_into<T, first>(left, right, inner < piece ? inner : piece, rows, out, column, columns);
  for (std::int64_t i = piece; i < inner; i += piece) {
    const Left<T> from{left.entries + i * left.inner_step, left.row_step, left.inner_step};
    product_into<T, next>(from, {right.entries + i * right.inner_step, right.inner_step},
                          inner - i < piece ? inner - i : piece, rows, out, column, columns);
  }
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
