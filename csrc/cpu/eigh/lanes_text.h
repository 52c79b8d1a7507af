// The text of LaneSolver, included after simd_text.h under the same rules. A Vector holds one number of each matrix;
// where lanes must part company, masks choose. Matrices are scaled to max|a| in [1/2, 1) first.

#pragma once

#include "certificate_text.h"
#include "chase_text.h"
#include "rotations_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

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

constexpr int kRows = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 2;  // that are taken together

// f(first row, Rows{}) for the rows of [begin, end).
template <class F>
void for_rows(std::int64_t begin, std::int64_t end, const F& f) {
  for (; begin + kRows <= end; begin += kRows) f.template operator()<kRows>(begin);
  for (; begin < end; ++begin) f.template operator()<1>(begin);
}

// What a reflector changes: a −= v·wᵀ + w·vᵀ.
template <class T>
struct Change {
  Vector<T>*v, *w;
};

// Brings rows j … of a up to date, and adds to next.w what they contribute to a·next.v.
template <class T, int Rows>
void update_and_multiply(std::int64_t n, std::int64_t j, Vector<T>* a, const Change<T>& last, const Change<T>& next) {
  Vector<T>* const rows = a + j * n;
  Vector<T> sum[Rows] = {};
  const auto updated = [&](int r, std::int64_t k) {
    Vector<T>& entry = rows[r * n + k];
    return entry -= last.v[j + r] * last.w[k] + last.w[j + r] * last.v[k];
  };
  for (std::int64_t k = 0; k < j; ++k) {
    Vector<T> across = next.w[k];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const Vector<T> entry = updated(r, k);
      sum[r] += entry * next.v[k];
      across += entry * next.v[j + r];
    }
    next.w[k] = across;
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int q = 0; q < r; ++q) {
      const Vector<T> entry = updated(r, j + q);
      sum[r] += entry * next.v[j + q];
      sum[q] += entry * next.v[j + r];
    }
    sum[r] += updated(r, j + r) * next.v[j + r];
  }
#pragma GCC unroll 4
  for (int r = 0; r < Rows; ++r) next.w[j + r] = sum[r];
}

// Householder's reduction from the last row up: d and e hold the tridiagonal matrix (e[i] between i and i + 1), row i of a
// the reflector 1 − tau[i]·v·vᵀ that cleared it. w: 3·n vectors.
template <class T>
void tridiagonalise(std::int64_t n, Vector<T>* a, Vector<T>* d, Vector<T>* e, Vector<T>* tau, Vector<T>* w) {
  Change<T> last{w, w + n}, next{nullptr, w + 2 * n};
  for (std::int64_t k = 0; k < n; ++k) last.v[k] = last.w[k] = Vector<T>{};
  for (std::int64_t i = n - 1; i >= 0; --i) {
    Vector<T>* v = next.v = a + i * n;
    for (std::int64_t k = 0; k <= i; ++k) v[k] -= last.v[i] * last.w[k] + last.w[i] * last.v[k];
    d[i] = v[i];
    if (i == 0) break;
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

    for_rows(0, i, [&]<int Rows>(std::int64_t j) { update_and_multiply<T, Rows>(n, j, a, last, next); });
    Vector<T> overlap = {};
    for (std::int64_t j = 0; j < i; ++j) {
      next.w[j] *= factor;
      overlap += next.w[j] * v[j];
    }
    overlap *= factor * T(0.5);
    for (std::int64_t j = 0; j < i; ++j) next.w[j] -= overlap * v[j];
    Vector<T>* const spare = last.w;
    last = next;
    next.w = spare;
  }
}

// Rows k … of z become columns k … of the product of the reflectors.
template <class T, int Rows>
void accumulate_rows(std::int64_t n, std::int64_t k, const Vector<T>* a, const Vector<T>* tau, Vector<T>* z) {
  Vector<T>* const rows = z + k * n;
  for (int r = 0; r < Rows; ++r) {
    for (std::int64_t j = 0; j < n; ++j) rows[r * n + j] = all_lanes<T>(k + r == j);
  }
  // Each pass applies the last reflector and multiplies by the next.
  Vector<T> overlap[Rows] = {};
  for (std::int64_t i = k + 1; i <= n; ++i) {
    const Vector<T>*const last = a + (i - 1) * n, *const next = i < n ? a + i * n : last;
    Vector<T> sum[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) sum[r] = rows[r * n + i - 1] * next[i - 1];
    for (std::int64_t j = 0; j < i - 1; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const Vector<T> entry = rows[r * n + j] -= overlap[r] * last[j];
        sum[r] += entry * next[j];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) overlap[r] = i < n ? sum[r] * tau[i] : sum[r];
  }
}

constexpr int kDepth = static_cast<int>(kSpareRows);  // sweeps whose rotations are applied in one pass
constexpr int kRecorded = 4;  // times kDepth sweeps are recorded before their rotations are applied

// Steps that `diagonalise` records for n rows.
constexpr std::int64_t recorded_steps(std::int64_t n) { return kRecorded * steps_of(n, kDepth); }

