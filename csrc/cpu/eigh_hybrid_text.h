// The text of the eigensolver for one matrix, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
T magnitude(T x) {
  return x < 0 ? -x : x;
}

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float eps = 0x1p-24F, tiny = 0x1p-126F;
};
template <>
struct Limits<double> {
  static constexpr double eps = 0x1p-53, tiny = 0x1p-1022;
};

// a = Q·T·Qᵀ from the last row up: row i of `a` becomes the reflector that clears it, taus[i] its factor.
template <class T>
void tridiagonalise(std::int64_t n, T* a, T* diagonal, T* beside, T* taus, T* p) {
  const std::int64_t stride = eigh_stride(n);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = r + 1; c < n; ++c) a[r * stride + c] = a[c * stride + r];
  }
  for (std::int64_t i = n - 1; i > 0; --i) {
    T* v = a + i * stride;
    diagonal[i] = v[i];
    T squares = 0;
    for (std::int64_t c = 0; c < i - 1; ++c) squares += v[c] * v[c];
    const T alpha = v[i - 1];
    if (squares <= Limits<T>::tiny / (Limits<T>::eps * Limits<T>::eps)) {
      beside[i - 1] = alpha;
      taus[i] = 0;
      continue;
    }
    const T norm = square_root(squares + alpha * alpha), beta = alpha > 0 ? -norm : norm;
    beside[i - 1] = beta;
    taus[i] = (beta - alpha) / beta;
    for (std::int64_t c = 0; c < i - 1; ++c) v[c] /= alpha - beta;
    v[i - 1] = 1;
    T dot = 0;
    for (std::int64_t r = 0; r < i; ++r) {
      p[r] = 0;
      for (std::int64_t c = 0; c < i; ++c) p[r] += a[r * stride + c] * v[c];
      p[r] *= taus[i];
      dot += p[r] * v[r];
    }
    for (std::int64_t r = 0; r < i; ++r) p[r] -= taus[i] * dot / 2 * v[r];
    for (std::int64_t r = 0; r < i; ++r) {
      for (std::int64_t c = 0; c < i; ++c) a[r * stride + c] -= v[r] * p[c] + p[r] * v[c];
    }
  }
  diagonal[0] = a[0];
}

// rows ← rows·Qᵀ.
template <class T>
void apply_reflectors(std::int64_t n, const T* a, const T* taus, T* rows) {
  const std::int64_t stride = eigh_stride(n);
  for (std::int64_t i = 1; i < n; ++i) {
    if (taus[i] == 0) continue;
    const T* v = a + i * stride;
    for (std::int64_t r = 0; r < n; ++r) {
      T dot = 0;
      for (std::int64_t c = 0; c < i; ++c) dot += rows[r * stride + c] * v[c];
      for (std::int64_t c = 0; c < i; ++c) rows[r * stride + c] -= taus[i] * dot * v[c];
    }
  }
}

// Implicit-shift QL on a tridiagonal matrix; rows ← Uᵀ·rows with the eigenvectors U.
template <class T>
int chase(std::int64_t n, T* diagonal, T* beside, T* rows, std::int64_t stride) {
  T largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    largest = magnitude(diagonal[i]) > largest ? magnitude(diagonal[i]) : largest;
    if (i + 1 < n && magnitude(beside[i]) > largest) largest = magnitude(beside[i]);
  }
  const auto negligible = [=](std::int64_t i) {
    constexpr T eps = Limits<T>::eps;
    return beside[i] * beside[i] <= eps * eps * magnitude(diagonal[i] * diagonal[i + 1]) ||
           magnitude(beside[i]) <= eps / 2 * largest;
  };
  std::int64_t sweeps = 30 * n;
  for (std::int64_t first = 0; first < n; ++first) {
    for (;;) {
      std::int64_t last = first;
      while (last + 1 < n && !negligible(last)) ++last;
      if (last + 1 < n) beside[last] = 0;
      if (last == first) break;
      if (sweeps-- == 0) return 1;
      T g = (diagonal[first + 1] - diagonal[first]) / (2 * beside[first]);
      T r = square_root(g * g + 1);
      g = diagonal[last] - diagonal[first] + beside[first] / (g + (g < 0 ? -r : r));
      T s = 1, c = 1, p = 0;
      for (std::int64_t i = last - 1; i >= first; --i) {
        const T f = s * beside[i], b = c * beside[i];
        r = square_root(f * f + g * g);
        if (i + 1 < last) beside[i + 1] = r;
        s = r > 0 ? f / r : T(0);
        c = r > 0 ? g / r : T(1);
        g = diagonal[i + 1] - p;
        r = (diagonal[i] - g) * s + 2 * c * b;
        p = s * r;
        diagonal[i + 1] = g + p;
        g = c * r - b;
        T *low = rows + i * stride, *high = low + stride;
        for (std::int64_t k = 0; k < stride; ++k) {
          const T x = high[k];
          high[k] = s * low[k] + c * x;
          low[k] = c * low[k] - s * x;
        }
      }
      diagonal[first] -= p;
      beside[first] = g;
    }
  }
  return 0;
}

template <class T>
int hybrid(std::int64_t n, T* a, T* values, T* vectors_t, T* workspace) {
  const std::int64_t stride = eigh_stride(n);
  T *rows = workspace, *diagonal = rows + n * stride, *beside = diagonal + stride, *taus = beside + stride,
    *p = taus + stride;
  tridiagonalise(n, a, diagonal, beside, taus, p);
  for (std::int64_t i = 0; i < n * stride; ++i) rows[i] = i % (stride + 1) == 0 ? T(1) : T(0);
  if (chase(n, diagonal, beside, rows, stride) != 0) return 1;
  apply_reflectors(n, a, taus, rows);
  for (std::int64_t k = 0; k < n; ++k) {
    std::int64_t rank = 0;
    for (std::int64_t i = 0; i < n; ++i) rank += diagonal[i] < diagonal[k] || (diagonal[i] == diagonal[k] && i < k);
    values[rank] = diagonal[k];
    __builtin_memcpy(vectors_t + rank * stride, rows + k * stride, static_cast<std::size_t>(stride) * sizeof(T));
  }
  return 0;
}

template <class T>
constexpr EighKernels<T> kEighKernels{.hybrid = hybrid<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
