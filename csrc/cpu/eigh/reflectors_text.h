// The product of the reflectors of tridiagonal_text.h applied to eigenvectors, under the rules of simd_text.h.

#pragma once

#include "rotations_text.h"
#include "tridiagonal_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Reflectors applied in one pass, and vectors of eigenvectors they are applied to: as many sums as leave the registers room.
constexpr int kSums = EIGENDAMAGE_VECTOR_BYTES == 64 ? 24 : 8;
constexpr int kMostApplied = EIGENDAMAGE_VECTOR_BYTES == 64 ? 8 : 4;
template <class T>
constexpr int kApplied = kLanes<T> < kMostApplied ? kLanes<T> : kMostApplied;
template <class T>
constexpr int kAcross = kSums / kApplied<T>;

/// The reflectors of a Triangle, [reflector / kLanes][component][reflector % kLanes], and of each the factor and the
/// products with those before it in its pass.
template <class T>
struct Reflectors {
  std::int64_t n;
  const T* taus;
  T *overlaps, *entries;

  T* block(std::int64_t r) const { return entries + r * (r + kLanes<T>) / 2; }  // r is a multiple of kLanes
};

template <class T>
void find_overlaps(Triangle<T> a, std::int64_t first, T* overlaps) {
  for (int r = 1; r < kApplied<T>; ++r) {
    Vector<T> sums[kApplied<T>] = {};
    for (std::int64_t c = 0; c < first + r; c += kLanes<T>) {
      const Vector<T> here = load(a.at(first + r, c));
      const T* const others = a.at(first, c);
#pragma GCC unroll 8
      for (int i = 0; i < kApplied<T>; ++i) sums[i] += here * load(others + i * kPanel<T>);
    }
    T products[kApplied<T>];
    sum_each<T, kApplied<T>>(sums, products);
    for (int i = 0; i < r; ++i) overlaps[r * kApplied<T> + i] = products[i];
  }
}

template <class T>
void collect_reflectors(Triangle<T> a, const Reflectors<T>& reflectors) {
  for (std::int64_t first = 0; first < a.n; first += kLanes<T>) {
    T* to = reflectors.block(first);
    for (std::int64_t c = 0; c < first + kLanes<T>; c += kLanes<T>) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = load(a.at(first + i, c));
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i, to += kLanes<T>) store(to, square[i]);
    }
    for (std::int64_t r = first; r < first + kLanes<T>; r += kApplied<T>) {
      find_overlaps(a, r, reflectors.overlaps + r * kApplied<T>);
    }
  }
}

/// Applies the reflectors from `first` on, kApplied of them, to eigenvectors [component][Across·kLanes].
template <class T, int Across>
__attribute__((noinline)) void apply_some(const Reflectors<T>& reflectors, std::int64_t first, T* vectors) {
  constexpr int count = kApplied<T>;
  constexpr std::int64_t width = Across * kLanes<T>;
  const std::int64_t block = first / kLanes<T> * kLanes<T>, length = first + count - 1;
  const T* const entries = reflectors.block(block) + (first - block);
  Vector<T> sums[count][Across] = {};
  const T* entry = entries;
  T* line = vectors;
  for (std::int64_t j = 0; j < length; ++j, entry += kLanes<T>, line += width) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Across; ++v) sums[i][v] += load(line + v * kLanes<T>) * entry[i];
    }
  }
  const T* overlap = reflectors.overlaps + first * count;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i, overlap += count) {
    const T tau = first + i < reflectors.n ? reflectors.taus[first + i] : T(0);
#pragma GCC unroll 4
    for (int v = 0; v < Across; ++v) {
#pragma GCC unroll 8
      for (int k = 0; k < i; ++k) sums[i][v] -= sums[k][v] * overlap[k];
      sums[i][v] *= tau;
    }
  }
  entry = entries;
  line = vectors;
  for (std::int64_t j = 0; j < length; ++j, entry += kLanes<T>, line += width) {
    Vector<T> here[Across];
#pragma GCC unroll 4
    for (int v = 0; v < Across; ++v) here[v] = load(line + v * kLanes<T>);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Across; ++v) here[v] -= sums[i][v] * entry[i];
    }
#pragma GCC unroll 4
    for (int v = 0; v < Across; ++v) store(line + v * kLanes<T>, here[v]);
  }
}

/// Numbers of scratch that `apply_reflectors` needs.
constexpr std::int64_t reflector_scratch(std::int64_t n) {
  return round_up(n, kWidest) * (round_up(n, kWidest) + 4 * kWidest);
}

/// Row k of vectors_t becomes rows[order[k]]·Qᵀ. Some eigenvectors at a time lie side by side in vectors, where no sum runs
/// along one.
template <class T>
void apply_reflectors(Triangle<T> a, const T* taus, const T* const* rows, const std::int32_t* order,
                      std::int64_t stride, T* vectors_t, T* scratch) {
  const std::int64_t n = a.n, padded = round_up(n, kWidest);
  T *const overlaps = scratch, *const vectors = overlaps + padded * kApplied<T>,
           *const entries = vectors + padded * kAcross<T> * kLanes<T>;
  const Reflectors<T> reflectors{n, taus, overlaps, entries};
  collect_reflectors(a, reflectors);
  lanes::for_panels<kAcross<T>>((n + kLanes<T> - 1) / kLanes<T>, [&]<int Across>(std::int64_t panel) {
    constexpr std::int64_t width = Across * kLanes<T>;
    const std::int64_t begin = panel * kLanes<T>, count = n - begin < width ? n - begin : width;
    for (std::int64_t k = 0; k < width; k += kLanes<T>) {
      for (std::int64_t c = 0; c < n; c += kLanes<T>) {
        Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) {
          square[i] = k + i < count ? load(rows[order[begin + k + i]] + c) : Vector<T>{};
        }
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) store(vectors + (c + i) * width + k, square[i]);
      }
    }
    for (std::int64_t first = 0; first < n; first += kApplied<T>) apply_some<T, Across>(reflectors, first, vectors);
    for (std::int64_t k = 0; k < width; k += kLanes<T>) {
      for (std::int64_t c = 0; c < n; c += kLanes<T>) {
        Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) square[i] = load(vectors + (c + i) * width + k);
        transpose<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i) {
          if (k + i < count) store(vectors_t + (begin + k + i) * stride + c, square[i]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
