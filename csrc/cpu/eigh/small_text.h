// Householder's reduction of a small matrix that is kept whole, not as a triangle: no sum runs along a vector, and each pass
// over the matrix both changes and multiplies it. Under the rules of simd_text.h.

#pragma once

#include "group.h"
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

// A matrix on its way to Q·tridiagonal·Qᵀ: row i of `a` becomes the reflector that cleared it, taus[i] its factor.
template <class T>
struct Reducing {
  T *a, *taus, *diagonal, *beside;
  T *v, *w, *x, *p;  // zero before
};

// Brings row i up to date and makes the reflector that clears it.
template <class T>
__attribute__((noinline)) void clear_row(const Reducing<T>& matrix, std::int64_t i, std::int64_t step,
                                         std::int64_t apart) {
  T *const row = matrix.a + i * step, *const x = matrix.x;
  const Vector<T> v_here = spread(matrix.v[i]), w_here = spread(matrix.w[i]);
  for (std::int64_t c = 0; c <= i; c += kLanes<T>) {
    store(x + c, load(row + c) - v_here * load(matrix.w + c) - w_here * load(matrix.v + c));
  }
  matrix.diagonal[i * apart] = x[i];
  T left = 0;
  matrix.taus[i] = i > 0 ? make_reflector(x, i, left) : T(0);
  if (i > 0) matrix.beside[(i - 1) * apart] = left;
  if (i % kLanes<T> == 0) store(x + i, Vector<T>{});
  for (std::int64_t c = 0; c <= i; c += kLanes<T>) store(row + c, load(x + c));
}

// v and w, by which the rows above row i are to be changed.
template <class T>
__attribute__((noinline)) void find_change(const Reducing<T>& matrix, std::int64_t i) {
  const T *const x = matrix.x, *const p = matrix.p;
  const T tau = matrix.taus[i];
  Vector<T> overlap{};
  for (std::int64_t c = 0; c < i; c += kLanes<T>) overlap += load(x + c) * load_until(p, c, i);
  const T half = tau * tau * sum_lanes<T>(overlap) / 2;
  for (std::int64_t c = 0; c < i; c += kLanes<T>) {
    store(matrix.v + c, load(x + c));
    store(matrix.w + c, load_until(p, c, i) * tau - load(x + c) * half);
  }
}

// Each matrix from the last row up, rows `step` apart, diagonal and beside with numbers `apart` from each other. While one
// matrix waits for its reflector, another one has work.
template <class T, int Count>
void tridiagonalise_whole(std::int64_t n, std::int64_t step, std::int64_t apart, const Reducing<T>* matrices) {
  for (std::int64_t i = n - 1; i >= 0; --i) {
    for (int m = 0; m < Count; ++m) clear_row(matrices[m], i, step, apart);
    if (i == 0) break;
    for (int m = 0; m < Count; ++m) {
      const Reducing<T>& matrix = matrices[m];
      lanes::for_panels<kWide>(vectors_of<T>(i), [&]<int Columns>(std::int64_t first) {
        update_columns<T, Columns>(i, matrix.a, step, first * kLanes<T>, matrix.v, matrix.w, matrix.x, matrix.p);
      });
    }
    for (int m = 0; m < Count; ++m) find_change(matrices[m], i);
  }
}

constexpr int kReflected = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 2;  // vectors of columns that reflectors are applied to

