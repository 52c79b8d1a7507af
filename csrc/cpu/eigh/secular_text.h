// The secular equation 1/ρ + Σ_j z_j² / (d_j − λ) = 0, under the rules of simd_text.h.

#pragma once

#include "lanes_text.h"
#include "numbers_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Poles on either side of some roots whose terms a first guess takes as they are.
constexpr std::int64_t kNear = 4;

/// D + ρ·z·zᵀ with ascending d (count ≥ 2) and no zero in z: its eigenvalues are the roots of the secular equation.
template <class T>
struct Secular {
  std::int64_t count;
  const T *d, *z;
  T rho, reach;  // ρ·|z|²: the last root lies no further behind the last pole
};

/// Roots `first` … of the equation, one a lane. A root is origin + shift, the origin its closer pole, so that d_j − root
/// is known to the last bit.
template <class T>
struct Roots {
  std::int64_t first;
  typename VectorOf<T>::index left_pole;  // the sum is split into the poles up to this one and those behind
  typename VectorOf<T>::index is_last;    // the last root lies right of all poles
  Vector<T> left, right;                  // the split's two poles
  Vector<T> left_z, right_z;
  Vector<T> origin, shift, low, high;
};

/// 1/ρ + ψ + φ at a point, split at left_pole, with the slopes.
template <class T>
struct SecularValue {
  Vector<T> psi, phi, psi_slope, phi_slope;
};

/// `value` and the terms of poles begin … end.
template <class T>
SecularValue<T> add_terms(SecularValue<T> value, const Secular<T>& equation, const Roots<T>& roots, std::int64_t begin,
                          std::int64_t end) {
  const std::int64_t last = equation.count - 2, first = roots.first < last ? roots.first : last;
  const std::int64_t before = first < end ? first : end;  // poles left of every lane's split
  const std::int64_t behind = roots.first + kLanes<T> < end ? roots.first + kLanes<T> : end;
  std::int64_t j = begin;
  for (; j < before; ++j) {
    const Vector<T> term = equation.z[j] * reciprocal<T>((equation.d[j] - roots.origin) - roots.shift);
    value.psi += term * equation.z[j];
    value.psi_slope += term * term;
  }
  for (; j < behind; ++j) {
    const Vector<T> term = equation.z[j] * reciprocal<T>((equation.d[j] - roots.origin) - roots.shift);
    const auto is_left = static_cast<T>(j) <= __builtin_convertvector(roots.left_pole, Vector<T>);
    const Vector<T> left = is_left ? term : Vector<T>{}, right = is_left ? Vector<T>{} : term;
    value.psi += left * equation.z[j];
    value.psi_slope += left * left;
    value.phi += right * equation.z[j];
    value.phi_slope += right * right;
  }
  for (; j < end; ++j) {
    const Vector<T> term = equation.z[j] * reciprocal<T>((equation.d[j] - roots.origin) - roots.shift);
    value.phi += term * equation.z[j];
    value.phi_slope += term * term;
  }
  return value;
}

/// The root of c·x² − a·x + b that continues the split's two poles.
template <class T>
Vector<T> two_pole_root(const Roots<T>& roots, Vector<T> a, Vector<T> b, Vector<T> c) {
  const Vector<T> square = a * a - 4 * b * c, root = lanes::square_root<T>(square > 0 ? square : Vector<T>{});
  const Vector<T> sided = roots.is_last ? -root : root;
  const auto stable = (roots.is_last ? -a : a) > 0;
  const Vector<T> above = stable ? 2 * b : a - sided, below = stable ? a + sided : 2 * c;
  return above / below;
}

/// A step of Li's middle way: ψ and φ are each replaced by the pole next to the root plus a constant, matched in value and
/// slope; bisection where that leaves the bracket. Narrows the bracket, and returns the next shift.
template <class T>
Vector<T> next_shift(const SecularValue<T>& value, Vector<T> f, Roots<T>& roots) {
  roots.low = f < 0 ? roots.shift : roots.low;
  roots.high = f < 0 ? roots.high : roots.shift;
  const Vector<T> left = (roots.left - roots.origin) - roots.shift;
  const Vector<T> right = (roots.right - roots.origin) - roots.shift;
  const Vector<T> change = two_pole_root(roots, (left + right) * f - left * right * (value.psi_slope + value.phi_slope),
                                         left * right * f, f - left * value.psi_slope - right * value.phi_slope);
  const Vector<T> next = roots.shift + change;
  const auto inside = (next > roots.low) & (next < roots.high);
  return inside ? next : (roots.low + roots.high) / 2;
}

