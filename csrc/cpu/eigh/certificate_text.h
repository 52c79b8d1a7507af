// The text of Certificate, under the rules of simd_text.h.

#pragma once

#include "numbers_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

constexpr int kHadamard = 4;  // rows and columns of the Hadamard matrix in the probes' signs
constexpr std::uint32_t kHadamardBits[kHadamard] = {0b0000, 0b1010, 0b1100, 0b0110};

// Bit p says whether component k of probe p is negative: random from one four to the next, a Hadamard matrix within, so
// that errors in the same four of columns cannot cancel.
inline std::uint32_t probe_bits(std::int64_t k) {
  std::uint64_t bits = static_cast<std::uint64_t>(k / kHadamard + 1) * 0x9e3779b97f4a7c15;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  return static_cast<std::uint32_t>(bits >> 60) ^ kHadamardBits[k % kHadamard];
}

template <class T>
T probe_sign(std::int64_t k, std::int64_t probe) {
  return probe_bits(k) >> probe & 1 ? T(-1) : T(1);
}

// Rows of a matrix, and vectors of its columns, that are taken together.
constexpr int kCertifiedRows = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 1;
constexpr int kCertifiedColumns = EIGENDAMAGE_VECTOR_BYTES == 64 ? 2 : 1;

/// A number of each probe for each row, [probe][step], zero from row n on: the probes themselves, V·z, V·Λ·z less what
/// A·V·z is without sums along rows, and sums along rows.
template <class T>
struct Probes {
  std::int64_t n, step;
  T *signs, *image, *residual, *products;

  Probes(std::int64_t size, T* workspace)
      : n(size),
        step(round_up(size, kLanes<T>)),
        signs(workspace),
        image(signs + kProbes * step),
        residual(image + kProbes * step),
        products(residual + kProbes * step) {
    for (int p = 0; p < kProbes; ++p) {
      for (std::int64_t k = n; k < step; ++k) signs[p * step + k] = products[p * step + k] = 0;
    }
    for (std::int64_t k = 0; k < n; k += kHadamard) {
      const std::uint32_t bits = probe_bits(k);
      for (std::int64_t i = 0; i < kHadamard && k + i < n; ++i) {
        for (int p = 0; p < kProbes; ++p) {
          signs[p * step + k + i] = (bits ^ kHadamardBits[i]) >> p & 1 ? T(-1) : T(1);
        }
      }
    }
  }

  /// Σ (x[i] − y[i])².
  T distance(const T* x, const T* y) const {
    Vector<T> squares{};
    for (std::int64_t i = 0; i < kProbes * step; i += kLanes<T>) {
      const Vector<T> difference = load(x + i) - load(y + i);
      squares += difference * difference;
    }
    return sum_lanes<T>(squares);
  }

  /// products of rows k … of some matrix from the partial sums of row r and probe p at p·kCertifiedRows + r.
  void keep_sums(std::int64_t k, const Vector<T> (&partial)[kProbes * kCertifiedRows]) const {
    T sums[kProbes * kCertifiedRows];
    sum_each<T, kProbes * kCertifiedRows>(partial, sums);
    for (int p = 0; p < kProbes; ++p) {
      __builtin_memcpy(products + p * step + k, sums + p * kCertifiedRows, kCertifiedRows * sizeof(T));
    }
  }
};

/// sums += the signs of four rows times them: a Hadamard transform, then the random signs, those of the first row.
template <class T>
inline __attribute__((always_inline)) void add_rows(const T* signs, std::int64_t step, const Vector<T> (&x)[kHadamard],
                                                    Vector<T> (&sums)[kProbes]) {
  const Vector<T> even = x[0] + x[2], odd = x[1] + x[3], even_rest = x[0] - x[2], odd_rest = x[1] - x[3];
  const Vector<T> transformed[kProbes] = {even + odd, even - odd, even_rest + odd_rest, even_rest - odd_rest};
#pragma GCC unroll 4
  for (int p = 0; p < kProbes; ++p) sums[p] += transformed[p] * signs[p * step];
}