// q (n, Columns·kLanes) becomes columns first … of the product of the reflectors in the rows of `a`, row i from its column i
// on zero up to a whole vector.
template <class T, int Columns>
void multiply_reflectors(std::int64_t n, std::int64_t first, const T* a, std::int64_t step, const T* taus, T* q) {
  constexpr std::int64_t width = Columns * kLanes<T>;
  for (std::int64_t j = 0; j < n; ++j) {
    T* const row = q + j * width;
    for (int c = 0; c < Columns; ++c) store(row + c * kLanes<T>, Vector<T>{});
    if (j >= first && j < first + width) row[j - first] = 1;
  }
  // Each pass applies the last two reflectors and multiplies by the next two. Rows that none has changed are unit vectors.
  Vector<T> overlap[2][Columns] = {};
  std::int64_t changed = 0;
  for (std::int64_t i = first + 1; i < n + 2; i += 2) {
    const T *const next = a + (i < n ? i : n - 1) * step, *const second = i + 1 < n ? next + step : next;
    const T *const last = changed > 0 ? a + (i - 2) * step : next, *const last_second = i - 1 < n ? last + step : last;
    Vector<T> sum[2][Columns] = {};
    T* row = q;
    for (std::int64_t j = 0; j < changed; ++j, row += width) {
      const Vector<T> from = spread(last[j]), from_second = spread(last_second[j]);
      const Vector<T> onto = spread(next[j]), onto_second = spread(second[j]);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        const Vector<T> entry = load(row + c * kLanes<T>) - from * overlap[0][c] - from_second * overlap[1][c];
        store(row + c * kLanes<T>, entry);
        sum[0][c] += onto * entry;
        sum[1][c] += onto_second * entry;
      }
    }
    if (i >= n) break;
    const std::int64_t end = i + 1 < n ? i + 1 : i;
    for (std::int64_t j = changed; j < end; ++j, row += width) {
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        const Vector<T> entry = load(row + c * kLanes<T>);
        sum[0][c] += entry * next[j];
        sum[1][c] += entry * second[j];
      }
    }
    changed = end;
    Vector<T> products{};
    for (std::int64_t j = 0; j < i; j += kLanes<T>) products += load(next + j) * load(second + j);
    const T tau = taus[i], tau_second = i + 1 < n ? taus[i + 1] : T(0), both = sum_lanes<T>(products) * tau;
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) {
      overlap[0][c] = sum[0][c] * tau;
      overlap[1][c] = (sum[1][c] - sum[0][c] * both) * tau_second;
    }
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

constexpr std::int64_t padded(std::int64_t n) { return round_up(n, kWidest); }

// Numbers that a matrix needs while it is reduced.
constexpr std::int64_t reducing_size(std::int64_t n) { return n * eigh_stride(n) + 5 * padded(n); }

template <class T>
std::int64_t reduction_workspace(std::int64_t n) {
  return kTogether * reducing_size(n) + n * eigh_stride(n);
}

template <class T, int Count>
void reduce_together(std::int64_t n, const Reduction<T>* matrices, std::int64_t apart, T* workspace) {
  const std::int64_t stride = eigh_stride(n), out_stride = group_stride(n);
  T* const q = workspace;
  Reducing<T> all[Count];
  for (int m = 0; m < Count; ++m) {
    T *const whole = q + n * stride + m * reducing_size(n), *const taus = whole + n * stride;
    all[m] = {whole,
              taus,
              matrices[m].diagonal,
              matrices[m].beside,
              taus + padded(n),
              taus + 2 * padded(n),
              taus + 3 * padded(n),
              taus + 4 * padded(n)};
    complete(n, matrices[m].a, stride, whole);
    for (std::int64_t c = 0; c < 5 * padded(n); ++c) taus[c] = 0;
  }
  tridiagonalise_whole<T, Count>(n, stride, apart, all);
  for (int m = 0; m < Count; ++m) {
    T* const vectors_t = matrices[m].vectors_t;
    lanes::for_panels<kReflected>(vectors_of<T>(n), [&]<int Columns>(std::int64_t panel) {
      const std::int64_t first = panel * kLanes<T>, width = Columns * kLanes<T>;
      multiply_reflectors<T, Columns>(n, first, all[m].a, stride, all[m].taus, q);
      transpose_into(n, n - first < width ? n - first : width, q, width, vectors_t + first * out_stride, out_stride);
    });
    const std::int64_t spare = kSpareGroupRows * out_stride;
    for (std::int64_t c = 0; c < spare; ++c) vectors_t[c - spare] = vectors_t[n * out_stride + c] = 0;
  }
}

// GroupSolver::reduce: as many matrices together as the first cache holds.
template <class T>
void reduce(std::int64_t n, std::int64_t count, const Reduction<T>* matrices, std::int64_t apart, T* workspace) {
  constexpr std::int64_t cache = 1 << 15;  // bytes
  const std::int64_t size = n * eigh_stride(n) * static_cast<std::int64_t>(sizeof(T));
  while (count > 0) {
    if (count >= 4 && 4 * size <= cache) {
      reduce_together<T, 4>(n, matrices, apart, workspace);
      matrices += 4, count -= 4;
    } else if (count >= 2 && 2 * size <= cache) {
      reduce_together<T, 2>(n, matrices, apart, workspace);
      matrices += 2, count -= 2;
    } else {
      reduce_together<T, 1>(n, matrices, apart, workspace);
      matrices += 1, count -= 1;
    }
  }
}

}  // namespace group
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
