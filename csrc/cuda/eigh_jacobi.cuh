#pragma once

#include <math.h>

#include <limits>

#include "launch.cuh"

/// Jacobi's method on a symmetric matrix, all pairs of a round at once.
namespace eigendamage::cuda {

/// The warps that share a matrix: all of a block.
template <int Warps>
struct Team {
  static constexpr int kThreads = 32 * Warps;

  static __device__ int rank() { return static_cast<int>(threadIdx.x); }
  static __device__ int warp() { return rank() / 32; }
  static __device__ int lane() { return rank() % 32; }
  static __device__ void sync() {
    if constexpr (Warps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
};

/// The rows of a matrix of order 2·half sit at a table, place k opposite place half + k. After a round all but place 0 move
/// on by one chair, so that in 2·half − 1 rounds any two sit opposite each other once, and then all sit where they sat.
/// The matrix is kept by places, each entry once: first what two pairs k < l of opposites have in common, in four planes,
/// then the entry of each pair, then the diagonal.
struct Seating {
  int half;

  __device__ int rounds() const { return 2 * half - 1; }
  __device__ int crossings() const { return half * (half - 1) / 2; }
  __device__ int pairs() const { return 4 * crossings(); }
  __device__ int diagonal() const { return pairs() + half; }
  __device__ int size() const { return diagonal() + 2 * half; }

  __device__ int next(int place) const {
    if (place == 0) return 0;
    if (place < half) return place + 1 < half ? place + 1 : 2 * half - 1;
    return place == half ? 1 : place - 1;
  }

  /// Where the entry of two places is kept.
  __device__ int slot(int a, int b) const {
    const int k = a < half ? a : a - half, l = b < half ? b : b - half;
    if (k == l) return a == b ? diagonal() + a : pairs() + k;
    if (k > l) return slot_of(b, l, a, k);
    return slot_of(a, k, b, l);
  }

 private:
  __device__ int slot_of(int a, int k, int b, int l) const {
    const int plane = (a < half ? 0 : 2) + (b < half ? 0 : 1);
    return plane * crossings() + l * (l - 1) / 2 + k;
  }
};

template <class T>
constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
template <class T>
constexpr T kLargest = std::numeric_limits<T>::max();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

inline __device__ float reciprocal_root(float x) { return rsqrtf(x); }
inline __device__ double reciprocal_root(double x) { return rsqrt(x); }
inline __device__ float quotient(float x, float y) { return __fdividef(x, y); }
inline __device__ double quotient(double x, double y) { return x / y; }

template <class T>
struct alignas(2 * sizeof(T)) Rotation {
  T c, s;

  /// (x, y) becomes (c·x − s·y, s·x + c·y).
  __device__ void turn(T& x, T& y) const {
    const T turned = fma(c, x, -(s * y));
    y = fma(c, y, s * x);
    x = turned;
  }
};

/// The tangent of the angle that makes the symmetric matrix (x, a; a, y) diagonal, of two at most 45° away.
template <class T>
__device__ T tangent(T x, T a, T y) {
  const T d = y - x, twice = 2 * a, square = fma(d, d, twice * twice);
  return quotient(twice, d + copysign(square * reciprocal_root(square), d));
}

/// Its rotation. One Newton step on an approximate root keeps the length of what is turned; it starts from the product's
/// rounding error too, which in a thousand rotations of doubles would add up to more than the certificate allows.
template <class T>
__device__ Rotation<T> rotation(T t) {
  const T square = fma(t, t, T(1)), guess = reciprocal_root(square), product = square * guess;
  const T lost = fma(square, guess, -product), residual = fma(-lost, guess, fma(-product, guess, T(1)));
  const T c = fma(guess * T(0.5), residual, guess);
  return {c, t * c};
}

/// One component of all eigenvectors, by places: what a thread owns of V.
template <class T, int Pairs>
struct Components {
  T near[Pairs], far[Pairs];

  /// Row `rank` of the identity.
  __device__ void start(int half, int rank) {
#pragma unroll
    for (int k = 0; k < Pairs; ++k) {
      near[k] = T(k == rank ? 1 : 0);
      far[k] = T(k + half == rank ? 1 : 0);
    }
  }

  /// Turns pairs First ≤ k < Last and moves them on. `moving` goes from one part to the next.
  template <int First, int Last>
  __device__ void turn(int half, const Rotation<T>* rotations, T& moving) {
#pragma unroll
    for (int k = First; k < Last; ++k) {
      if (k < half) {
        T x = near[k], y = far[k];
        rotations[k].turn(x, y);
        near[k] = k == 0 ? x : moving;
        if (k > 0) far[k - 1] = y;
        moving = k == 0 ? y : x;
        if (k + 1 == half) far[k] = moving;
      }
    }
  }

  /// Writes them to column `rank` of Vᵀ (n, stride).
  __device__ void store(int n, int half, int rank, int stride, T* vectors_t) const {
#pragma unroll
    for (int k = 0; k < Pairs; ++k) {
      if (k < half) {
        vectors_t[k * stride + rank] = near[k];
        if (k + half < n) vectors_t[(k + half) * stride + rank] = far[k];
      }
    }
  }
};

constexpr int kMaxSweeps = 40;  ///< doubles of graded spectra take up to 20

/// What comes of it: the matrix by places, diagonal to the threshold unless there were kMaxSweeps.
template <class T>
struct Diagonalised {
  const T* numbers;
  int sweeps;
};

/// Whether any of the numbers is larger in magnitude. Every warp looks for itself.
template <class T>
__device__ bool any_above(const T* numbers, int count, T threshold, int lane) {
  bool above = false;
  for (int i = lane; i < count; i += 32) above |= fabs(numbers[i]) > threshold;
  return __any_sync(0xFFFFFFFF, above);
}

/// Turns pairs of rows whose entry is above the threshold, sweep by sweep, until none is. `numbers` holds the matrix by
/// places, its second half and `rotations` (2, half) are workspace; thread `rank` < n is left with component `rank` of the
/// eigenvectors. The first barrier is the caller's.
///
/// A round has two steps with a barrier after each. First some threads find the rotation of a pair each. Then each thread
/// turns what some two pairs have in common, and puts it where the pairs sit next, in the other copy. Threads that own
/// components apply the rotations of the round before, half of them in either step.
template <class T, int Pairs, int Warps>
__device__ Diagonalised<T> diagonalise(Seating seating, int n, T threshold, T* numbers, Rotation<T>* rotations,
                                       Components<T, Pairs>& own) {
  constexpr int kOwners = 2 * Pairs, kThreads = Team<Warps>::kThreads, kAside = kThreads > kOwners ? kOwners : 0;
  constexpr int kTurners = kThreads - kAside, kCrossings = Pairs * (Pairs - 1) / 2;
  constexpr int kEach = (kCrossings + kTurners - 1) / kTurners;

  const int half = seating.half, crossings = seating.crossings(), rank = Team<Warps>::rank(), turner = rank - kAside;
  const int pairs = seating.pairs(), diagonal = seating.diagonal();
  const bool finds = turner >= 0 && turner < half;
  const int place = finds ? turner : 0, opposite = place + half;
  const int to_near = seating.next(place), to_far = seating.next(opposite), to_pair = seating.slot(to_near, to_far);

  int first[kEach] = {}, second[kEach] = {}, to[kEach][4] = {};  // pairs k < l; new slots of what they have in common
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int k = turner + i * kTurners, l = 1;
    if (turner < 0 || k >= crossings) continue;
    for (; k >= l; ++l) k -= l;
    first[i] = k;
    second[i] = l;
#pragma unroll
    for (int plane = 0; plane < 4; ++plane) {
      to[i][plane] = seating.slot(seating.next(k + plane / 2 * half), seating.next(l + plane % 2 * half));
    }
  }

  T *from = numbers, *next = numbers + seating.size();
  Rotation<T>*found = rotations, *applied = rotations + half;
  int sweeps = 0;
  own.start(half, rank);
  for (; sweeps < kMaxSweeps && any_above(from, diagonal, threshold, Team<Warps>::lane()); ++sweeps) {
    for (int round = 0; round < seating.rounds(); ++round) {
      if (finds) {
        const T x = from[diagonal + place], a = from[pairs + place], y = from[diagonal + opposite];
        const bool turns = fabs(a) > threshold;
        const T t = turns ? tangent(x, a, y) : T(0);
        const Rotation<T> made = rotation(t);
        found[place] = made;
        next[diagonal + to_near] = fma(-t, a, x);
        next[diagonal + to_far] = fma(t, a, y);
        next[to_pair] = turns ? T(0) : a;
      }
      const bool turns_own = rank < n && sweeps + round > 0;
      T moving = 0;
      if (turns_own) own.template turn<0, Pairs / 2>(half, applied, moving);
      Team<Warps>::sync();

      if (turns_own) own.template turn<Pairs / 2, Pairs>(half, applied, moving);

#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int crossing = turner + i * kTurners;
        if (turner < 0 || crossing >= crossings) continue;
        const T* const at = from + crossing;
        T x = at[0], y = at[crossings], z = at[2 * crossings], w = at[3 * crossings];
        const Rotation<T> across = found[first[i]], along = found[second[i]];
        across.turn(x, z);
        across.turn(y, w);
        along.turn(x, y);
        along.turn(z, w);
        next[to[i][0]] = x;
        next[to[i][1]] = y;
        next[to[i][2]] = z;
        next[to[i][3]] = w;
      }
      Team<Warps>::sync();

      T* const old = from;
      from = next;
      next = old;
      Rotation<T>* const used = applied;
      applied = found;
      found = used;
    }
  }
  T moving = 0;
  if (rank < n && sweeps > 0) own.template turn<0, Pairs>(half, applied, moving);
  return {from, sweeps};
}

}  // namespace eigendamage::cuda
