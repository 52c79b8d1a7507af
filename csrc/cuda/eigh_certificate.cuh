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

/// What certificate() works with, (kProbes, n) each but for squares (n).
template <class T>
struct Probing {
  T *signs, *images, *residuals, *skews, *squares;
};

/// Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − 1‖ ≤ 8·n·eps, estimated: ‖Ez‖² averages to ‖E‖² over vectors z of random
/// signs. entry(i, j) is A's; vectors_t (n, n) has rows `stride` apart, n ≤ 2·Pairs. A thread has a row and some of the
/// probes. The first barrier is the caller's.
template <class T, int Pairs, int Warps, class Entry>
__device__ bool certificate(int n, const Entry& entry, const T* values, const T* vectors_t, int stride,
                            const Probing<T>& probing) {
  constexpr int kRows = 2 * Pairs, kOwn = kProbes * kRows / Team<Warps>::kThreads;
  static_assert(kOwn * Team<Warps>::kThreads == kProbes * kRows);
  const int lane = Team<Warps>::lane(), i = Team<Warps>::rank() % kRows;
  const int first = Team<Warps>::rank() / kRows * kOwn, own = first * n;  // probe, and where its numbers begin
  if (i < n) {
    for (int p = 0; p < kOwn; ++p) probing.signs[own + p * n + i] = probe_sign<T>(i, first + p);
  }
  Team<Warps>::sync();

  if (i < n) {  // V·z
    T image[kOwn] = {};
    for (int k = 0; k < n; ++k) {
      const T x = vectors_t[k * stride + i];
      for (int p = 0; p < kOwn; ++p) image[p] = fma(x, probing.signs[own + p * n + k], image[p]);
    }
    for (int p = 0; p < kOwn; ++p) probing.images[own + p * n + i] = image[p];
  }
  Team<Warps>::sync();

  if (i < n) {
    T residual[kOwn] = {}, skew[kOwn] = {}, square = 0;
#pragma unroll 4
    for (int j = 0; j < n; ++j) {
      const T a = entry(i, j), x = vectors_t[j * stride + i] * values[j], y = vectors_t[i * stride + j];
      square = fma(a, a, square);
      for (int p = 0; p < kOwn; ++p) {
        const T image = probing.images[own + p * n + j];
        residual[p] = fma(a, image, residual[p]);
        residual[p] = fma(-x, probing.signs[own + p * n + j], residual[p]);
        skew[p] = fma(y, image, skew[p]);
      }
    }
    for (int p = 0; p < kOwn; ++p) {
      const T off = skew[p] - probing.signs[own + p * n + i];
      probing.residuals[own + p * n + i] = residual[p] * residual[p];
      probing.skews[own + p * n + i] = off * off;
    }
    if (first == 0) probing.squares[i] = square;
  }
  Team<Warps>::sync();

  const T gate = static_cast<T>(8 * n) * kEpsilon<T>, most = gate * gate * kProbes;
  return sum(probing.residuals, kProbes * n, lane) <= most * sum(probing.squares, n, lane) &&
         sum(probing.skews, kProbes * n, lane) <= most;
}

}  // namespace eigendamage::cuda
