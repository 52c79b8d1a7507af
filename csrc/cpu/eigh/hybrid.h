#pragma once

#include <cstdint>

namespace eigendamage::cpu {

/// Numbers from one row of a matrix of the solver to the next.
constexpr std::int64_t eigh_stride(std::int64_t n) { return (n + 15) / 16 * 16; }

/// Numbers of scratch that EighKernels::hybrid needs.
constexpr std::int64_t eigh_hybrid_workspace(std::int64_t n) { return 3 * n * (n + 64) + 200 * (n + 64) + 4096; }

/// The eigensolver for one matrix, once per instruction set. T is float or double.
template <class T>
struct EighKernels {
  /// Eigendecomposition of the symmetric matrix a (n, n), n ≥ 2, of which the lower triangle is read and all overwritten.
  /// It is finite, and zero or of largest magnitude in [1/2, 1). values (n) ascend; row k of vectors_t (n, n) is the unit
  /// eigenvector of values[k], of either sign. Rows of a and vectors_t are eigh_stride(n) apart; what lies between
  /// them is scratch. a, vectors_t and workspace are aligned to 64 bytes. Returns 0, or 1 if the iteration gave up.
  int (*hybrid)(std::int64_t n, T* a, T* values, T* vectors_t, T* workspace);
};

}  // namespace eigendamage::cpu
