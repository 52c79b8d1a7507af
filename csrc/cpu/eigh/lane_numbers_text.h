// Vectors that hold a number of each of several matrices, under the rules of simd_text.h. Where lanes must part company,
// masks choose.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

template <class T>
using Mask = typename VectorOf<T>::index;  // all bits of a lane or none; also small integers

template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float epsilon = 0x1p-23f;
  static constexpr float least_square = 0x1p-80f;  // of what may enter a square root: least normal number / epsilon²
};
template <>
struct Format<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double epsilon = 0x1p-52;
  static constexpr double least_square = 0x1p-918;
};

template <class T>
Vector<T> square_root(Vector<T> x) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
  } else {
    return (Vector<T>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
  }
#elif defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm256_sqrt_ps((__m256)x);
  } else {
    return (Vector<T>)_mm256_sqrt_pd((__m256d)x);
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm_sqrt_ps((__m128)x);
  } else {
    return (Vector<T>)_mm_sqrt_pd((__m128d)x);
  }
#else
  for (int lane = 0; lane < kLanes<T>; ++lane)
    x[lane] = sizeof(T) == 4 ? __builtin_sqrtf(x[lane]) : __builtin_sqrt(x[lane]);
  return x;
#endif
}

// 1/√x for normal x, to about a unit in the last place.
template <class T>
Vector<T> inverse_square_root(Vector<T> x) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  Vector<T> y;  // 14 bits, doubled by each of Newton's steps
  if constexpr (sizeof(T) == 4) {
    y = (Vector<T>)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);
  } else {
    y = (Vector<T>)_mm512_maskz_rsqrt14_pd(0xff, (__m512d)x);
    y += y * T(0.5) * (1 - x * y * y);
  }
  return y + y * T(0.5) * (1 - x * y * y);
#else
  return 1 / square_root<T>(x);
#endif
}

template <class T>
Vector<T> all_lanes(T x) {
  return x - Vector<T>{};
}

template <class T>
Vector<T> magnitude(Vector<T> x) {
  return (Vector<T>)((Mask<T>)x & ~(Mask<T>)(-Vector<T>{}));
}

template <class T>
bool any(Mask<T> mask) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 32
  return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#elif defined(__x86_64__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  long long bits[EIGENDAMAGE_VECTOR_BYTES / 8], found = 0;
  __builtin_memcpy(bits, &mask, sizeof mask);
  for (const long long part : bits) found |= part;
  return found != 0;
#endif
}

// |x| with the sign of y, x ≥ 0.
template <class T>
Vector<T> with_sign(Vector<T> x, Vector<T> y) {
  return (Vector<T>)((Mask<T>)x | ((Mask<T>)y & (Mask<T>)(-Vector<T>{})));
}

template <class T>
Vector<T> where(Mask<T> mask, Vector<T> x) {
  return (Vector<T>)((Mask<T>)x & mask);
}

// 2^exponent inside the normal range.
template <class T>
Vector<T> power_of_two(Mask<T> exponent) {
  return (Vector<T>)((exponent + Format<T>::bias) << Format<T>::mantissa);
}

// x·2^exponent, in two steps because one factor may be beyond the range of T.
template <class T>
struct Scaling {
  Vector<T> half, rest;

  explicit Scaling(Mask<T> exponent)
      : half(power_of_two<T>(exponent >> 1)), rest(power_of_two<T>(exponent - (exponent >> 1))) {}
  Vector<T> operator()(Vector<T> x) const { return x * half * rest; }
};

// The exponent e with x / 2^e in [1/2, 1); x is finite, and 0 has the exponent 0.
template <class T>
Mask<T> exponent_of(Vector<T> x) {
  constexpr int raise = 64;  // out of the subnormal numbers
  const Mask<T> low = x < power_of_two<T>(Mask<T>{} - raise);
  const Vector<T> normal = low ? x * power_of_two<T>(Mask<T>{} + raise) : x;
  const Mask<T> exponent = ((Mask<T>)normal >> Format<T>::mantissa) - (Format<T>::bias - 1);
  return x == 0 ? Mask<T>{} : exponent - (low & raise);
}

}  // namespace lanes
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
