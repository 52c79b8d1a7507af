// Householder's tridiagonalisation, under the rules of simd_text.h.

#pragma once

#include "numbers_text.h"
#include "product_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Rows of a block of the triangle; reflectors whose effect on the rows above them is left for later.
constexpr std::int64_t kRows = 16, kPairs = 16;
constexpr std::int64_t kWidest = 32;  // a multiple of kRows and of kPanel at every level

/// The lower triangle in blocks [row / kRows][panel][row % kRows][kPanel]. The squares of kRows on the diagonal are full.
template <class T>
struct Triangle {
  T* entries;
  std::int64_t n;

  std::int64_t panels() const { return round_up(n, kWidest) / kPanel<T>; }
  T* row(std::int64_t panel, std::int64_t r) const {
    return entries + ((r / kRows * panels() + panel) * kRows + r % kRows) * kPanel<T>;
  }
  T* at(std::int64_t r, std::int64_t c) const { return row(c / kPanel<T>, r) + c % kPanel<T>; }
};

/// Numbers of a Triangle.
constexpr std::int64_t triangle_size(std::int64_t n) { return round_up(n, kRows) * round_up(n, kWidest); }

template <class T>
void pack_triangle(const T* a, Triangle<T> packed) {
  const std::int64_t stride = eigh_stride(packed.n), n = packed.n;
  for (std::int64_t block = 0; block < n; block += kRows) {
    const std::int64_t end = block + kRows < n ? block + kRows : n;
    for (std::int64_t c = block; c < round_up(block + kRows, kPanel<T>); c += kLanes<T>) {
      for (std::int64_t r = block; r < block + kRows; ++r) store(packed.at(r, c), Vector<T>{});
    }
    for (std::int64_t r = block; r < end; ++r) {
      for (std::int64_t c = 0; c < block; c += kLanes<T>) store(packed.at(r, c), load(a + r * stride + c));
      for (std::int64_t c = block; c <= r; ++c) *packed.at(r, c) = *packed.at(c, r) = a[r * stride + c];
    }
    for (std::int64_t r = end; r < block + kRows; ++r) {
      for (std::int64_t c = 0; c < block; c += kLanes<T>) store(packed.at(r, c), Vector<T>{});
    }
  }
}

/// Pairs of vectors by which a is to be reduced, a −= Σ_j v_j·w_jᵀ + w_j·v_jᵀ, in panels [panel][row][kPanel] of rows
/// v₀ … w₀ … v₀ …: what multiplies a row lies kPairs rows further on.
template <class T>
struct Pairs {
  T* entries;

  T* row(std::int64_t panel, std::int64_t j) const { return entries + (panel * 3 * kPairs + j) * kPanel<T>; }
  T at(std::int64_t c, std::int64_t j) const { return row(c / kPanel<T>, j)[c % kPanel<T>]; }
};

/// factors[j] = v_j·x and factors[kPairs + j] = w_j·x for j < made; x holds zeros beyond its size.
template <class T>
void multiply_pairs(const Pairs<T>& pairs, std::int64_t made, std::int64_t size, const T* x, T* factors) {
  constexpr int some = 4;
  for (std::int64_t j = 0; j < made; j += some) {
    Vector<T> sums[2 * some] = {};
    for (std::int64_t first = 0; first < size; first += kPanel<T>) {
      const T *v = pairs.row(first / kPanel<T>, j), *w = v + kPairs * kPanel<T>;
      for (int k = 0; k < 2; ++k, v += kLanes<T>, w += kLanes<T>) {
        const Vector<T> across = load(x + first + k * kLanes<T>);
#pragma GCC unroll 4
        for (int i = 0; i < some; ++i) {
          sums[i] += load(v + i * kPanel<T>) * across;
          sums[some + i] += load(w + i * kPanel<T>) * across;
        }
      }
    }
    T products[2 * some];
    sum_each<T, 2 * some>(sums, products);
    for (int i = 0; i < some; ++i) {
      factors[j + i] = products[i];
      factors[kPairs + j + i] = products[some + i];
    }
  }
}

