// Householder's reduction of a small matrix that is kept whole, not as a triangle: no sum runs along a vector, and each pass
// over the matrix both changes and multiplies it. Under the rules of simd_text.h.

#pragma once

#include "rotations_text.h"
#include "tridiagonal_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace group {

// Vectors of columns taken together: as many as leave the registers room.
constexpr int kWide = EIGENDAMAGE_VECTOR_BYTES == 64 ? 8 : 2;

template <class T>
constexpr std::int64_t vectors_of(std::int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
void load_square(std::int64_t rows, const T* from, std::int64_t step, Vector<T> (&square)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) square[i] = i < rows ? load(from + i * step) : Vector<T>{};
}

template <class T>
void store_square(std::int64_t rows, const Vector<T> (&square)[kLanes<T>], T* to, std::int64_t step) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if (i < rows) store(to + i * step, square[i]);
  }
}

// The whole of a symmetric matrix from its lower triangle; rows are `step` apart, columns whole vectors.
template <class T>
void complete(std::int64_t n, const T* a, std::int64_t step, T* whole) {
  for (std::int64_t r = 0; r < n; r += kLanes<T>) {
    Vector<T> square[kLanes<T>], turned[kLanes<T>];
    for (std::int64_t c = 0; c <= r; c += kLanes<T>) {
      load_square(n - r, a + r * step + c, step, square);
      for (int i = 0; i < kLanes<T>; ++i) turned[i] = square[i];
      transpose<T>(turned);
      if (c == r) {
        for (int i = 0; i < kLanes<T>; ++i) {
          square[i] = turned[i] = lane_numbers<T>() <= static_cast<T>(i) ? square[i] : turned[i];
        }
      }
      store_square(n - r, square, whole + r * step + c, step);
      if (c < r) store_square(kLanes<T>, turned, whole + c * step + r, step);
    }
  }
}

// Columns of a −= v·wᵀ + w·vᵀ, rows j < size, and of p = x·a.
template <class T, int Columns>
void update_columns(std::int64_t size, T* a, std::int64_t step, std::int64_t first, const T* v, const T* w, const T* x,
                    T* p) {
  Vector<T> v_across[Columns], w_across[Columns], sum[Columns] = {};
  for (int c = 0; c < Columns; ++c) {
    v_across[c] = load(v + first + c * kLanes<T>);
    w_across[c] = load(w + first + c * kLanes<T>);
  }
  T* row = a + first;
  for (std::int64_t j = 0; j < size; ++j, row += step) {
    const Vector<T> v_here = spread(v[j]), w_here = spread(w[j]), x_here = spread(x[j]);
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) {
      const Vector<T> entry = load(row + c * kLanes<T>) - v_here * w_across[c] - w_here * v_across[c];
      store(row + c * kLanes<T>, entry);
      sum[c] += x_here * entry;
    }
  }
  for (int c = 0; c < Columns; ++c) store(p + first + c * kLanes<T>, sum[c]);
}

// a = Q·tridiagonal·Qᵀ, from the last row up: row i of `a`, rows `step` apart, becomes the reflector that cleared it, taus[i]
// its factor. diagonal and beside have numbers `apart` from each other. scratch: 4·(n + 32) numbers.
template <class T>
void tridiagonalise_whole(std::int64_t n, T* a, std::int64_t step, T* diagonal, T* beside, std::int64_t apart, T* taus,
                          T* scratch) {
  const std::int64_t padded = round_up(n, kWidest);
  T *v = scratch, *w = v + padded, *x = w + padded, *p = x + padded;
  for (std::int64_t c = 0; c < 4 * padded; ++c) scratch[c] = 0;
  for (std::int64_t i = n - 1; i >= 0; --i) {
    T* const row = a + i * step;
    const Vector<T> v_here = spread(v[i]), w_here = spread(w[i]);
    for (std::int64_t c = 0; c <= i; c += kLanes<T>) {
      store(x + c, load(row + c) - v_here * load(w + c) - w_here * load(v + c));
    }
    diagonal[i * apart] = x[i];
    for (std::int64_t c = i; c < round_up(i + 1, kLanes<T>); ++c) x[c] = 0;
    T tau = 0, half = 0;
    if (i > 0) {
      T left;
      tau = make_reflector(x, i, left);
      beside[(i - 1) * apart] = left;
    }
    taus[i] = tau;
    for (std::int64_t c = 0; c <= i; c += kLanes<T>) store(row + c, load(x + c));
    if (i == 0) break;
    lanes::for_panels<kWide>(vectors_of<T>(i), [&]<int Columns>(std::int64_t first) {
      update_columns<T, Columns>(i, a, step, first * kLanes<T>, v, w, x, p);
    });
    for (std::int64_t c = i; c < round_up(i, kLanes<T>); ++c) p[c] = 0;
    Vector<T> overlap = {};
    for (std::int64_t c = 0; c < i; c += kLanes<T>) overlap += load(x + c) * load(p + c);
    half = tau * tau * sum_lanes<T>(overlap) / 2;
    for (std::int64_t c = 0; c < i; c += kLanes<T>) {
      store(v + c, load(x + c));
      store(w + c, load(p + c) * tau - load(x + c) * half);
    }
    v[i] = w[i] = 0;
  }
}

