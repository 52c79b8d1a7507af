// Applies the rotations of chase_text.h to eigenvectors in rows, under the rules of simd_text.h.

#pragma once

#include "chase_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

// Vectors of a row that are taken together: as many as leave the registers room.
template <int Depth>
constexpr int kColumns = (EIGENDAMAGE_VECTOR_BYTES == 64 ? 16 : 8) / Depth;

// The vector (x, y) by the angle θ, t = tan θ/2 and s = sin θ, in three steps instead of four: x, y ← y', x'.
template <class T>
void turn(Vector<T> t, Vector<T> s, Vector<T>& x, Vector<T>& y) {
  const Vector<T> sheared = y - t * x;
  y = x + s * sheared;
  x = sheared - t * y;
}

// Rows low … high of `rows`, step vectors apart, Columns of each: the rotations of Depth sweeps in one pass. turns(i, k)
// is element k of step i. The Depth − 1 rows before and behind are read, and written back: any finite numbers.
template <class T, int Depth, int Columns, class Turns>
void rotate(std::int64_t low, std::int64_t high, const Turns& turns, Vector<T>* rows, std::int64_t step) {
  Vector<T> carried[Depth][Columns];
  Vector<T>* row = rows + high * step;
#pragma GCC unroll 8
  for (int k = 0; k < Depth; ++k) {
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) carried[k][c] = row[k * step + c];
  }
  for (std::int64_t i = high - 1; i > low - Depth; --i) {
    row -= step;
    Vector<T> upper[Columns];
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) upper[c] = row[c];
#pragma GCC unroll 8
    for (int k = 0; k < Depth; ++k) {
      const Vector<T> t = turns(i, 2 * k), s = turns(i, 2 * k + 1);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) turn<T>(t, s, carried[k][c], upper[c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) row[Depth * step + c] = upper[c];
  }
#pragma GCC unroll 8
  for (int k = 0; k < Depth; ++k) {
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) row[k * step + c] = carried[k][c];
  }
}

// f(Columns{}), Columns = columns ≤ Most.
template <int Most, class F>
void call_with(std::int64_t columns, const F& f) {
  if (columns == Most) {
    f.template operator()<Most>();
  } else if constexpr (Most > 1) {
    call_with<Most - 1>(columns, f);
  }
}

// f(first, Columns{}) for the panels that n columns are cut into: at most `Most` wide, and about equally so.
template <int Most, class F>
void for_panels(std::int64_t n, const F& f) {
  const std::int64_t panels = (n + Most - 1) / Most;
  for (std::int64_t panel = 0, first = 0; panel < panels; ++panel) {
    const std::int64_t end = n * (panel + 1) / panels;
    call_with<Most>(end - first, [&]<int Columns>() { f.template operator()<Columns>(first); });
    first = end;
  }
}

}  // namespace lanes
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
