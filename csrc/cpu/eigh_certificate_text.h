// The text of Certificate, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

template <class T>
T sum_of(Vector<T> v) {
  T lanes[kLanes<T>], sum = 0;
  store(lanes, v);
  for (const T lane : lanes) sum += lane;
  return sum;
}

// Bit p says whether component k of probe p is negative: random from one four to the next, a Hadamard matrix within, so
// that errors in the same four of columns cannot cancel.
inline std::uint32_t probe_bits(std::int64_t k) {
  std::uint64_t bits = static_cast<std::uint64_t>(k / 4 + 1) * 0x9e3779b97f4a7c15;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  constexpr std::uint32_t hadamard[4] = {0b0000, 0b1010, 0b1100, 0b0110};
  return static_cast<std::uint32_t>(bits >> 60) ^ hadamard[k % 4];
}

template <class T>
T probe_sign(std::int64_t k, std::int64_t probe) {
  return probe_bits(k) >> probe & 1 ? T(-1) : T(1);
}

// sums[p] = Σ_i row[i]·w[p·step + i], i < n
template <class T>
void dot_probes(std::int64_t n, const T* row, const T* w, std::int64_t step, T (&sums)[kProbes]) {
  Vector<T> partial[kProbes] = {};
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> x = load(row + i);
    for (int p = 0; p < kProbes; ++p) partial[p] += x * load(w + p * step + i);
  }
  for (int p = 0; p < kProbes; ++p) sums[p] = sum_of<T>(partial[p]);
  for (; i < n; ++i) {
    for (int p = 0; p < kProbes; ++p) sums[p] += row[i] * w[p * step + i];
  }
}

// Components of image = V·z and residual = −V·Λ·z for all probes z: one, or as many as a vector holds.
template <class T, class Column>
void apply_vectors(std::int64_t n, std::int64_t stride, const T* values, const T* vectors_t, T* image, T* residual) {
  Column sums[kProbes] = {}, weighted[kProbes] = {};
  for (std::int64_t k = 0; k < n; ++k) {
    Column x;
    __builtin_memcpy(&x, vectors_t + k * stride, sizeof x);
    const Column y = x * values[k];
    const std::uint32_t bits = probe_bits(k);
    for (int p = 0; p < kProbes; ++p) {
      const T sign = bits >> p & 1 ? T(-1) : T(1);
      sums[p] += sign * x;
      weighted[p] -= sign * y;
    }
  }
  for (int p = 0; p < kProbes; ++p) {
    __builtin_memcpy(image + p * n, &sums[p], sizeof sums[p]);
    __builtin_memcpy(residual + p * n, &weighted[p], sizeof weighted[p]);
  }
}

template <class T>
bool certificate_holds(std::int64_t n, std::int64_t stride, const T* a, const T* values, const T* vectors_t,
                       T* workspace) {
  T *const image = workspace, *const residual = image + kProbes * n;
  std::int64_t first = 0;
  for (; first + kLanes<T> <= n; first += kLanes<T>) {
    apply_vectors<T, Vector<T>>(n, stride, values, vectors_t + first, image + first, residual + first);
  }
  for (; first < n; ++first) {
    apply_vectors<T, T>(n, stride, values, vectors_t + first, image + first, residual + first);
  }

  T square = 0, residual_square = 0, skew_square = 0;
  for (std::int64_t i = 0; i < n; ++i) {  // residual += A·image, from the lower triangle
    const T* row = a + i * stride;
    T sums[kProbes], weights[kProbes];
    dot_probes(i + 1, row, image, n, sums);
    for (int p = 0; p < kProbes; ++p) weights[p] = image[p * n + i];
    Vector<T> squares = {};
    std::int64_t j = 0;
    for (; j + kLanes<T> <= i; j += kLanes<T>) {
      const Vector<T> x = load(row + j);
      squares += x * x;
      for (int p = 0; p < kProbes; ++p) {
        T* target = residual + p * n + j;
        store(target, load(target) + x * weights[p]);
      }
    }
    T row_square = sum_of<T>(squares);
    for (; j < i; ++j) {
      row_square += row[j] * row[j];
      for (int p = 0; p < kProbes; ++p) residual[p * n + j] += row[j] * weights[p];
    }
    square += 2 * row_square + row[i] * row[i];
    for (int p = 0; p < kProbes; ++p) residual[p * n + i] += sums[p];
  }
  for (std::int64_t i = 0; i < kProbes * n; ++i) residual_square += residual[i] * residual[i];
  for (std::int64_t k = 0; k < n; ++k) {
    T sums[kProbes];
    dot_probes(n, vectors_t + k * stride, image, n, sums);
    for (int p = 0; p < kProbes; ++p) {
      const T skew = sums[p] - probe_sign<T>(k, p);
      skew_square += skew * skew;
    }
  }
  const T gate = static_cast<T>(8 * n) * (sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52)), most = gate * gate * kProbes;
  return residual_square <= most * square && skew_square <= most;
}

template <class T>
void choose_sign(std::int64_t n, const T* in, T* out) {
  Vector<T> most = {}, least = {};
  std::int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> x = load(in + i);
    most = x > most ? x : most;
    least = x < least ? x : least;
  }
  T largest = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    largest = most[lane] > largest ? most[lane] : largest;
    largest = -least[lane] > largest ? -least[lane] : largest;
  }
  for (; i < n; ++i) {
    largest = in[i] > largest ? in[i] : largest;
    largest = -in[i] > largest ? -in[i] : largest;
  }
  std::int64_t first = 0;
  while (first < n && in[first] != largest && in[first] != -largest) ++first;
  const T sign = first < n && in[first] < 0 ? T(-1) : T(1);
  for (i = 0; i < n; ++i) out[i] = in[i] * sign + T(0);
}

template <class T>
constexpr Certificate<T> kCertificate{.holds = certificate_holds<T>, .choose_sign = choose_sign<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
