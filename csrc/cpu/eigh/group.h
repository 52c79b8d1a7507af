#pragma once

#include <cstdint>

#include "hybrid.h"
#include "lanes.h"

namespace eigendamage::cpu {

/// The largest n whose matrices are solved in groups.
template <class T>
constexpr std::int64_t kMaxGroupSize = sizeof(T) == 4 ? 96 : 80;

/// Rows of scratch before and behind the eigenvectors of a matrix in a group.
constexpr std::int64_t kSpareGroupRows = 4;

/// Numbers from one row of eigenvectors to the next: no power of two, whose rows would fall onto the same cache lines.
constexpr std::int64_t group_stride(std::int64_t n) { return eigh_stride(n) + 16; }

/// Matrices of a size that are reduced together, at most.
constexpr std::int64_t kTogether = 4;

/// A matrix (n, n) that becomes Q·tridiagonal·Qᵀ. Of a, whose rows are eigh_stride(n) apart, the lower triangle is read; it is
/// finite, and zero or of largest magnitude in [1/2, 1). The tridiagonal matrix goes to diagonal (n) and beside (n − 1), Qᵀ to
/// vectors_t (n, n), its rows group_stride(n) apart, between kSpareGroupRows rows of scratch.
template <class T>
struct Reduction {
  const T* a;
  T *diagonal, *beside, *vectors_t;
};

/// The eigensolver for a group of symmetric matrices: each is made tridiagonal on its own, then QL runs on all of them at
/// once, one in each lane, and turns the eigenvectors of each. Once per instruction set. T is float or double. What a
/// matrix yields depends on nothing else in its group.
template <class T>
struct GroupSolver {
  std::int64_t lanes;    ///< T's in a vector: a small group
  std::int64_t members;  ///< a large one

  /// T's, for matrices up to (n, n).
  std::int64_t (*workspace)(std::int64_t n);

  /// For count ≤ kTogether matrices (n, n), n ≥ 2; numbers on and beside the diagonal are `members` apart.
  void (*reduce)(std::int64_t n, std::int64_t count, const Reduction<T>* matrices, std::int64_t members, T* workspace);

  /// For `members`, one of the two sizes above: member m has sizes[m] rows, 0 if there is none. diagonal and beside
  /// (n, members), n the largest size, are zero beyond a matrix's rows; diagonal becomes the eigenvalues in any order, and row
  /// k of vectors_t[m], Qᵀ before, the eigenvector of value k. Returns, bit by bit, the members that gave up.
  std::uint32_t (*diagonalise)(std::int64_t members, std::int64_t n, const std::int64_t* sizes, T* diagonal, T* beside,
                               T* const* vectors_t, T* workspace);
};

}  // namespace eigendamage::cpu
