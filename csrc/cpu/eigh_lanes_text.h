// The text of LaneSolver, included after simd_text.h under the same rules. A Vector holds one number of each matrix;
// where lanes must part company, masks choose. Matrices are scaled to max|a| in [1/2, 1) first.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "eigh_certificate_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

template <class T>
using Mask = typename VectorOf<T>::index;  // all bits of a lane or none; also small integers

template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float epsilon = 0x1p-23f;
  static constexpr float least_square = 0x1p-80f;  // of what may enter a square root: least normal number / epsilon²
};
template <>
struct Format<double> {
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double epsilon = 0x1p-52;
  static constexpr double least_square = 0x1p-918;
};

template <class T>
Vector<T> square_root(Vector<T> x) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
  } else {
    return (Vector<T>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
  }
#elif defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm256_sqrt_ps((__m256)x);
  } else {
    return (Vector<T>)_mm256_sqrt_pd((__m256d)x);
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm_sqrt_ps((__m128)x);
  } else {
    return (Vector<T>)_mm_sqrt_pd((__m128d)x);
  }
#else
  for (int lane = 0; lane < kLanes<T>; ++lane)
    x[lane] = sizeof(T) == 4 ? __builtin_sqrtf(x[lane]) : __builtin_sqrt(x[lane]);
  return x;
#endif
}

template <class T>
Vector<T> all_lanes(T x) {
  return Vector<T>{} + x;
}

template <class T>
Vector<T> magnitude(Vector<T> x) {
  return (Vector<T>)((Mask<T>)x & ~(Mask<T>)(-Vector<T>{}));
}

template <class T>
bool any(Mask<T> mask) {
  long long bits[EIGENDAMAGE_VECTOR_BYTES / 8], found = 0;
  __builtin_memcpy(bits, &mask, sizeof mask);
  for (const long long part : bits) found |= part;
  return found != 0;
}

// 2^exponent inside the normal range.
template <class T>
Vector<T> power_of_two(Mask<T> exponent) {
  return (Vector<T>)((exponent + Format<T>::bias) << Format<T>::mantissa);
}

// x·2^exponent, in two steps because one factor may be beyond the range of T.
template <class T>
struct Scaling {
  Vector<T> half, rest;

  explicit Scaling(Mask<T> exponent)
      : half(power_of_two<T>(exponent >> 1)), rest(power_of_two<T>(exponent - (exponent >> 1))) {}
  Vector<T> operator()(Vector<T> x) const { return x * half * rest; }
};

// The exponent e with x / 2^e in [1/2, 1); x is finite, and 0 has the exponent 0.
template <class T>
Mask<T> exponent_of(Vector<T> x) {
  constexpr int raise = 64;  // out of the subnormal numbers
  const Mask<T> low = x < power_of_two<T>(Mask<T>{} - raise);
  const Vector<T> normal = low ? x * power_of_two<T>(Mask<T>{} + raise) : x;
  const Mask<T> exponent = ((Mask<T>)normal >> Format<T>::mantissa) - (Format<T>::bias - 1);
  return x == 0 ? Mask<T>{} : exponent - (low & raise);
}

// Brings max|a| of each lane into [1/2, 1) and returns the exponent taken out; a lane that is not finite becomes 0.
template <class T>
Mask<T> prescale(std::int64_t n, Vector<T>* a, Mask<T>& finite) {
  Mask<T> largest = {};
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const Mask<T> bits = (Mask<T>)magnitude<T>(a[i * n + j]);
      largest = bits > largest ? bits : largest;
    }
  }
  finite = largest < (Mask<T>)all_lanes<T>(T(__builtin_inf()));
  const Mask<T> exponent = exponent_of<T>((Vector<T>)(largest & finite));
  const Scaling<T> scale(-exponent);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const Vector<T> kept = (Vector<T>)((Mask<T>)a[i * n + j] & finite);
      a[i * n + j] = scale(kept);
    }
  }
  return exponent;
}