/// Terms that vary little about a point, continued to where they are asked for.
template <class T>
struct FarTerms {
  SecularValue<T> value;
  Vector<T> point, psi_bend, phi_bend;

  FarTerms(const SecularValue<T>& here, Vector<T> at) : value(here), point(at) {
    psi_bend = here.psi < 0 ? here.psi_slope * here.psi_slope / here.psi : Vector<T>{};  // as if of one pole
    phi_bend = here.phi > 0 ? here.phi_slope * here.phi_slope / here.phi : Vector<T>{};
  }
  SecularValue<T> at(Vector<T> shift) const {
    const Vector<T> moved = shift - point, psi_change = moved * psi_bend, phi_change = moved * phi_bend;
    return {value.psi + moved * (value.psi_slope + psi_change), value.phi + moved * (value.phi_slope + phi_change),
            value.psi_slope + 2 * psi_change, value.phi_slope + 2 * phi_change};
  }
};

/// Brackets the roots between their poles and takes the closer pole as origin, a guess as shift.
template <class T>
Roots<T> start_roots(const Secular<T>& equation, std::int64_t first) {
  Roots<T> roots{};
  roots.first = first;
  const std::int64_t count = equation.count, last = count - 1;
  const T *d = equation.d, *z = equation.z;
  Vector<T> gap{};
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const std::int64_t k = first + lane < last ? first + lane : last, left = k < last ? k : last - 1;
    roots.left_pole[lane] = static_cast<std::int32_t>(left);
    roots.is_last[lane] = k == last ? -1 : 0;
    roots.left[lane] = d[left];
    roots.right[lane] = d[left + 1];
    roots.left_z[lane] = z[left];
    roots.right_z[lane] = z[left + 1];
    roots.origin[lane] = d[k];
    gap[lane] = k < last ? d[k + 1] - d[k] : equation.reach;
  }
  roots.shift = gap / 2;
  const std::int64_t begin = first > kNear ? first - kNear : 0;
  const std::int64_t end = first + kLanes<T> + kNear < count ? first + kLanes<T> + kNear : count;
  const SecularValue<T> far =
      add_terms(add_terms(SecularValue<T>{}, equation, roots, 0, begin), equation, roots, end, count);
  const SecularValue<T> middle = add_terms(far, equation, roots, begin, end);
  const Vector<T> constant = spread(1 / equation.rho), f = constant + middle.psi + middle.phi;
  const Vector<T> left_square = roots.left_z * roots.left_z, right_square = roots.right_z * roots.right_z;
  const Vector<T> rest = f - left_square / ((roots.left - roots.origin) - roots.shift) -
                         right_square / ((roots.right - roots.origin) - roots.shift);
  const auto is_left = f >= 0, keeps = is_left | roots.is_last;
  roots.origin = keeps ? roots.origin : roots.right;
  const Vector<T> low = is_left ? Vector<T>{} : roots.is_last ? gap / 2 : -gap / 2;
  const Vector<T> high = is_left ? gap / 2 : roots.is_last ? gap : Vector<T>{};
  const Vector<T> left = roots.left - roots.origin, right = roots.right - roots.origin;
  const Vector<T> guess = two_pole_root(roots, rest * (left + right) + left_square + right_square,
                                        rest * left * right + left_square * right + right_square * left, rest);
  const auto inside = (guess > low) & (guess < high);
  roots.shift = inside ? guess : (low + high) / 2;
  roots.low = low;
  roots.high = high;
  if (2 * (end - begin) <= count) {
    const FarTerms<T> beyond(far, keeps ? gap / 2 : -gap / 2);
    for (int step = 0; step < (sizeof(T) == 4 ? 2 : 3); ++step) {
      const SecularValue<T> value = add_terms(beyond.at(roots.shift), equation, roots, begin, end);
      roots.shift = next_shift(value, constant + value.psi + value.phi, roots);
    }
    roots.low = low;  // what the steps took for the bracket's ends is no more certain than their values
    roots.high = high;
  }
  return roots;
}

