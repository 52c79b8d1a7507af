// Small functions of numbers and vectors for the eigensolver, under the rules of simd_text.h.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../simd_text.h"

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
  return x - Vector<T>{};  // adding would cost an instruction: it turns −0 to 0
}

/// Holds x in a register: GCC would rather load a number again at its second use, and run out of loads.
template <class T>
inline __attribute__((always_inline)) void keep([[maybe_unused]] Vector<T>& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#endif
}

template <class T>
bool any(typename VectorOf<T>::index mask) {  // all bits of a lane or none
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  std::int64_t words[sizeof(mask) / sizeof(std::int64_t)], all = 0;
  __builtin_memcpy(words, &mask, sizeof mask);
  for (const std::int64_t word : words) all |= word;
  return all != 0;
#endif
}

/// 1/x within two units in the last place, for a normal x whose inverse is normal: in a fraction of a division's time.
template <class T>
Vector<T> reciprocal(Vector<T> x) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const auto guess = (Vector<T>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return guess + guess * (1 - x * guess);
  } else {
    auto guess = (Vector<T>)_mm512_maskz_rcp14_pd(0xff, (__m512d)x);
    guess += guess * (1 - x * guess);
    return guess + guess * (1 - x * guess);
  }
#else
  return 1 / x;
#endif
}

/// 0, 1, 2, …
template <class T>
Vector<T> lane_numbers() {
  Vector<T> numbers{};
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = static_cast<T>(i);
  return numbers;
}

/// Numbers first … of a row of `count`, 0 behind its end.
template <class T>
Vector<T> until(Vector<T> x, std::int64_t first, std::int64_t count) {
  return first + kLanes<T> <= count ? x : lane_numbers<T>() < static_cast<T>(count - first) ? x : Vector<T>{};
}

template <class T>
Vector<T> load_until(const T* row, std::int64_t first, std::int64_t count) {
  return until<T>(load(row + first), first, count);
}

/// Sums the lanes that are a multiple of Period apart.
template <class T, int Period, int Distance = kLanes<T> / 2>
inline __attribute__((always_inline)) Vector<T> fold(Vector<T> x) {
  if constexpr (Distance < Period) {
    return x;
  } else {
    typename VectorOf<T>::index at{};
    for (int i = 0; i < kLanes<T>; ++i) at[i] = (i + Distance) % kLanes<T>;
    return fold<T, Period, Distance / 2>(x + shuffle<T>(x, x, at));
  }
}

template <class T>
T sum_lanes(Vector<T> x) {
  return fold<T, 1>(x)[0];
}

/// Interleaves lanes and joins them, halving the number of vectors, until lane i of the result is part of what x[i % Count]
/// joins to.
template <class T, int Count, class Join>
inline __attribute__((always_inline)) Vector<T> join_interleaved(const Vector<T>* x) {
  if constexpr (Count == 1) {
    return x[0];
  } else {
    typename VectorOf<T>::index low{}, high{};
    for (int i = 0; i < kLanes<T>; ++i) {
      low[i] = i / 2 + (i % 2) * kLanes<T>;
      high[i] = low[i] + kLanes<T> / 2;
    }
    Vector<T> joined[Count / 2];
#pragma GCC unroll 8
    for (int i = 0; i < Count / 2; ++i) {
      joined[i] = Join::of(shuffle<T>(x[i], x[i + Count / 2], low), shuffle<T>(x[i], x[i + Count / 2], high));
    }
    return join_interleaved<T, Count / 2, Join>(joined);
  }
}

template <class T>
struct Sum {
  static Vector<T> of(Vector<T> x, Vector<T> y) { return x + y; }
};

template <class T>
struct Larger {
  static Vector<T> of(Vector<T> x, Vector<T> y) { return larger(x, y); }
};

template <class T, int Count>
inline __attribute__((always_inline)) Vector<T> sum_interleaved(const Vector<T>* x) {
  return join_interleaved<T, Count, Sum<T>>(x);
}

/// sums[i] = Σ of the lanes of x[i].
template <class T, int Count>
inline __attribute__((always_inline)) void sum_each(const Vector<T> (&x)[Count], T (&sums)[Count]) {
  if constexpr (Count > kLanes<T>) {
    for (int i = 0; i < Count; i += kLanes<T>) store(sums + i, sum_interleaved<T, kLanes<T>>(x + i));
  } else {
    const Vector<T> all = fold<T, Count>(sum_interleaved<T, Count>(x));
    __builtin_memcpy(sums, &all, sizeof sums);
  }
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

constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
