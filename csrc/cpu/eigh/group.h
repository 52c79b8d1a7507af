#pragma once

#include <cstdint>

#include "hybrid.h"
#include "lanes.h"

namespace eigendamage::cpu {

/// The largest n whose matrices are solved in groups.
template <class T>
constexpr std::int64_t kMaxGroupSize = sizeof(T) == 4 ? 96 : 80;

/// Numbers from one row of eigenvectors to the next: no power of two, whose rows would fall onto the same cache lines.
constexpr std::int64_t group_stride(std::int64_t n) { return eigh_stride(n) + 16; }

/// The eigensolver for a group of symmetric matrices: each is made tridiagonal on its own, then QL runs on all of them at
/// once, one in each lane, and turns the eigenvectors of each. Once per instruction set. T is float or double. What a
/// matrix yields depends on nothing else in its group.
template <class T>
struct GroupSolver {
  std::int64_t lanes;    ///< T's in a vector: a small group
  std::int64_t members;  ///< a large one

  /// T's, for matrices up to (n, n).
  std::int64_t (*workspace)(std::int64_t n);

  /// a (n, n), n ≥ 2, becomes Q·tridiagonal·Qᵀ. Of a, whose rows are eigh_stride(n) apart, the lower triangle is read; it is
  /// finite, and zero or of largest magnitude in [1/2, 1). diagonal (n) and beside (n − 1) have numbers `members` apart.
  /// vectors_t (n, n) becomes Qᵀ, its rows group_stride(n) apart, between kSpareRows rows of scratch.
  void (*reduce)(std::int64_t n, const T* a, std::int64_t members, T* diagonal, T* beside, T* vectors_t, T* workspace);

  /// For `members`, one of the two sizes above: member m has sizes[m] rows, 0 if there is none. diagonal and beside
  /// (n, members), n the largest size, are zero beyond a matrix's rows; diagonal becomes the eigenvalues in any order, and row
  /// k of vectors_t[m], Qᵀ before, the eigenvector of value k. Returns, bit by bit, the members that gave up.
  std::uint32_t (*diagonalise)(std::int64_t members, std::int64_t n, const std::int64_t* sizes, T* diagonal, T* beside,
                               T* const* vectors_t, T* workspace);
};

}  // namespace eigendamage::cpu