template <class T>
Roots<T> find_roots(const Secular<T>& equation, std::int64_t first) {
  constexpr T eps = Limits<T>::eps;
  Roots<T> roots = start_roots(equation, first);
  constexpr T converged = sizeof(T) == 4 ? T(0x1p-14) : T(0x1p-28);  // convergence is quadratic
  const T noise = eps * (8 + static_cast<T>(equation.count) / 16), constant = 1 / equation.rho;
  for (int step = 0; step < 100; ++step) {
    const SecularValue<T> value = add_terms(SecularValue<T>{}, equation, roots, 0, equation.count);
    const Vector<T> f = constant + value.psi + value.phi, slope = value.psi_slope + value.phi_slope;
    const Vector<T> size = constant - value.psi + magnitude(value.phi) + magnitude(roots.shift) * slope;
    const auto open = magnitude(f) > noise * size;
    if (!any<T>(open)) break;
    const Vector<T> moved = next_shift(value, f, roots);
    const auto moves = open & (magnitude(moved - roots.shift) > converged * magnitude(moved));
    roots.shift = open ? moved : roots.shift;
    if (!any<T>(moves)) break;
  }
  return roots;
}

/// values[k] are the roots, and column k of `vectors`, packed as [k / kLanes][row of j][k % kLanes], the unit eigenvector,
/// whose component j lies in row places[j]. It is that of the z for which the computed roots are exact (Gu and
/// Eisenstat), so that the vectors are orthogonal however close the roots. products: count vectors.
template <class T>
void solve_secular(const Secular<T>& equation, const std::int32_t* places, T* values, T* vectors, Vector<T>* products) {
  const std::int64_t count = equation.count;
  for (std::int64_t j = 0; j < count; ++j) products[j] = spread(T(1));
  for (std::int64_t first = 0; first < count; first += kLanes<T>) {
    const Roots<T> roots = find_roots(equation, first);
    T* columns = vectors + first * count;
    Vector<T> poles{}, lane_index{};
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const std::int64_t k = first + lane;
      lane_index[lane] = static_cast<T>(k);
      poles[lane] = equation.d[k < count ? k : count - 1];
      if (k < count) values[k] = roots.origin[lane] + roots.shift[lane];
    }
    const auto exists = lane_index < static_cast<T>(count);
    for (std::int64_t j = 0; j < count; ++j) {
      const Vector<T> difference = (equation.d[j] - roots.origin) - roots.shift;
      store(columns + places[j] * kLanes<T>, difference);
      const Vector<T> gap = lane_index == static_cast<T>(j) ? spread(T(1)) : equation.d[j] - poles;
      products[j] *= exists ? difference * reciprocal<T>(gap) : spread(T(1));
    }
  }
  for (std::int64_t j = 0; j < count; ++j) {
    T lanes[kLanes<T>], product = 1;
    store(lanes, products[j]);
    for (int i = 0; i < kLanes<T>; ++i) product *= lanes[i];
    const T root = square_root(magnitude(product));
    products[j] = spread(equation.z[j] < 0 ? -root : root);
  }
  for (std::int64_t first = 0; first < count; first += kLanes<T>) {
    T* columns = vectors + first * count;
    Vector<T> squares{};
    for (std::int64_t j = 0; j < count; ++j) {
      T* entry = columns + places[j] * kLanes<T>;
      const Vector<T> component = products[j] * reciprocal<T>(load(entry));
      store(entry, component);
      squares += component * component;
    }
    const Vector<T> scale = 1 / lanes::square_root<T>(squares);
    for (std::int64_t j = 0; j < count; ++j) store(columns + j * kLanes<T>, load(columns + j * kLanes<T>) * scale);
  }
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