// QL on the tridiagonal matrices d, e, whose rotations turn the rows of z: n rows of n vectors, with kDepth rows before and
// behind that are scratch. Returns the lanes that did not converge.
template <class T>
Mask<T> diagonalise(std::int64_t n, Vector<T>* d, Vector<T>* e, Vector<T>* z, Step<T, 1, kDepth>* steps) {
  for (std::int64_t j = 0; j < kDepth * n; ++j) z[j - kDepth * n] = z[n * n + j] = Vector<T>{};
  Chase<T, 1, kDepth> chase(n, d, e);
  Sweeps<T, 1, kDepth> sweeps[kRecorded];
  for (std::int64_t done = 0; done < 30 * n; done += kRecorded * kDepth) {
    int count = 0;
    for (; count < kRecorded; ++count) {
      sweeps[count].steps = steps + count * steps_of(n, kDepth) + kDepth - 1;
      if (!chase.next(sweeps[count])) break;
    }
    for_panels<kColumns<kDepth>>(n, [&]<int Columns>(std::int64_t first) {
      for (int i = 0; i < count; ++i) {
        const Step<T, 1, kDepth>* const some = sweeps[i].steps;
        const auto turns = [some](std::int64_t row, int k) { return some[row].turn[0][k]; };
        rotate<T, kDepth, Columns>(sweeps[i].low, sweeps[i].high, turns, z + first, n);
      }
    });
    if (count < kRecorded) return Mask<T>{};
  }
  Block<T, 1> block;
  chase.find(block);
  return block.open[0];
}

// As Certificate::holds, for all lanes.
template <class T>
Mask<T> certify(std::int64_t n, const Vector<T>* a, const Vector<T>* values, const Vector<T>* z, Vector<T>* image,
                Vector<T>* residual) {
  Vector<T> residual_square = {}, skew_square = {}, square = {};
  for (std::int64_t i = 0; i < kProbes * n; ++i) image[i] = residual[i] = Vector<T>{};
  for_rows(0, n, [&]<int Rows>(std::int64_t k) {
    T signs[Rows][kProbes];
    for (int r = 0; r < Rows; ++r) {
      for (int p = 0; p < kProbes; ++p) signs[r][p] = probe_sign<T>(k + r, p);
    }
    for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const Vector<T> entry = z[(k + r) * n + i], weighted = entry * values[k + r];
#pragma GCC unroll 4
        for (int p = 0; p < kProbes; ++p) {
          image[i * kProbes + p] += entry * signs[r][p];
          residual[i * kProbes + p] -= weighted * signs[r][p];
        }
      }
    }
  });
  for (std::int64_t i = 0; i < n; ++i) {  // residual += A·image, from the lower triangle
    Vector<T> sum[kProbes] = {}, here[kProbes], row_square = {};
    for (int p = 0; p < kProbes; ++p) here[p] = image[i * kProbes + p];
    for (std::int64_t j = 0; j < i; ++j) {
      const Vector<T> entry = a[i * n + j];
      row_square += entry * entry;
#pragma GCC unroll 4
      for (int p = 0; p < kProbes; ++p) {
        sum[p] += entry * image[j * kProbes + p];
        residual[j * kProbes + p] += entry * here[p];
      }
    }
    const Vector<T> entry = a[i * n + i];
    square += 2 * row_square + entry * entry;
    for (int p = 0; p < kProbes; ++p) residual[i * kProbes + p] += sum[p] + entry * here[p];
  }
  for (std::int64_t i = 0; i < kProbes * n; ++i) residual_square += residual[i] * residual[i];
  for (std::int64_t k = 0; k < n; ++k) {
    Vector<T> sum[kProbes];
    for (int p = 0; p < kProbes; ++p) sum[p] = all_lanes<T>(-probe_sign<T>(k, p));
    for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
      for (int p = 0; p < kProbes; ++p) sum[p] += z[k * n + i] * image[i * kProbes + p];
    }
    for (int p = 0; p < kProbes; ++p) skew_square += sum[p] * sum[p];
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
  return (n * n + (2 + 2 * kProbes) * n + 2 * kDepth * recorded_steps(n)) * kLanes<T>;
}

template <class T>
void solve(std::int64_t n, T* matrices, T* eigenvalues, T* ranks, T* vectors_t, std::int32_t* codes, T* workspace) {
  auto* const a = reinterpret_cast<Vector<T>*>(matrices);
  auto* const d = reinterpret_cast<Vector<T>*>(eigenvalues);
  auto* const z = reinterpret_cast<Vector<T>*>(vectors_t);
  auto* const reduced = reinterpret_cast<Vector<T>*>(workspace);
  Vector<T>* const e = reduced + n * n;
  Vector<T>*const tau = e + n, *const scratch = tau + n;
  auto* const steps = reinterpret_cast<Step<T, 1, kDepth>*>(scratch + 2 * kProbes * n);
  Mask<T> finite;
  const Mask<T> exponent = prescale<T>(n, a, finite);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) reduced[i * n + j] = a[i * n + j];
  }
  e[n - 1] = Vector<T>{};
  tridiagonalise<T>(n, reduced, d, e, tau, scratch);
  for_rows(0, n, [&]<int Rows>(std::int64_t k) { accumulate_rows<T, Rows>(n, k, reduced, tau, z); });
  const Mask<T> stuck = diagonalise<T>(n, d, e, z, steps);
  const Mask<T> accurate = ~stuck & certify<T>(n, a, d, z, scratch, scratch + kProbes * n);

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
