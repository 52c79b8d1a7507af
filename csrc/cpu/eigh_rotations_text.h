// Applies the rotations of eigh_chase_text.h to eigenvectors in rows, under the rules of simd_text.h.

#pragma once

#include "eigh_chase_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

// Vectors of a row that are taken together: as many as leave the registers room.
constexpr int kColumns = EIGENDAMAGE_VECTOR_BYTES == 64 ? 8 : 4;

// Rows low … high of `rows`, step vectors apart, Columns of each: two sweeps' rotations in one pass. turns(i, k) is
// element k of step i. Row high + 1 is read and written back, row low − 1 read: any finite numbers.
template <class T, int Columns, class Turns>
void rotate(std::int64_t low, std::int64_t high, const Turns& turns, Vector<T>* rows, std::int64_t step) {
  Vector<T> first[Columns], second[Columns];
  Vector<T>* row = rows + high * step;
#pragma GCC unroll 8
  for (int k = 0; k < Columns; ++k) {
    first[k] = row[k];
    second[k] = row[step + k];
  }
  for (std::int64_t i = high - 1; i >= low - 1; --i) {
    row -= step;
    const Vector<T> c = turns(i, 0), s = turns(i, 1), c2 = turns(i, 2), s2 = turns(i, 3);
#pragma GCC unroll 8
    for (int k = 0; k < Columns; ++k) {
      const Vector<T> next = row[k], done = s * next + c * first[k];
      first[k] = c * next - s * first[k];
      row[2 * step + k] = s2 * done + c2 * second[k];
      second[k] = c2 * done - s2 * second[k];
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < Columns; ++k) row[step + k] = second[k];
}

// f(first column, Columns{}) for the panels of a row of n vectors.
template <class F>
void for_panels(std::int64_t n, const F& f) {
  std::int64_t first = 0;
  for (; first + kColumns <= n; first += kColumns) f.template operator()<kColumns>(first);
  if (n - first >= 4 && kColumns > 4) f.template operator()<4>(first), first += 4;
  if (n - first >= 2) f.template operator()<2>(first), first += 2;
  if (n > first) f.template operator()<1>(first);
}

}  // namespace lanes
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