/// Columns of image = V·z and residual = V·Λ·z.
template <class T, int Columns>
void apply_vectors(std::int64_t stride, const T* values, const T* vectors_t, std::int64_t first,
                   const Probes<T>& probes) {
  Vector<T> sums[Columns][kProbes] = {}, weighted[Columns][kProbes] = {};
  for (std::int64_t k = 0; k < probes.n; k += kHadamard) {
#pragma GCC unroll 2
    for (int c = 0; c < Columns; ++c) {
      Vector<T> x[kHadamard], y[kHadamard];
#pragma GCC unroll 4
      for (int i = 0; i < kHadamard; ++i) {
        const bool exists = k + i < probes.n;
        x[i] = exists ? load(vectors_t + (k + i) * stride + first + c * kLanes<T>) : Vector<T>{};
        y[i] = x[i] * (exists ? values[k + i] : T(0));
      }
      add_rows<T>(probes.signs + k, probes.step, x, sums[c]);
      add_rows<T>(probes.signs + k, probes.step, y, weighted[c]);
    }
  }
  for (int c = 0; c < Columns; ++c) {
    const std::int64_t column = first + c * kLanes<T>;
    for (int p = 0; p < kProbes; ++p) {
      store(probes.image + p * probes.step + column, until<T>(sums[c][p], column, probes.n));
      store(probes.residual + p * probes.step + column, until<T>(weighted[c][p], column, probes.n));
    }
  }
}

/// products = A·image and, for the part above the diagonal, residual −= A·image, as far as rows i … of the lower triangle of
/// A go; squares += theirs, twice what lies left of the diagonal.
template <class T>
void multiply_lower(std::int64_t i, const T* a, std::int64_t stride, const Probes<T>& probes, Vector<T>& squares) {
  constexpr int rows = kCertifiedRows;
  const std::int64_t step = probes.step, count = probes.n - i < rows ? probes.n - i : rows;
  Vector<T> partial[kProbes * rows] = {};
  T weights[kProbes * rows];
  for (int p = 0; p < kProbes; ++p) {
    for (int r = 0; r < rows; ++r) weights[p * rows + r] = r < count ? probes.image[p * step + i + r] : T(0);
  }
  const auto multiply = [&](std::int64_t j, const Vector<T>(&left)[rows], const Vector<T>(&with_diagonal)[rows]) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) squares += left[r] * left[r] + with_diagonal[r] * with_diagonal[r];
#pragma GCC unroll 4
    for (int p = 0; p < kProbes; ++p) {
      T* const target = probes.residual + p * step + j;
      const Vector<T> across = load(probes.image + p * step + j);
      Vector<T> sum = load(target);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        partial[p * rows + r] += with_diagonal[r] * across;
        sum -= left[r] * weights[p * rows + r];
      }
      store(target, sum);
    }
  };
  const T* const lines = a + i * stride;
  std::int64_t j = 0;
  for (; j + kLanes<T> <= i && count == rows; j += kLanes<T>) {
    Vector<T> x[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) x[r] = load(lines + r * stride + j);
    multiply(j, x, x);
  }
  for (; j < i + count; j += kLanes<T>) {
    Vector<T> left[rows] = {}, with_diagonal[rows] = {};
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      if (r >= count) continue;
      left[r] = load_until(lines + r * stride, j, i + r);
      with_diagonal[r] = load_until(lines + r * stride, j, i + r + 1);
    }
    multiply(j, left, with_diagonal);
  }
  probes.keep_sums(i, partial);
}

/// products = Vᵀ·image, as far as rows k … of Vᵀ go.
template <class T>
void multiply_vectors(std::int64_t k, const T* vectors_t, std::int64_t stride, const Probes<T>& probes) {
  constexpr int rows = kCertifiedRows;
  Vector<T> partial[kProbes * rows] = {};
  for (std::int64_t i = 0; i < probes.n; i += kLanes<T>) {
    Vector<T> x[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      x[r] = k + r < probes.n ? load_until(vectors_t + (k + r) * stride, i, probes.n) : Vector<T>{};
    }
#pragma GCC unroll 4
    for (int p = 0; p < kProbes; ++p) {
      const Vector<T> across = load(probes.image + p * probes.step + i);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) partial[p * rows + r] += x[r] * across;
    }
  }
  probes.keep_sums(k, partial);
}

