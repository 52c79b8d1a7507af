// Small functions of numbers and vectors for the eigensolver, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

template <class T>
T magnitude(T x) {  // a number or a vector
  return x < 0 ? -x : x;
}

template <class T>
T larger(T x, T y) {  // numbers or vectors
  return x > y ? x : y;
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

template <class T>
Vector<T> spread(T x) {
  return Vector<T>{} + x;
}

template <class T>
T sum_lanes(Vector<T> x) {
  T lanes[kLanes<T>];
  store(lanes, x);
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

/// Σ x[i] · y[i], i < n; both hold zeros up to the next multiple of 2·kLanes.
template <class T>
T dot_product(const T* x, const T* y, std::int64_t n) {
  Vector<T> even{}, odd{};
  for (std::int64_t i = 0; i < n; i += 2 * kLanes<T>) {
    even += load(x + i) * load(y + i);
    odd += load(x + i + kLanes<T>) * load(y + i + kLanes<T>);
  }
  return sum_lanes<T>(even + odd);
}

inline std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
