#pragma once

#include <cstdint>

#include "hybrid.h"

namespace eigendamage::cpu {

/// Random vectors with which the certificate measures a Frobenius norm.
constexpr int kProbes = 4;

constexpr std::int64_t certificate_workspace(std::int64_t n) { return 4 * kProbes * eigh_stride(n); }

/// Whether an eigendecomposition is one, in O(n²), once per instruction set. T is float or double.
template <class T>
struct Certificate {
  /// Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − 1‖ ≤ 8·n·eps, estimated: ‖Ez‖² averages to ‖E‖² over vectors z of random
  /// signs. a and vectors_t (n, n) have rows `stride` ≥ eigh_stride(n) apart, and only the lower triangle of a counts;
  /// workspace holds certificate_workspace(n) numbers.
  bool (*holds)(std::int64_t n, std::int64_t stride, const T* a, const T* values, const T* vectors_t, T* workspace);

  /// ranks[k] = the place of values[k] in ascending order, equals in the order of k. Of both arrays eigh_stride(n) numbers
  /// are touched.
  void (*rank)(std::int64_t n, const T* values, T* ranks);

  /// Row ranks[k] of out (n, n) becomes row k of vectors_t (n, n), its rows `stride` ≥ eigh_stride(n) apart, with its
  /// component of largest magnitude, the first of equals, positive, and −0 made 0.
  void (*place_rows)(std::int64_t n, std::int64_t stride, const T* vectors_t, const T* ranks, T* out);
};

}  // namespace eigendamage::cpu
