#pragma once

#include <cstdint>

namespace eigendamage::cpu {

/// The largest n whose matrices are solved one in each lane of a vector. A full vector of larger ones would gain, but one
/// alone, whose work is that of a full vector, would take longer than in LAPACK.
template <class T>
constexpr std::int64_t kMaxLaneSize = sizeof(T) == 4 ? 20 : 16;

/// Rows of scratch before and behind the eigenvectors in lanes.
constexpr std::int64_t kSpareRows = 2;

/// Eigendecomposition of `lanes` symmetric matrices of one size at once, once per instruction set. T is float or double.
/// What a lane yields depends on its own matrix alone.
template <class T>
struct LaneSolver {
  std::int64_t lanes;  ///< T's in a vector

  /// Of T's, for matrices (n, n).
  std::int64_t (*workspace)(std::int64_t n);

  /// a (n, n, lanes): only entries [i][j] with j ≤ i are read; overwritten. For each lane: eigenvalues values (n, lanes),
  /// unordered, and `ranks` (n, lanes), the place of each in ascending order; vectors_t (n, n, lanes), row k the
  /// eigenvector of values[k] with its component of largest magnitude, the first of equals, positive; codes (lanes): 0 or
  /// a code of kernels.h, with rubbish in the other outputs. vectors_t lies
  /// between kSpareRows rows of scratch. All are aligned to 64 bytes.
  void (*solve)(std::int64_t n, T* a, T* values, T* ranks, T* vectors_t, std::int32_t* codes, T* workspace);
};

}  // namespace eigendamage::cpu