// Householder's reduction from the last row up: d and e hold the tridiagonal matrix (e[i] between i and i + 1), row i of a
// the reflector 1 − tau[i]·v·vᵀ that cleared it.
template <class T>
void tridiagonalise(std::int64_t n, Vector<T>* a, Vector<T>* d, Vector<T>* e, Vector<T>* tau, Vector<T>* w) {
  for (std::int64_t i = n - 1; i > 0; --i) {
    Vector<T>* v = a + i * n;
    d[i] = v[i];
    Vector<T> square = {};
    for (std::int64_t k = 0; k < i - 1; ++k) square += v[k] * v[k];
    const Vector<T> pivot = v[i - 1];
    // A reflector made of underflowing noise would not be orthogonal, and what it would clear is far below rounding.
    const Mask<T> nothing = square <= Format<T>::least_square;
    const Vector<T> length = square_root<T>(pivot * pivot + square);
    const Vector<T> left = nothing ? pivot : pivot > 0 ? -length : length;
    const Vector<T> one = all_lanes<T>(1), zero = {};
    const Vector<T> inverse = nothing ? zero : one / (pivot - left);
    const Vector<T> factor = nothing ? zero : (left - pivot) / left;
    e[i - 1] = left;
    tau[i] = factor;
    for (std::int64_t k = 0; k < i - 1; ++k) v[k] *= inverse;
    v[i - 1] = one;

    for (std::int64_t j = 0; j < i; ++j) {
      const Vector<T>* row = a + j * n;
      Vector<T> sum = row[j] * v[j];
      for (std::int64_t k = 0; k < j; ++k) {
        sum += row[k] * v[k];
        w[k] += row[k] * v[j];
      }
      w[j] = sum;
    }
    Vector<T> overlap = {};
    for (std::int64_t j = 0; j < i; ++j) {
      w[j] *= factor;
      overlap += w[j] * v[j];
    }
    overlap *= factor * T(0.5);
    for (std::int64_t j = 0; j < i; ++j) {
      w[j] -= overlap * v[j];
      Vector<T>* row = a + j * n;
      for (std::int64_t k = 0; k <= j; ++k) row[k] -= v[j] * w[k] + w[j] * v[k];
    }
  }
  d[0] = a[0];
}

// Row k of z becomes column k of the product of the reflectors.
template <class T>
void accumulate(std::int64_t n, const Vector<T>* a, const Vector<T>* tau, Vector<T>* z) {
  for (std::int64_t k = 0; k < n; ++k) {
    for (std::int64_t j = 0; j < n; ++j) z[k * n + j] = all_lanes<T>(k == j);
  }
  for (std::int64_t i = 2; i < n; ++i) {
    const Vector<T>* v = a + i * n;
    for (std::int64_t k = 0; k < i; ++k) {
      Vector<T>* row = z + k * n;
      Vector<T> sum = {};
      for (std::int64_t j = 0; j < i; ++j) sum += v[j] * row[j];
      sum *= tau[i];
      for (std::int64_t j = 0; j < i; ++j) row[j] -= sum * v[j];
    }
  }
}

// In each lane, the first block of the tridiagonal matrix that is not yet diagonal: rows first … last.
template <class T>
struct Block {
  Mask<T> first, last;
  std::int64_t least_first, most_last;  // over the lanes that have one
  Vector<T> shift;                      // d[last] minus Wilkinson's shift
  Mask<T> open;                         // there is one
};

// Sets what is negligible in e to 0 and finds the blocks, both from row `begin` on.
template <class T>
Block<T> next_block(std::int64_t begin, std::int64_t n, const Vector<T>* d, Vector<T>* e, Vector<T> negligible) {
  constexpr T epsilon = Format<T>::epsilon;
  Block<T> block{};
  Mask<T> end = Mask<T>{} + static_cast<int>(n - 1);
  block.least_first = n - 1;
  Vector<T> d_end = d[n - 1], d_last = {}, d_first = {}, d_second = {}, beside = all_lanes<T>(1);
  for (std::int64_t i = n - 2; i >= begin; --i) {
    const Vector<T> size = magnitude<T>(e[i]);
    const Mask<T> split = (size <= negligible) | (size * size <= epsilon * epsilon * magnitude<T>(d[i] * d[i + 1]));
    const Mask<T> joined = ~split;
    e[i] = (Vector<T>)((Mask<T>)e[i] & joined);
    const Mask<T> here = Mask<T>{} + static_cast<int>(i);
    end = split ? here : end;
    d_end = split ? d[i] : d_end;
    block.first = joined ? here : block.first;
    block.last = joined ? end : block.last;
    d_last = joined ? d_end : d_last;
    d_first = joined ? d[i] : d_first;
    d_second = joined ? d[i + 1] : d_second;
    beside = joined ? e[i] : beside;
    block.open |= joined;
    if (any<T>(joined)) block.least_first = i;
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    block.most_last = block.last[lane] > block.most_last ? block.last[lane] : block.most_last;
  }
  const Vector<T> slope = (d_second - d_first) / (2 * beside);
  const Vector<T> root = square_root<T>(slope * slope + 1);
  block.shift = d_last - d_first + beside / (slope + (slope < 0 ? -root : root));
  return block;
}

