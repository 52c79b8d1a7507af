// Householder's tridiagonalisation and its reflectors, under the rules of simd_text.h.

#pragma once

#include "eigh_numbers_text.h"
#include "eigh_product_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Columns of the lower triangle in panels [panel][row][kPanel]; the squares on the diagonal are full.
template <class T>
struct Triangle {
  T* entries;
  std::int64_t n;

  T* row(std::int64_t panel, std::int64_t r) const { return entries + (panel * n + r) * kPanel<T>; }
};

template <class T>
void pack_triangle(const T* a, Triangle<T> packed) {
  const std::int64_t stride = eigh_stride(packed.n), n = packed.n;
  for (std::int64_t first = 0; first < n; first += kPanel<T>) {
    const std::int64_t square = first + kPanel<T> < n ? first + kPanel<T> : n;
    for (std::int64_t r = first; r < square; ++r) {
      T* row = packed.row(first / kPanel<T>, r);
      for (std::int64_t c = first; c <= r; ++c) {
        row[c - first] = a[r * stride + c];
        packed.row(first / kPanel<T>, c)[r - first] = a[r * stride + c];
      }
      for (std::int64_t c = square; c < first + kPanel<T>; ++c) row[c - first] = 0;
    }
    for (std::int64_t r = square; r < n; ++r) {
      T* row = packed.row(first / kPanel<T>, r);
      store(row, load(a + r * stride + first));
      store(row + kLanes<T>, load(a + r * stride + first + kLanes<T>));
    }
  }
}

/// The columns of one panel in `update_and_multiply`, rows begin ≤ r < end.
template <class T, bool Below>
void update_panel(T* a, std::int64_t begin, std::int64_t end, const T* v, const T* w, const T* x, std::int64_t first,
                  Vector<T>* row_sums, Vector<T> (&sum)[2]) {
  Vector<T> v_across[2], w_across[2], x_across[2];
  for (int k = 0; k < 2; ++k) {
    v_across[k] = load(v + first + k * kLanes<T>);
    w_across[k] = load(w + first + k * kLanes<T>);
    x_across[k] = load(x + first + k * kLanes<T>);
  }
  for (std::int64_t r = begin; r < end; ++r) {
    T* row = a + r * kPanel<T>;
    Vector<T> entries[2];
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      entries[k] = load(row + k * kLanes<T>) - (w_across[k] * v[r] + v_across[k] * w[r]);
      store(row + k * kLanes<T>, entries[k]);
      sum[k] += entries[k] * x[r];
    }
    if (Below) row_sums[r] += entries[0] * x_across[0] + entries[1] * x_across[1];
  }
}

/// a −= v·wᵀ + w·vᵀ and p = a·x over the leading `size` rows and columns, in one pass.
template <class T>
void update_and_multiply(Triangle<T> a, std::int64_t size, const T* v, const T* w, const T* x, Vector<T>* row_sums,
                         T* p) {
  constexpr std::int64_t width = kPanel<T>;
  for (std::int64_t r = width; r < round_up(size, width); ++r) row_sums[r] = Vector<T>{};
  for (std::int64_t first = 0; first < size; first += width) {
    const std::int64_t square = first + width < size ? first + width : size;
    Vector<T> sum[2] = {};
    T* panel = a.row(first / width, 0);
    update_panel<T, false>(panel, first, square, v, w, x, first, row_sums, sum);
    update_panel<T, true>(panel, square, size, v, w, x, first, row_sums, sum);
    store(p + first, sum[0]);
    store(p + first + kLanes<T>, sum[1]);
  }
  for (std::int64_t r = width; r < size; r += kLanes<T>) {
    Vector<T> lanes[kLanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) lanes[i] = row_sums[r + i];
    transpose<T>(lanes);
    Vector<T> sum = load(p + r);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) sum += lanes[i];
    store(p + r, sum);
  }
}

/// Makes of x (size) the vector v with H·x = (0, …, 0, beta), H = 1 − tau·v·vᵀ, v[size − 1] = 1. x holds zeros beyond.
/// A reflector of underflowing noise would not be orthogonal: it is left out.
template <class T>
T make_reflector(T* x, std::int64_t size, T& beta) {
  const T alpha = x[size - 1];
  x[size - 1] = 0;
  const T squares = dot_product(x, x, size);
  const bool noise = squares <= Limits<T>::tiny / (Limits<T>::eps * Limits<T>::eps);
  const T norm = square_root(squares + alpha * alpha);
  beta = noise ? alpha : alpha > 0 ? -norm : norm;
  const T scale = noise ? T(0) : 1 / (alpha - beta);
  for (std::int64_t c = 0; c < size; c += kLanes<T>) store(x + c, load(x + c) * scale);
  x[size - 1] = noise ? T(0) : T(1);
  return noise ? T(0) : (beta - alpha) / beta;
}

