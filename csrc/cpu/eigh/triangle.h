#pragma once

#include <cstdint>

namespace eigendamage::cpu {

/// Reads the lower triangle of a matrix (n, n) whose entry [i][j] is matrix[i·row_stride + j·column_stride], and nothing
/// else, once per instruction set. T is float or double.
template <class T>
struct TriangleReader {
  /// The largest magnitude: infinity or NaN if any entry is.
  T (*largest)(std::int64_t n, const T* matrix, std::int64_t row_stride, std::int64_t column_stride);

  /// a[i·stride + j] = entry · half · rest for j ≤ i.
  void (*copy)(std::int64_t n, const T* matrix, std::int64_t row_stride, std::int64_t column_stride, T half, T rest,
               std::int64_t stride, T* a);
};

}  // namespace eigendamage::cpu