// Rows lower and upper = lower + n of z: a rotation of two eigenvectors.
template <class T>
void rotate(std::int64_t n, Vector<T> c, Vector<T> s, Vector<T>* z) {
  for (std::int64_t k = 0; k < n; ++k) {
    const Vector<T> lower = z[k], upper = z[n + k];
    z[n + k] = s * lower + c * upper;
    z[k] = c * lower - s * upper;
  }
}

// One implicit QL sweep over the block of each lane.
template <class T>
void sweep(std::int64_t n, const Block<T>& block, Vector<T>* d, Vector<T>* e, Vector<T>* z) {
  const Vector<T> one = all_lanes<T>(1), zero = {};
  Vector<T> s = one, c = one, moved = zero, g = block.shift;
  Mask<T> chasing = block.open;
  for (std::int64_t i = block.most_last - 1; i >= block.least_first; --i) {
    const Mask<T> here = Mask<T>{} + static_cast<int>(i);
    const Mask<T> inside = chasing & (here >= block.first) & (here < block.last);
    const Vector<T> f = s * e[i], b = c * e[i];
    const Vector<T> square = f * f + g * g;
    // The bulge has vanished: the block splits below row i, the rest of it waits for the next sweep.
    const Mask<T> split = inside & (square <= Format<T>::least_square);
    const Mask<T> turned = inside & ~split;
    const Vector<T> length = square_root<T>(square), inverse = one / length;
    const Vector<T> next_s = f * inverse, next_c = g * inverse;
    const Vector<T> rest = d[i + 1] - moved;
    const Vector<T> r = (d[i] - rest) * next_s + 2 * next_c * b;
    const Vector<T> next_moved = next_s * r, next_g = next_c * r - b;

    const Mask<T> joined = turned & (here + 1 < block.last);
    e[i + 1] = joined ? length : split ? zero : e[i + 1];
    d[i + 1] = turned ? rest + next_moved : split ? rest : d[i + 1];
    const Mask<T> finished = turned & (here == block.first);
    d[i] = finished ? d[i] - next_moved : d[i];
    e[i] = finished ? next_g : split ? b : e[i];
    s = turned ? next_s : s;
    c = turned ? next_c : c;
    moved = turned ? next_moved : moved;
    g = turned ? next_g : g;
    chasing &= ~split;
    rotate<T>(n, turned ? next_c : one, turned ? next_s : zero, z + i * n);
  }
}

// Returns the lanes that did not converge.
template <class T>
Mask<T> diagonalise(std::int64_t n, Vector<T>* d, Vector<T>* e, Vector<T>* z) {
  Vector<T> largest = magnitude<T>(d[n - 1]);
  for (std::int64_t i = 0; i < n - 1; ++i) {
    const Vector<T> on = magnitude<T>(d[i]), beside = magnitude<T>(e[i]);
    largest = on > largest ? on : largest;
    largest = beside > largest ? beside : largest;
  }
  const Vector<T> negligible = largest * (Format<T>::epsilon / 2);
  std::int64_t begin = 0;
  for (std::int64_t sweeps = 0; sweeps < 30 * n; ++sweeps) {
    const Block<T> block = next_block<T>(begin, n, d, e, negligible);
    if (block.least_first == n - 1) return Mask<T>{};
    begin = block.least_first;
    sweep<T>(n, block, d, e, z);
  }
  return next_block<T>(begin, n, d, e, negligible).open;
}