template <class T>
bool certificate_holds(std::int64_t n, std::int64_t stride, const T* a, const T* values, const T* vectors_t,
                       T* workspace) {
  const Probes<T> probes(n, workspace);
  std::int64_t first = 0;
  for (; first + kCertifiedColumns * kLanes<T> <= probes.step; first += kCertifiedColumns * kLanes<T>) {
    apply_vectors<T, kCertifiedColumns>(stride, values, vectors_t, first, probes);
  }
  if (first < probes.step) apply_vectors<T, 1>(stride, values, vectors_t, first, probes);

  Vector<T> squares{};
  for (std::int64_t i = 0; i < n; i += kCertifiedRows) multiply_lower(i, a, stride, probes, squares);
  const T residual_square = probes.distance(probes.products, probes.residual);
  for (std::int64_t k = 0; k < n; k += kCertifiedRows) multiply_vectors(k, vectors_t, stride, probes);
  const T skew_square = probes.distance(probes.products, probes.signs);

  const T square = sum_lanes<T>(squares);
  const T gate = static_cast<T>(8 * n) * (sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52)), most = gate * gate * kProbes;
  return residual_square <= most * square && skew_square <= most;
}

template <class T>
void place_row(std::int64_t n, const T* in, T sign, T* out) {
  if (n < kLanes<T>) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = in[i] * sign + T(0);
    return;
  }
  for (std::int64_t i = 0; i < n; i += kLanes<T>) {
    const std::int64_t last = n - kLanes<T>, here = i < last ? i : last;  // overlaps the one before
    store(out + here, load(in + here) * sign + T(0));
  }
}

/// −1 if the first component of a magnitude is negative, else 1.
template <class T>
T sign_of_first(std::int64_t n, const T* in, T size) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (magnitude(in[i]) == size) return in[i] < 0 ? T(-1) : T(1);
  }
  return T(1);
}

template <class T>
void place_rows(std::int64_t n, std::int64_t stride, const T* vectors_t, const T* ranks, T* out) {
  for (std::int64_t k = 0; k < n; k += kLanes<T>) {
    const std::int64_t count = n - k < kLanes<T> ? n - k : kLanes<T>;
    Vector<T> most[kLanes<T>] = {}, least[kLanes<T>] = {};
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t i = 0; i < n; i += kLanes<T>) {
        const Vector<T> x = load_until(vectors_t + (k + r) * stride, i, n);
        most[r] = larger(most[r], x);
        least[r] = larger(least[r], -x);
      }
    }
    const Vector<T> positive = join_interleaved<T, kLanes<T>, Larger<T>>(most);
    const Vector<T> negative = join_interleaved<T, kLanes<T>, Larger<T>>(least);
    T signs[kLanes<T>], sizes[kLanes<T>];
    store(signs, positive < negative ? spread(T(-1)) : spread(T(1)));
    store(sizes, positive == negative ? positive : Vector<T>{});
    for (std::int64_t r = 0; r < count; ++r) {
      const T* const in = vectors_t + (k + r) * stride;
      if (sizes[r] > 0) signs[r] = sign_of_first(n, in, sizes[r]);
      place_row(n, in, signs[r], out + static_cast<std::int64_t>(ranks[k + r]) * n);
    }
  }
}

template <class T>
void rank_values(std::int64_t n, const T* values, T* ranks) {
  for (std::int64_t first = 0; first < n; first += kLanes<T>) {
    const Vector<T> value = load(values + first), place = lane_numbers<T>() + static_cast<T>(first);
    const std::int64_t end = first + kLanes<T> < n ? first + kLanes<T> : n;
    typename VectorOf<T>::index rank{};  // of all bits for a lane that counts
    for (std::int64_t k = 0; k < first; ++k) rank -= spread(values[k]) <= value;
    for (std::int64_t k = first; k < end; ++k) {
      const Vector<T> other = spread(values[k]);
      rank -= (other < value) | ((other == value) & (spread(static_cast<T>(k)) < place));
    }
    for (std::int64_t k = end; k < n; ++k) rank -= spread(values[k]) < value;
    store(ranks + first, __builtin_convertvector(rank, Vector<T>));
  }
}

template <class T>
constexpr Certificate<T> kCertificate{
    .holds = certificate_holds<T>, .rank = rank_values<T>, .place_rows = place_rows<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
