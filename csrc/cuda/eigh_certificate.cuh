#pragma once

#include <cstdint>

#include "eigh_jacobi.cuh"

/// Whether an eigendecomposition is one, measured with random vectors of signs.
namespace eigendamage::cuda {

constexpr int kProbes = 4;

/// Component k of a probe: random from one four to the next, a Hadamard matrix within, so that errors in the same four of
/// columns cannot cancel.
template <class T>
__device__ T probe_sign(int k, int probe) {
  std::uint64_t bits = static_cast<std::uint64_t>(k / 4 + 1) * 0x9e3779b97f4a7c15;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  const int row = k % 4, hadamard = row == 0 ? 0b0000 : row == 1 ? 0b1010 : row == 2 ? 0b1100 : 0b0110;
  return (static_cast<int>(bits >> 60) ^ hadamard) >> probe & 1 ? T(-1) : T(1);
}

/// Σ x[i], i < count, in an order that depends on nothing else. Every warp sums for itself.
template <class T>
__device__ T sum(const T* x, int count, int lane) {
  T own = 0;
  for (int i = lane; i < count; i += 32) own += x[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) own += __shfl_xor_sync(0xFFFFFFFF, own, lanes);
  return own;
}

/// What certificate() works with, (n) each.
template <class T>
struct Probing {
  T *signs[kProbes], *images[kProbes], *residuals, *skews, *squares;
};

/// Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − 1‖ ≤ 8·n·eps, estimated: ‖Ez‖² averages to ‖E‖² over vectors z of random
/// signs. entry(i, j) is A's; vectors_t (n, n) has rows `stride` apart. The first barrier is the caller's.
template <class T, int Warps, class Entry>
__device__ bool certificate(int n, const Entry& entry, const T* values, const T* vectors_t, int stride,
                            const Probing<T>& probing) {
  constexpr int kThreads = Team<Warps>::kThreads;
  const int rank = Team<Warps>::rank(), lane = Team<Warps>::lane();
  for (int k = rank; k < n; k += kThreads) {
    for (int p = 0; p < kProbes; ++p) probing.signs[p][k] = probe_sign<T>(k, p);
  }
  Team<Warps>::sync();

  for (int i = rank; i < n; i += kThreads) {  // V·z
    T image[kProbes] = {};
    for (int k = 0; k < n; ++k) {
      const T x = vectors_t[k * stride + i];
      for (int p = 0; p < kProbes; ++p) image[p] = fma(x, probing.signs[p][k], image[p]);
    }
    for (int p = 0; p < kProbes; ++p) probing.images[p][i] = image[p];
  }
  Team<Warps>::sync();

  for (int i = rank; i < n; i += kThreads) {
    T residual[kProbes] = {}, skew[kProbes] = {}, square = 0;
    for (int j = 0; j < n; ++j) {
      const T a = entry(i, j), x = vectors_t[j * stride + i] * values[j], y = vectors_t[i * stride + j];
      square = fma(a, a, square);
      for (int p = 0; p < kProbes; ++p) {
        residual[p] = fma(a, probing.images[p][j], residual[p]);
        residual[p] = fma(-x, probing.signs[p][j], residual[p]);
        skew[p] = fma(y, probing.images[p][j], skew[p]);
      }
    }
    T residual_square = 0, skew_square = 0;
    for (int p = 0; p < kProbes; ++p) {
      const T off = skew[p] - probing.signs[p][i];
      residual_square = fma(residual[p], residual[p], residual_square);
      skew_square = fma(off, off, skew_square);
    }
    probing.residuals[i] = residual_square;
    probing.skews[i] = skew_square;
    probing.squares[i] = square;
  }
  Team<Warps>::sync();

  const T gate = static_cast<T>(8 * n) * kEpsilon<T>, most = gate * gate * kProbes;
  return sum(probing.residuals, n, lane) <= most * sum(probing.squares, n, lane) && sum(probing.skews, n, lane) <= most;
}

}  // namespace eigendamage::cuda
