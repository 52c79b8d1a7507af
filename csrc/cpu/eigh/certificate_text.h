// The text of Certificate, under the rules of simd_text.h.

#pragma once

#include "numbers_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

constexpr int kHadamard = 4;  // rows and columns of the Hadamard matrix in the probes' signs

// Bit p says whether component k of probe p is negative: random from one four to the next, a Hadamard matrix within, so
// that errors in the same four of columns cannot cancel.
inline std::uint32_t probe_bits(std::int64_t k) {
  std::uint64_t bits = static_cast<std::uint64_t>(k / kHadamard + 1) * 0x9e3779b97f4a7c15;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  constexpr std::uint32_t hadamard[kHadamard] = {0b0000, 0b1010, 0b1100, 0b0110};
  return static_cast<std::uint32_t>(bits >> 60) ^ hadamard[k % kHadamard];
}

template <class T>
T probe_sign(std::int64_t k, std::int64_t probe) {
  return probe_bits(k) >> probe & 1 ? T(-1) : T(1);
}

/// The vector at row + first of a row of `count` numbers, 0 behind its end.
template <class T>
Vector<T> load_until(const T* row, std::int64_t first, std::int64_t count) {
  const Vector<T> x = load(row + first);
  return first + kLanes<T> <= count ? x : lane_numbers<T>() < static_cast<T>(count - first) ? x : Vector<T>{};
}

// sums[p] = Σ_i row[i]·probes[p·step + i], i < n; the probes are 0 from n on.
template <class T>
void dot_probes(std::int64_t n, const T* row, const T* probes, std::int64_t step, T (&sums)[kProbes]) {
  Vector<T> partial[kProbes] = {};
  for (std::int64_t i = 0; i < n; i += kLanes<T>) {
    const Vector<T> x = load_until(row, i, n);
    for (int p = 0; p < kProbes; ++p) partial[p] += x * load(probes + p * step + i);
  }
  sum_each<T, kProbes>(partial, sums);
}

/// sums += the probes' signs times four rows of which the first has the number k: a Hadamard transform, then the random signs.
template <class T>
inline __attribute__((always_inline)) void add_rows(std::int64_t k, const Vector<T> (&x)[kHadamard],
                                                    Vector<T> (&sums)[kProbes]) {
  const Vector<T> even = x[0] + x[2], odd = x[1] + x[3], even_rest = x[0] - x[2], odd_rest = x[1] - x[3];
  const Vector<T> transformed[kProbes] = {even + odd, even - odd, even_rest + odd_rest, even_rest - odd_rest};
  for (int p = 0; p < kProbes; ++p) sums[p] += transformed[p] * probe_sign<T>(k, p);
}

/// Components first … of image = V·z and residual = −V·Λ·z for all probes z.
template <class T>
void apply_vectors(std::int64_t n, std::int64_t stride, const T* values, const T* vectors_t, std::int64_t first,
                   T* image, T* residual, std::int64_t step) {
  Vector<T> sums[kProbes] = {}, weighted[kProbes] = {};
  for (std::int64_t k = 0; k < n; k += kHadamard) {
    Vector<T> x[kHadamard] = {}, y[kHadamard] = {};
    for (int i = 0; i < kHadamard; ++i) {
      if (k + i == n) break;
      x[i] = load(vectors_t + (k + i) * stride + first);
      y[i] = x[i] * -values[k + i];
    }
    add_rows<T>(k, x, sums);
    add_rows<T>(k, y, weighted);
  }
  for (int p = 0; p < kProbes; ++p) {
    store(image + p * step, sums[p]);
    store(image + p * step, load_until(image + p * step, 0, n - first));
    store(residual + p * step, weighted[p]);
  }
}