/// x −= Σ_j v_j·factors[kPairs + j] + w_j·factors[j], j < made.
template <class T>
void subtract_pairs(const Pairs<T>& pairs, std::int64_t made, std::int64_t size, const T* factors, T* x) {
  for (std::int64_t first = 0; first < size; first += kPanel<T>) {
    const T *v = pairs.row(first / kPanel<T>, 0), *w = v + kPairs * kPanel<T>;
    Vector<T> sums[4] = {};
    for (std::int64_t j = 0; j < made; ++j, v += kPanel<T>, w += kPanel<T>) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        sums[k] += load(v + k * kLanes<T>) * factors[kPairs + j];
        sums[2 + k] += load(w + k * kLanes<T>) * factors[j];
      }
    }
    for (int k = 0; k < 2; ++k) store(x + k * kLanes<T>, load(x + k * kLanes<T>) - (sums[k] + sums[2 + k]));
    x += kPanel<T>;
  }
}

/// a −= Σ_j v_j·w_jᵀ + w_j·v_jᵀ over the leading `size` rows and columns, a multiple of kRows.
template <class T>
void subtract_pairs(const Pairs<T>& pairs, Triangle<T> a, std::int64_t size) {
  constexpr std::int64_t width = kPanel<T>;
  const std::int64_t step = kRows < width ? kRows : width;
  T* rows[kRows];
  for (std::int64_t row = 0; row < size; row += kRows) {
    for (std::int64_t column = 0; column < row + kRows; column += width) {
      for (std::int64_t r = 0; r < kRows; ++r) rows[r] = a.row(column / width, row + r);
      for (std::int64_t r = 0; r < kRows; r += step) {
        const std::int64_t here = row + r;
        const Left<T> left{pairs.row(here / width, kPairs) + here % width, 1, width};
        product<T, true>(left, {pairs.row(column / width, 0), width}, 2 * kPairs, step, rows + r, 0, width);
      }
    }
  }
}

/// Rows of a against some of its columns: sums[r] += a·x and, of columns below the square on the diagonal, p += aᵀ·x_rows.
template <class T, int Rows, int Vectors, bool Below>
inline __attribute__((always_inline)) void multiply_block(const T* a, const T* x, const T* x_rows, Vector<T>* sums,
                                                          T* p) {
  Vector<T> across[Vectors], even[Vectors], odd[Vectors] = {};
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; ++v) {
    across[v] = load(x + v * kLanes<T>);
    even[v] = load(p + v * kLanes<T>);
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      Vector<T> entries = load(a + r * kPanel<T> + v * kLanes<T>);
      keep<T>(entries);
      sums[r] += entries * across[v];
      if (Below) (r % 2 ? odd : even)[v] += entries * x_rows[r];
    }
  }
#pragma GCC unroll 2
  for (int v = 0; Below && v < Vectors; ++v) store(p + v * kLanes<T>, even[v] + odd[v]);
}

/// p = a·x over the leading `size` rows and columns; x holds zeros beyond, and p rubbish. Every other time the rows are
/// taken from the last one up, which finds in the cache what was read last.
template <class T>
void multiply(Triangle<T> a, std::int64_t size, const T* x, T* p) {
  constexpr int rows = 2 * kTileRows < kRows ? 2 * kTileRows : kRows;
  constexpr std::int64_t width = kPanel<T>;
  const std::int64_t blocks = (size + kRows - 1) / kRows;
  for (std::int64_t c = 0; c < blocks * kRows; c += kLanes<T>) store(p + c, Vector<T>{});
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t block = (size % 2 ? b : blocks - 1 - b) * kRows;
    for (std::int64_t row = block; row < block + kRows; row += rows) {
      Vector<T> sums[rows] = {};
      const T* entries = a.row(0, row);
      std::int64_t c = 0;
      for (; c + width <= block; c += width, entries += kRows * width) {
        multiply_block<T, rows, 2, true>(entries, x + c, x + row, sums, p + c);
      }
      for (; c < block; c += kLanes<T>) {
        multiply_block<T, rows, 1, true>(a.at(row, c), x + c, x + row, sums, p + c);
      }
      for (; c < block + kRows; c += kLanes<T>) {
        multiply_block<T, rows, 1, false>(a.at(row, c), x + c, x + row, sums, p + c);
      }
      for (int r = 0; r < rows; r += kLanes<T>) {
        store(p + row + r, load(p + row + r) + sum_interleaved<T, kLanes<T>>(sums + r));
      }
    }
  }
}

