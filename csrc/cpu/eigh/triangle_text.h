// The text of TriangleReader, under the rules of simd_text.h.

#pragma once

#include "../simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace triangle {

/// As integers, magnitudes are in the order of the numbers, with infinity and NaN above them all.
template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  typedef std::int32_t type;
  static constexpr type magnitude = 0x7fffffff;
};
template <>
struct BitsOf<double> {
  typedef std::int64_t type;
  static constexpr type magnitude = 0x7fffffffffffffff;
};

template <class T>
T largest(std::int64_t n, const T* matrix, std::int64_t row_stride, std::int64_t column_stride) {
  using Bits = typename BitsOf<T>::type;
  using Vectors = typename VectorOf<T>::index;
  Bits most = 0;
  Vectors most_of_lanes{};
  for (std::int64_t i = 0; i < n; ++i, matrix += row_stride) {
    if (column_stride == 1 && i + 1 >= kLanes<T>) {
      for (std::int64_t j = 0; j <= i; j += kLanes<T>) {
        const std::int64_t last = i + 1 - kLanes<T>;  // overlaps the one before
        const Vectors bits = (Vectors)load(matrix + (j < last ? j : last)) & BitsOf<T>::magnitude;
        most_of_lanes = bits > most_of_lanes ? bits : most_of_lanes;
      }
    } else {
      for (std::int64_t j = 0; j <= i; ++j) {
        Bits bits;
        __builtin_memcpy(&bits, matrix + j * column_stride, sizeof bits);
        bits &= BitsOf<T>::magnitude;
        most = bits > most ? bits : most;
      }
    }
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) most = most_of_lanes[lane] > most ? most_of_lanes[lane] : most;
  T number;
  __builtin_memcpy(&number, &most, sizeof number);
  return number;
}

template <class T>
void copy(std::int64_t n, const T* matrix, std::int64_t row_stride, std::int64_t column_stride, T half, T rest,
          std::int64_t stride, T* a) {
  for (std::int64_t i = 0; i < n; ++i, matrix += row_stride, a += stride) {
    if (column_stride == 1 && i + 1 >= kLanes<T>) {
      for (std::int64_t j = 0; j <= i; j += kLanes<T>) {
        const std::int64_t last = i + 1 - kLanes<T>, first = j < last ? j : last;
        store(a + first, load(matrix + first) * half * rest);
      }
    } else {
      for (std::int64_t j = 0; j <= i; ++j) a[j] = matrix[j * column_stride] * half * rest;
    }
  }
}

template <class T>
constexpr TriangleReader<T> kTriangleReader{.largest = largest<T>, .copy = copy<T>};

}  // namespace triangle
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