constexpr int kReflected = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 2;  // vectors of columns that reflectors are applied to

// q (n, Columns·kLanes) becomes columns first … of the product of the reflectors in the rows of `a`.
template <class T, int Columns>
void multiply_reflectors(std::int64_t n, std::int64_t first, const T* a, std::int64_t step, const T* taus, T* q) {
  constexpr std::int64_t width = Columns * kLanes<T>;
  for (std::int64_t j = 0; j < n; ++j) {
    T* const row = q + j * width;
    for (int c = 0; c < Columns; ++c) store(row + c * kLanes<T>, Vector<T>{});
    if (j >= first && j < first + width) row[j - first] = 1;
  }
  // Each pass applies the last reflector and multiplies by the next.
  Vector<T> overlap[Columns] = {};
  for (std::int64_t i = first + 1; i <= n; ++i) {
    const T *const last = a + (i - 1) * step, *const next = i < n ? a + i * step : last;
    Vector<T> sum[Columns] = {};
    T* row = q;
    for (std::int64_t j = 0; j < i; ++j, row += width) {
      const Vector<T> from = spread(last[j]), onto = spread(next[j]);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        const Vector<T> entry = load(row + c * kLanes<T>) - from * overlap[c];
        store(row + c * kLanes<T>, entry);
        sum[c] += onto * entry;
      }
    }
    const Vector<T> tau = spread(i < n ? taus[i] : T(0));
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) overlap[c] = sum[c] * tau;
  }
}

// to[c][r] = from[r][c] for r < n, c < columns, and zeros up to a multiple of kLanes behind row n.
template <class T>
void transpose_into(std::int64_t n, std::int64_t columns, const T* from, std::int64_t from_step, T* to,
                    std::int64_t to_step) {
  for (std::int64_t r = 0; r < n; r += kLanes<T>) {
    for (std::int64_t c = 0; c < columns; c += kLanes<T>) {
      Vector<T> square[kLanes<T>];
      load_square(n - r, from + r * from_step + c, from_step, square);
      transpose<T>(square);
      store_square(columns - c, square, to + c * to_step + r, to_step);
    }
  }
}

// GroupSolver::reduce.
template <class T>
void reduce(std::int64_t n, const T* a, std::int64_t apart, T* diagonal, T* beside, T* vectors_t, T* workspace) {
  const std::int64_t stride = eigh_stride(n), out_stride = group_stride(n);
  T *const whole = workspace, *const q = whole + n * stride, *const taus = q + n * stride,
           *const scratch = taus + stride;
  complete(n, a, stride, whole);
  tridiagonalise_whole(n, whole, stride, diagonal, beside, apart, taus, scratch);
  lanes::for_panels<kReflected>(vectors_of<T>(n), [&]<int Columns>(std::int64_t panel) {
    const std::int64_t first = panel * kLanes<T>, width = Columns * kLanes<T>;
    multiply_reflectors<T, Columns>(n, first, whole, stride, taus, q);
    transpose_into(n, n - first < width ? n - first : width, q, width, vectors_t + first * out_stride, out_stride);
  });
  const std::int64_t spare = kSpareRows * out_stride;
  for (std::int64_t c = 0; c < spare; ++c) vectors_t[c - spare] = vectors_t[n * out_stride + c] = 0;
}

}  // namespace group
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