/// Makes of x (size) the vector v with H·x = (0, …, 0, beta), H = 1 − tau·v·vᵀ, v[size − 1] = 1, and zeros behind it in its
/// last whole vector. A reflector of underflowing noise would not be orthogonal: it is left out.
template <class T>
T make_reflector(T* x, std::int64_t size, T& beta) {
  const T alpha = x[size - 1];
  Vector<T> even{}, odd{};
  for (std::int64_t c = 0; c < size - 1; c += 2 * kLanes<T>) {
    const Vector<T> here = load_until(x, c, size - 1);
    even += here * here;
    if (c + kLanes<T> >= size - 1) break;
    const Vector<T> next = load_until(x, c + kLanes<T>, size - 1);
    odd += next * next;
  }
  const T squares = sum_lanes<T>(even + odd);
  const bool noise = squares <= Limits<T>::tiny / (Limits<T>::eps * Limits<T>::eps);
  const T norm = square_root(squares + alpha * alpha);
  beta = noise ? alpha : alpha > 0 ? -norm : norm;
  const Vector<T> scale = spread(noise ? T(0) : 1 / (alpha - beta)), one = spread(noise ? T(0) : T(1));
  std::int64_t c = 0;
  for (; c + kLanes<T> < size; c += kLanes<T>) store(x + c, load(x + c) * scale);
  const Vector<T> place = lane_numbers<T>() + static_cast<T>(c - (size - 1));
  store(x + c, place < 0 ? load(x + c) * scale : place == 0 ? one : Vector<T>{});
  return noise ? T(0) : (beta - alpha) / beta;
}

/// a = Q·tridiagonal·Qᵀ from the last row up, so that row i of `a` becomes the reflector that cleared it, taus[i] its factor.
/// What kPairs reflectors take from the rows above them is subtracted at once.
/// scratch: (2 + 3·kPairs)·(n + 32) numbers.
template <class T>
void tridiagonalise(Triangle<T> a, T* diagonal, T* beside, T* taus, T* scratch) {
  constexpr std::int64_t width = kPanel<T>;
  const std::int64_t padded = round_up(a.n, kWidest);
  T *x = scratch, *p = x + padded, factors[2 * kPairs];
  const Pairs<T> pairs{p + padded};
  for (std::int64_t i = 0; i < (2 + 3 * kPairs) * padded; ++i) scratch[i] = 0;
  for (std::int64_t i = a.n - 1, made = 0; i >= 0; --i) {
    const std::int64_t size = round_up(i + 1, kWidest);
    for (std::int64_t c = 0; c < size; c += width) {
      store(x + c, load(a.row(c / width, i)));
      store(x + c + kLanes<T>, load(a.row(c / width, i) + kLanes<T>));
    }
    for (std::int64_t j = 0; j < made; ++j) {
      factors[j] = pairs.at(i, j);
      factors[kPairs + j] = pairs.at(i, kPairs + j);
    }
    subtract_pairs(pairs, made, size, factors, x);
    diagonal[i] = x[i];
    const T tau = taus[i] = i > 0 ? make_reflector(x, i, beside[i - 1]) : T(0);
    for (std::int64_t c = round_up(i, kLanes<T>); c < size; c += kLanes<T>) store(x + c, Vector<T>{});
    for (std::int64_t c = 0; c < size; c += width) {
      store(a.row(c / width, i), load(x + c));
      store(a.row(c / width, i) + kLanes<T>, load(x + c + kLanes<T>));
    }
    if (i == 0) break;
    multiply(a, i, x, p);
    multiply_pairs(pairs, made, i, x, factors);
    subtract_pairs(pairs, made, i, factors, p);
    for (std::int64_t c = i / kLanes<T> * kLanes<T>; c < size; c += kLanes<T>) store(p + c, load_until(p, c, i));
    const T half = tau * tau * dot_product(x, p, i) / 2;
    for (std::int64_t c = 0; c < i; c += width) {
      for (std::int64_t k = 0; k < width; k += kLanes<T>) {
        const Vector<T> v = load(x + c + k), w = load(p + c + k) * tau - v * half;
        store(pairs.row(c / width, made) + k, v);
        store(pairs.row(c / width, kPairs + made) + k, w);
        store(pairs.row(c / width, 2 * kPairs + made) + k, v);
      }
    }
    ++made;
    if (i % kPairs == 0) {
      subtract_pairs(pairs, a, i);
      made = 0;
    }
  }
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