template <class T>
bool certificate_holds(std::int64_t n, std::int64_t stride, const T* a, const T* values, const T* vectors_t,
                       T* workspace) {
  const std::int64_t step = round_up(n, kLanes<T>);
  T *const image = workspace, *const residual = image + kProbes * step;
  for (std::int64_t first = 0; first < n; first += kLanes<T>) {
    apply_vectors<T>(n, stride, values, vectors_t, first, image + first, residual + first, step);
  }

  Vector<T> squares = {};
  T diagonal_square = 0, residual_square = 0, skew_square = 0;
  for (std::int64_t i = 0; i < n; ++i) {  // residual += A·image, from the lower triangle
    const T* row = a + i * stride;
    T sums[kProbes], weights[kProbes];
    for (int p = 0; p < kProbes; ++p) weights[p] = image[p * step + i];
    Vector<T> partial[kProbes] = {};
    for (std::int64_t j = 0; j < i; j += kLanes<T>) {
      const Vector<T> x = load_until(row, j, i);
      squares += x * x;
      for (int p = 0; p < kProbes; ++p) {
        T* target = residual + p * step + j;
        partial[p] += x * load(image + p * step + j);
        store(target, load(target) + x * weights[p]);
      }
    }
    sum_each<T, kProbes>(partial, sums);
    diagonal_square += row[i] * row[i];
    for (int p = 0; p < kProbes; ++p) residual[p * step + i] += sums[p] + row[i] * weights[p];
  }
  for (int p = 0; p < kProbes; ++p) {
    for (std::int64_t i = 0; i < n; ++i) residual_square += residual[p * step + i] * residual[p * step + i];
  }
  for (std::int64_t k = 0; k < n; ++k) {
    T sums[kProbes];
    dot_probes(n, vectors_t + k * stride, image, step, sums);
    for (int p = 0; p < kProbes; ++p) {
      const T skew = sums[p] - probe_sign<T>(k, p);
      skew_square += skew * skew;
    }
  }
  const T square = 2 * sum_lanes<T>(squares) + diagonal_square;
  const T gate = static_cast<T>(8 * n) * (sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52)), most = gate * gate * kProbes;
  return residual_square <= most * square && skew_square <= most;
}

/// The largest lane.
template <class T, int Distance = kLanes<T> / 2>
inline __attribute__((always_inline)) T largest_lane(Vector<T> x) {
  typename VectorOf<T>::index at{};
  for (int i = 0; i < kLanes<T>; ++i) at[i] = (i + Distance) % kLanes<T>;
  const Vector<T> most = larger(x, shuffle<T>(x, x, at));
  if constexpr (Distance > 1) return largest_lane<T, Distance / 2>(most);
  return most[0];
}

template <class T>
void choose_sign(std::int64_t n, const T* in, T* out) {
  Vector<T> largest = spread(T(-1)), place{};  // in each lane, the first place of its largest magnitude
  for (std::int64_t i = 0; i < n; i += kLanes<T>) {
    const Vector<T> size = magnitude(load_until(in, i, n));
    const auto above = size > largest;
    place = above ? lane_numbers<T>() + static_cast<T>(i) : place;
    largest = above ? size : largest;
  }
  const Vector<T> beyond = spread(static_cast<T>(2 * n));
  const T first = -largest_lane<T>(-(largest == largest_lane<T>(largest) ? place : beyond));
  const T sign = in[static_cast<std::int64_t>(first)] < 0 ? T(-1) : T(1);
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(out + i, load(in + i) * sign + T(0));
  for (; i < n; ++i) out[i] = in[i] * sign + T(0);
}

template <class T>
void rank_values(std::int64_t n, const T* values, T* ranks) {
  for (std::int64_t first = 0; first < n; first += kLanes<T>) {
    const Vector<T> value = load(values + first), place = lane_numbers<T>() + static_cast<T>(first);
    Vector<T> rank{};
    for (std::int64_t k = 0; k < n; ++k) {
      const Vector<T> other = spread(values[k]);
      const auto before = (other < value) | ((other == value) & (spread(static_cast<T>(k)) < place));
      rank += before ? spread(T(1)) : Vector<T>{};
    }
    store(ranks + first, rank);
  }
}

template <class T>
constexpr Certificate<T> kCertificate{
    .holds = certificate_holds<T>, .choose_sign = choose_sign<T>, .rank = rank_values<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