// As Certificate::holds, for all lanes.
template <class T>
Mask<T> certify(std::int64_t n, const Vector<T>* a, const Vector<T>* values, const Vector<T>* z, Vector<T>* image,
                Vector<T>* residual) {
  Vector<T> residual_square = {}, skew_square = {}, square = {};
  for (int probe = 0; probe < kProbes; ++probe) {
    for (std::int64_t i = 0; i < n; ++i) image[i] = residual[i] = Vector<T>{};
    for (std::int64_t k = 0; k < n; ++k) {
      const Vector<T> sign = all_lanes<T>(probe_sign<T>(k, probe)), weight = values[k] * sign;
      for (std::int64_t i = 0; i < n; ++i) {
        image[i] += sign * z[k * n + i];
        residual[i] -= weight * z[k * n + i];
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      Vector<T> sum = residual[i] + a[i * n + i] * image[i];
      for (std::int64_t j = 0; j < i; ++j) {
        sum += a[i * n + j] * image[j];
        residual[j] += a[i * n + j] * image[i];
      }
      residual[i] = sum;
    }
    for (std::int64_t i = 0; i < n; ++i) residual_square += residual[i] * residual[i];
    for (std::int64_t k = 0; k < n; ++k) {
      Vector<T> sum = all_lanes<T>(-probe_sign<T>(k, probe));
      for (std::int64_t i = 0; i < n; ++i) sum += z[k * n + i] * image[i];
      skew_square += sum * sum;
    }
  }
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < i; ++j) square += 2 * a[i * n + j] * a[i * n + j];
    square += a[i * n + i] * a[i * n + i];
  }
  const T gate = static_cast<T>(8 * n) * Format<T>::epsilon, most = gate * gate * kProbes;
  return (residual_square <= most * square) & (skew_square <= all_lanes<T>(most));
}

// Makes the component of largest magnitude, the first of equals, positive in every row.
template <class T>
void choose_signs(std::int64_t n, Vector<T>* z) {
  for (std::int64_t k = 0; k < n; ++k, z += n) {
    Vector<T> most = {}, largest = all_lanes<T>(-1);
    for (std::int64_t i = 0; i < n; ++i) {
      const Vector<T> size = magnitude<T>(z[i]);
      most = size > largest ? z[i] : most;
      largest = size > largest ? size : largest;
    }
    const Vector<T> sign = most < 0 ? all_lanes<T>(-1) : all_lanes<T>(1);
    for (std::int64_t i = 0; i < n; ++i) z[i] = z[i] * sign + T(0);  // −0 becomes 0
  }
}

template <class T>
void rank(std::int64_t n, const Vector<T>* values, Vector<T>* ranks) {
  for (std::int64_t k = 0; k < n; ++k) {
    Mask<T> below = {};
    for (std::int64_t j = 0; j < k; ++j) below -= values[j] <= values[k];
    for (std::int64_t j = k + 1; j < n; ++j) below -= values[j] < values[k];
    ranks[k] = __builtin_convertvector(below, Vector<T>);
  }
}

template <class T>
std::int64_t workspace_size(std::int64_t n) {
  return (n * n + 3 * n) * kLanes<T>;
}

template <class T>
void solve(std::int64_t n, T* matrices, T* eigenvalues, T* ranks, T* vectors_t, std::int32_t* codes, T* workspace) {
  auto* const a = reinterpret_cast<Vector<T>*>(matrices);
  auto* const d = reinterpret_cast<Vector<T>*>(eigenvalues);
  auto* const z = reinterpret_cast<Vector<T>*>(vectors_t);
  auto* const reduced = reinterpret_cast<Vector<T>*>(workspace);
  Vector<T>* const e = reduced + n * n;
  Vector<T>*const tau = e + n, *const w = tau + n;
  Mask<T> finite;
  const Mask<T> exponent = prescale<T>(n, a, finite);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) reduced[i * n + j] = a[i * n + j];
    w[i] = e[i] = Vector<T>{};
  }
  tridiagonalise<T>(n, reduced, d, e, tau, w);
  accumulate<T>(n, reduced, tau, z);
  const Mask<T> stuck = diagonalise<T>(n, d, e, z);
  const Mask<T> accurate = ~stuck & certify<T>(n, a, d, z, tau, w);

  choose_signs<T>(n, z);
  rank<T>(n, d, reinterpret_cast<Vector<T>*>(ranks));
  Mask<T> fits = ~Mask<T>{};
  const Scaling<T> scale(exponent);
  for (std::int64_t i = 0; i < n; ++i) {
    d[i] = scale(d[i]) + T(0);
    fits &= magnitude<T>(d[i]) < all_lanes<T>(T(__builtin_inf()));
  }
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    codes[lane] = !finite[lane] ? kNotFinite : !accurate[lane] ? kNotAccurate : !fits[lane] ? kOverflow : 0;
  }
}

template <class T>
constexpr LaneSolver<T> kLaneSolver{
    .lanes = kLanes<T>,
    .workspace = workspace_size<T>,
    .solve = solve<T>,
};

}  // namespace lanes
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
