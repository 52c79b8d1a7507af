#pragma once

#include <cstdint>

namespace eigendamage::cpu {

/// Random vectors with which the certificate measures a Frobenius norm.
constexpr int kProbes = 4;

/// Whether an eigendecomposition is one, in O(n²), once per instruction set. T is float or double.
template <class T>
struct Certificate {
  /// Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − 1‖ ≤ 8·n·eps, estimated: ‖Ez‖² averages to ‖E‖² over vectors z of random
  /// signs. a and vectors_t (n, n) have rows `stride` ≥ eigh_stride(n) apart, and only the lower triangle of a counts;
  /// workspace holds 2·kProbes·eigh_stride(n) numbers.
  bool (*holds)(std::int64_t n, std::int64_t stride, const T* a, const T* values, const T* vectors_t, T* workspace);

  /// Makes the component of largest magnitude, the first of equals, positive in a vector (n), and −0 to 0: out may be in, of which
  /// eigh_stride(n) numbers are readable.
  void (*choose_sign)(std::int64_t n, const T* in, T* out);

  /// ranks[k] = the place of values[k] in ascending order, equals in the order of k. Of both arrays eigh_stride(n) numbers
  /// are touched.
  void (*rank)(std::int64_t n, const T* values, T* ranks);
};

}  // namespace eigendamage::cpu
