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
    const int k = a < half ? a : a - half, l = b < half ? b : b - half, first = min(k, l), second = max(k, l);
    const bool first_far = (k < l ? a : b) >= half, second_far = (k < l ? b : a) >= half;
    const int crossing = (2 * first_far + second_far) * crossings() + second * (second - 1) / 2 + first;
    return k != l ? crossing : a == b ? diagonal() + a : pairs() + k;
  }
};

template <class T>
constexpr T kEpsilon = std::numeric_limits<T>::epsilon();
template <class T>
constexpr T kSmallest = std::numeric_limits<T>::min();
template <class T>
constexpr T kLargest = std::numeric_limits<T>::max();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

// Approximations, up to two units in the last place off. Floats are normal numbers here: nothing is spent on others.
#ifdef __CUDACC__
inline __device__ float reciprocal_root(float x) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
inline __device__ float reciprocal(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}
#else  // as far off, and to one side, as a GPU's may be
inline float reciprocal_root(float x) { return rsqrtf(x) * (1 + kEpsilon<float>); }
inline float reciprocal(float x) { return 1 / x * (1 + kEpsilon<float>); }
#endif
inline __device__ double reciprocal_root(double x) { return rsqrt(x); }
inline __device__ double reciprocal(double x) { return 1 / x; }

/// exchange(x) of every number of a struct of numbers. The stand-in runtime exchanges structs as well, and faster.
template <class T, class Numbers, class Exchange>
__device__ Numbers exchanged(Numbers x, const Exchange& exchange) {
#ifdef __CUDACC__
  T* const numbers = reinterpret_cast<T*>(&x);
#pragma unroll
  for (unsigned i = 0; i < sizeof x / sizeof(T); ++i) numbers[i] = exchange(numbers[i]);
  return x;
#else
  return exchange(x);
#endif
}

template <class T>
struct Rotation {
  T c, s;

  /// (x, y) becomes (c·x − s·y, s·x + c·y).
  __device__ void turn(T& x, T& y) const {
    const T turned = fma(c, x, -(s * y));
    y = fma(c, y, s * x);
    x = turned;
  }

  /// What another lane of the same `width` lanes has.
  __device__ Rotation of(int lane, int width) const {
    return exchanged<T>(*this, [=](auto x) { return __shfl_sync(0xFFFFFFFF, x, lane, width); });
  }
};