/// a = Q·tridiagonal·Qᵀ from the last row up, so that row i of `a` becomes the reflector that cleared it, taus[i] its factor.
/// scratch: 4·(n + 32) numbers, and row_sums n + 32 vectors.
template <class T>
void tridiagonalise(Triangle<T> a, T* diagonal, T* beside, T* taus, Vector<T>* row_sums, T* scratch) {
  constexpr std::int64_t width = kPanel<T>;
  const std::int64_t padded = round_up(a.n, width);
  T *v = scratch, *w = v + padded, *x = w + padded, *p = x + padded;
  for (std::int64_t i = 0; i < 4 * padded; ++i) scratch[i] = 0;
  for (std::int64_t i = a.n - 1; i >= 0; --i) {
    const Vector<T> v_here = spread(v[i]), w_here = spread(w[i]);
    for (std::int64_t c = 0; c <= i; c += kLanes<T>) {
      store(x + c, load(a.row(c / width, i) + c % width) - (load(w + c) * v_here + load(v + c) * w_here));
    }
    diagonal[i] = x[i];
    for (std::int64_t c = i; c < round_up(i + 1, width); ++c) x[c] = 0;
    taus[i] = i > 0 ? make_reflector(x, i, beside[i - 1]) : T(0);
    for (std::int64_t c = 0; c <= i; c += width) {
      store(a.row(c / width, i), load(x + c));
      store(a.row(c / width, i) + kLanes<T>, load(x + c + kLanes<T>));
    }
    if (i == 0) break;
    update_and_multiply(a, i, v, w, x, row_sums, p);
    const T tau = taus[i];
    for (std::int64_t c = i; c < round_up(i, width); ++c) p[c] = 0;
    const T half = tau * tau * dot_product(x, p, i) / 2;
    for (std::int64_t c = 0; c < i; c += kLanes<T>) {
      store(v + c, load(x + c));
      store(w + c, load(p + c) * tau - load(x + c) * half);
    }
    v[i] = w[i] = 0;
  }
}

/// to[c][r] = rows[r][c] for r < count, and 0 behind; both are kPanel wide.
template <class T>
void transpose_panel(const T* rows, std::int64_t count, T* to) {
  constexpr std::int64_t width = kPanel<T>, lanes = kLanes<T>;
  for (std::int64_t r = 0; r < width; r += lanes) {
    for (std::int64_t c = 0; c < width; c += lanes) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = r + i < count ? load(rows + (r + i) * width + c) : Vector<T>{};
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) store(to + (c + i) * width + r, square[i]);
    }
  }
}

/// rows ← rows·Qᵀ, half a panel or a panel of reflectors H₁·H₂·… = 1 − Y·t·Yᵀ at a time. scratch: (3·(n + 32) + 3·kPanel)·kPanel numbers.
template <class T>
void apply_reflectors(Triangle<T> a, const T* taus, T* const* rows, std::int64_t row_step, T** table, T* scratch) {
  constexpr std::int64_t width = kPanel<T>;
  const std::int64_t block = a.n <= 8 * width ? kLanes<T> : width;
  T *y = scratch, *products = y + (a.n + width) * width, *yt = products + a.n * width,
    *gram = yt + (a.n + width) * width, *t_rows = gram + width * width, *t = t_rows + width * width;
  const auto point = [&](T* to, std::int64_t count) {
    for (std::int64_t r = 0; r < count; ++r) table[r] = to + r * width;
    return table;
  };
  for (std::int64_t first = 0; first < a.n; first += block) {
    const std::int64_t count = first + block < a.n ? block : a.n - first;  // of reflectors
    const std::int64_t length = first + count;                             // of the longest, rounded up
    for (std::int64_t column = 0; column < length; column += width) {
      transpose_panel(a.row(column / width, first), count, y + column * width);
    }
    product<T, false>({y, 1, width}, y, length, block, point(gram, block), 0, block);
    for (std::int64_t j = 0; j < block; ++j) {
      const T tau = j < count ? taus[first + j] : T(0);
      Vector<T> sum[2] = {};
      for (std::int64_t i = 0; i < j; ++i) {
        sum[0] += load(t_rows + i * width) * gram[i * width + j];
        sum[1] += load(t_rows + i * width + kLanes<T>) * gram[i * width + j];
      }
      store(t_rows + j * width, sum[0] * -tau);
      store(t_rows + j * width + kLanes<T>, sum[1] * -tau);
      t_rows[j * width + j] = tau;
    }
    transpose_panel(t_rows, block, t);
    product<T, false>({y, width, 1}, t, block, length, point(yt, length), 0, block);
    product<T, false>({rows[0], row_step, 1}, yt, length, a.n, point(products, a.n), 0, block);
    for (std::int64_t column = 0; column < length; column += width) {
      const std::int64_t columns = column + width < length ? width : length - column;
      product<T, true>({products, width, 1}, a.row(column / width, first), count, a.n, rows, column, columns);
    }
  }
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
