#pragma once

#include "cuda_runtime.h"

/// Half precision under CUDA's names: storage, and conversions to and from float.

struct __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  unsigned short bits;

  __half() = default;
  __half(const __half_raw& raw) : bits(raw.x) {}
  inline explicit __half(float value);
  inline explicit operator float() const;
};

struct alignas(4) __half2 {
  __half x, y;
};

using half = __half;
using half2 = __half2;

inline float __half2float(__half h) {
  const std::uint32_t sign = (h.bits & 0x8000U) << 16, exponent = h.bits >> 10 & 31, mantissa = h.bits & 0x3FF;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
  if (exponent) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value), sign = bits >> 16 & 0x8000;
  std::uint32_t rounded = 0;
  if (value != value) {
    return __half(__half_raw{0x7FFF});
  } else if (std::fabs(value) >= 65520.0F) {
    rounded = 0x7C00;
  } else if (std::fabs(value) < 0x1p-14F) {
    rounded = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(std::fabs(value), 24)));
  } else {
    const std::uint32_t magnitude = bits & 0x7FFFFFFF;
    rounded = (magnitude - (112U << 23) + 0xFFF + (magnitude >> 13 & 1)) >> 13;  // to the nearest, ties to even
  }
  return __half(__half_raw{static_cast<unsigned short>(sign | rounded)});
}

inline __half __float2half(float value) { return __float2half_rn(value); }
__half::__half(float value) : __half(__float2half_rn(value)) {}
__half::operator float() const { return __half2float(*this); }
inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline float __low2float(__half2 h) { return __half2float(h.x); }
inline float __high2float(__half2 h) { return __half2float(h.y); }