/// The tangent of the angle that makes the symmetric matrix (x, a; a, y) diagonal, of two at most 45° away. What is added
/// to the square is lost in it unless a = 0, and then nothing turns.
template <class T>
__device__ T tangent(T x, T a, T y) {
  const T d = y - x, twice = 2 * a, square = fma(d, d, fma(twice, twice, kSmallest<T>));
  return twice * reciprocal(d + copysign(square * reciprocal_root(square), d));
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

/// What a thread owns of V: of some components, the entries at two opposite places. The threads are in groups of `Pairs`
/// lanes, a lane for each pair; the first group has components 0, kGroups, 2·kGroups, …
template <class T, int Pairs, int Warps>
struct Components {
  static constexpr int kGroups = Team<Warps>::kThreads / Pairs, kEach = 2 * Pairs / kGroups;
  struct Entries {
    T of[kEach];
  } near, far;

  static __device__ int pair() { return Team<Warps>::rank() % Pairs; }
  static __device__ int component(int i) { return Team<Warps>::rank() / Pairs + i * kGroups; }

  /// What move() makes the identity of.
  __device__ void start(Seating seating) {
    const int to_near = seating.next(pair()), to_far = seating.next(pair() + seating.half);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      near.of[i] = T(to_near == component(i) ? 1 : 0);
      far.of[i] = T(to_far == component(i) ? 1 : 0);
    }
  }

  __device__ void turn(const Rotation<T>& rotation) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) rotation.turn(near.of[i], far.of[i]);
  }

  /// By a chair.
  __device__ void move(int half) {
    const bool first = pair() == 0, last = pair() == half - 1;
    Entries up;
#pragma unroll
    for (int i = 0; i < kEach; ++i) up.of[i] = first ? far.of[i] : near.of[i];
    const Entries from_below = exchanged<T>(up, [](auto x) { return __shfl_up_sync(0xFFFFFFFF, x, 1, Pairs); });
    const Entries from_above = exchanged<T>(far, [](auto x) { return __shfl_down_sync(0xFFFFFFFF, x, 1, Pairs); });
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      near.of[i] = first ? near.of[i] : from_below.of[i];
      far.of[i] = last ? up.of[i] : from_above.of[i];
    }
  }

  /// Writes them to Vᵀ (n, stride).
  __device__ void store(int n, int half, int stride, T* vectors_t) const {
    const int near_place = pair(), far_place = pair() + half;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (near_place >= half || component(i) >= n) continue;
      vectors_t[near_place * stride + component(i)] = near.of[i];
      if (far_place < n) vectors_t[far_place * stride + component(i)] = far.of[i];
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
/// places, its second half is workspace; `own` becomes the thread's part of the eigenvectors. The first barrier is the
/// caller's.
///
/// A round ends with its only barrier. Every group of lanes finds all rotations for itself, a lane one. Then each thread
/// turns what some two pairs have in common, and puts it where the pairs sit next, in the other copy. Nobody waits for the
/// eigenvectors: they turn while the barrier is, and move on while the next rotations are found.
template <class T, int Pairs, int Warps>
__device__ Diagonalised<T> diagonalise(Seating seating, T threshold, T* numbers, Components<T, Pairs, Warps>& own) {
  constexpr int kThreads = Team<Warps>::kThreads, kCrossings = Pairs * (Pairs - 1) / 2;
  constexpr int kEach = (kCrossings + kThreads - 1) / kThreads;

  const int half = seating.half, crossings = seating.crossings(), rank = Team<Warps>::rank();
  const int pairs = seating.pairs(), diagonal = seating.diagonal();
  const int place = min(own.pair(), half - 1), opposite = place + half;
  const int to_near = seating.next(place), to_far = seating.next(opposite), to_pair = seating.slot(to_near, to_far);

  int at[kEach] = {}, first[kEach] = {}, second[kEach] = {}, to[kEach][4] = {};  // pairs k < l; slots before and after
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    int k = rank + i * kThreads, l = 1;
    if (k >= crossings) continue;
    at[i] = k;
    for (; k >= l; ++l) k -= l;
    first[i] = k;
    second[i] = l;
#pragma unroll
    for (int plane = 0; plane < 4; ++plane) {
      to[i][plane] = seating.slot(seating.next(k + plane / 2 * half), seating.next(l + plane % 2 * half));
    }
  }

  T *from = numbers, *next = numbers + seating.size();
  int sweeps = 0;
  own.start(seating);
  for (; sweeps < kMaxSweeps && any_above(from, diagonal, threshold, Team<Warps>::lane()); ++sweeps) {
    for (int round = 0; round < seating.rounds(); ++round) {
      own.move(half);
      const T x = from[diagonal + place], a = from[pairs + place], y = from[diagonal + opposite];
      const bool turns = fabs(a) > threshold;
      const T steepest = tangent(x, a, y), t = turns ? steepest : T(0);
      if (rank < half) {
        next[diagonal + to_near] = fma(-t, a, x);
        next[diagonal + to_far] = fma(t, a, y);
        next[to_pair] = turns ? T(0) : a;
      }
      const Rotation<T> found = rotation(t);
      own.turn(found);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (i > 0 && i * kThreads >= crossings) continue;
        const T* const old = from + at[i];
        T x = old[0], y = old[crossings], z = old[2 * crossings], w = old[3 * crossings];
        const Rotation<T> across = found.of(first[i], Pairs), along = found.of(second[i], Pairs);
        across.turn(x, z);
        across.turn(y, w);
        along.turn(x, y);
        along.turn(z, w);
        if (rank + i * kThreads >= crossings) continue;
        next[to[i][0]] = x;
        next[to[i][1]] = y;
        next[to[i][2]] = z;
        next[to[i][3]] = w;
      }
      Team<Warps>::sync();

      T* const old = from;
      from = next;
      next = old;
    }
  }
  own.move(half);
  return {from, sweeps};
}

}  // namespace eigendamage::cuda
