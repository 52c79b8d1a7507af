// The text of GroupSolver, under the rules of simd_text.h.

#pragma once

#include "eigh_rotations_text.h"
#include "eigh_tridiagonal_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace group {

using lanes::Step;

template <class T>
constexpr int kParts = kLanes<T> < 16 ? 2 : 1;  // vectors of matrices
template <class T>
constexpr int kMembers = kParts<T> * kLanes<T>;

constexpr int kRecorded = 8;  // times kDepth sweeps are recorded before their rotations are applied
constexpr int kReflected = EIGENDAMAGE_VECTOR_BYTES == 64 ? 4 : 2;  // vectors of columns that reflectors are applied to

// q (n, Columns·kLanes) becomes columns first … of the product of the reflectors in the rows of `a`.
template <class T, int Columns>
void multiply_reflectors(std::int64_t n, std::int64_t first, const T* a, std::int64_t step, const T* taus, T* q) {
  constexpr std::int64_t width = Columns * kLanes<T>;
  for (std::int64_t j = 0; j < n; ++j) {
    T* const row = q + j * width;
    for (int c = 0; c < Columns; ++c) store(row + c * kLanes<T>, Vector<T>{});
    if (j >= first && j < first + width) row[j - first] = 1;
  }
  // Each pass applies the last reflector and multiplies by the next.
  Vector<T> overlap[Columns] = {};
  for (std::int64_t i = first + 1; i <= n; ++i) {
    const T *const last = a + (i - 1) * step, *const next = i < n ? a + i * step : last;
    Vector<T> sum[Columns] = {};
    T* row = q;
    for (std::int64_t j = 0; j < i; ++j, row += width) {
      const Vector<T> from = spread(last[j]), onto = spread(next[j]);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        const Vector<T> entry = load(row + c * kLanes<T>) - from * overlap[c];
        store(row + c * kLanes<T>, entry);
        sum[c] += onto * entry;
      }
    }
    const Vector<T> tau = spread(i < n ? taus[i] : T(0));
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) overlap[c] = sum[c] * tau;
  }
}

// to[c][r] = from[r][c] for r < n, c < columns, and zeros up to a multiple of kLanes behind row n.
template <class T>
void transpose_into(std::int64_t n, std::int64_t columns, const T* from, std::int64_t from_step, T* to,
                    std::int64_t to_step) {
  constexpr std::int64_t lanes = kLanes<T>;
  for (std::int64_t r = 0; r < n; r += lanes) {
    for (std::int64_t c = 0; c < columns; c += lanes) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = r + i < n ? load(from + (r + i) * from_step + c) : Vector<T>{};
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) {
        if (c + i < columns) store(to + (c + i) * to_step + r, square[i]);
      }
    }
  }
}

template <class T>
constexpr std::int64_t vectors_of(std::int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
void reduce(std::int64_t n, const T* a, T* diagonal, T* beside, T* vectors_t, T* workspace) {
  const std::int64_t padded = round_up(n, 32) + 32, stride = eigh_stride(n);
  T* next = workspace;
  const auto take = [&](std::int64_t count) {
    T* const piece = next;
    next += round_up(count, 16);
    return piece;
  };
  const Triangle<T> triangle{take(triangle_size(n)), n};
  T *const d = take(n), *const e = take(n), *const taus = take(n);
  T* const scratch = take((2 + 3 * kPairs) * padded);
  T *const rows = take(n * stride), *const q = take(n * stride);
  pack_triangle(a, triangle);
  tridiagonalise(triangle, d, e, taus, scratch);
  for (std::int64_t i = 0; i < n; ++i) {
    diagonal[i * kMembers<T>] = d[i];
    if (i + 1 < n) beside[i * kMembers<T>] = e[i];
    for (std::int64_t c = 0; c < i; c += kLanes<T>) {
      store(rows + i * stride + c, load(triangle.row(c / kPanel<T>, i) + c % kPanel<T>));
    }
    rows[i * stride + i] = 0;
  }
  lanes::for_panels<kReflected>(vectors_of<T>(n), [&]<int Columns>(std::int64_t panel) {
    const std::int64_t first = panel * kLanes<T>, width = Columns * kLanes<T>;
    multiply_reflectors<T, Columns>(n, first, rows, stride, taus, q);
    transpose_into(n, n - first < width ? n - first : width, q, width, vectors_t + first * group_stride(n),
                   group_stride(n));
  });
  const std::int64_t spare = kSpareRows * group_stride(n);
  for (std::int64_t c = 0; c < spare; ++c) vectors_t[c - spare] = vectors_t[n * group_stride(n) + c] = 0;
}

constexpr std::int64_t kTurns = 2 * lanes::kDepth;  // numbers in a step of one lane

// Numbers of the steps of one lane, in whole vectors.
template <class T>
constexpr std::int64_t lane_size(std::int64_t n) {
  return round_up(lanes::steps_of(n) * kTurns, kLanes<T>);
}

template <class T>
std::int64_t workspace_size(std::int64_t n) {
  const std::int64_t padded = n + 64, size = lane_size<T>(n) + 16;
  return 3 * padded * padded + (5 + 3 * kPairs) * padded + (kRecorded + 1) * kMembers<T> * size;
}

// Copies the steps of some sweeps to the lanes' own arrays, `size` apart.
template <class T>
void part_lanes(const lanes::Sweeps<T, kParts<T>>& sweeps, std::int64_t size, T* turns) {
  const auto* const steps = sweeps.steps - (lanes::kDepth - 1);
  const std::int64_t begin = sweeps.low * kTurns / kLanes<T> * kLanes<T>,
                     end = round_up((sweeps.high + lanes::kDepth - 1) * kTurns, kLanes<T>);
  for (int part = 0; part < kParts<T>; ++part) {
    for (std::int64_t first = begin; first < end; first += kLanes<T>) {
      Vector<T> square[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) square[i] = steps[(first + i) / kTurns].turn[part][(first + i) % kTurns];
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) store(turns + (part * kLanes<T> + i) * size + first, square[i]);
    }
  }
}

template <class T>
std::uint32_t diagonalise(std::int64_t n, const std::int64_t* sizes, T* diagonal, T* beside, T* const* vectors_t,
                          T* workspace) {
  constexpr int parts = kParts<T>, most_sweeps = 30 * static_cast<int>(kMaxGroupSize<T>);
  const std::int64_t size = lane_size<T>(n);
  T* const turns = workspace;  // of each of some sweeps, of each member
  auto* const steps = reinterpret_cast<Step<T, parts>*>(turns + kRecorded * kMembers<T> * size);
  lanes::Chase<T, parts> chase(n, reinterpret_cast<Vector<T>*>(diagonal), reinterpret_cast<Vector<T>*>(beside));
  lanes::Sweeps<T, parts> sweeps[kRecorded];
  for (int done = 0; done < most_sweeps; done += kRecorded * lanes::kDepth) {
    int count = 0;
    for (; count < kRecorded; ++count) {
      sweeps[count].steps = steps + lanes::kDepth - 1;
      if (!chase.next(sweeps[count])) break;
      part_lanes(sweeps[count], size, turns + count * kMembers<T> * size);
    }
    for (int m = 0; m < kMembers<T>; ++m) {
      if (sizes[m] == 0) continue;
      const std::int64_t step = group_stride(sizes[m]) / kLanes<T>;
      auto* const rows = reinterpret_cast<Vector<T>*>(vectors_t[m]);
      lanes::for_panels<lanes::kColumns>(vectors_of<T>(sizes[m]), [&]<int Columns>(std::int64_t first) {
        for (int i = 0; i < count; ++i) {
          const std::int64_t low = sweeps[i].first[m / kLanes<T>][m % kLanes<T>];
          const std::int64_t high = sweeps[i].last[m / kLanes<T>][m % kLanes<T>];
          const T* const some = turns + (i * kMembers<T> + m) * size + (lanes::kDepth - 1) * kTurns;
          const auto turn = [some](std::int64_t row, int k) { return spread(some[row * kTurns + k]); };
          if (low < high) lanes::rotate<T, Columns>(low, high, turn, rows + first, step);
        }
      });
    }
    if (count < kRecorded) return 0;
  }
  lanes::Block<T, parts> block;
  chase.find(block);
  std::uint32_t stuck = 0;
  for (int m = 0; m < kMembers<T>; ++m) {
    if (block.open[m / kLanes<T>][m % kLanes<T>]) stuck |= std::uint32_t{1} << m;
  }
  return stuck;
}

template <class T>
constexpr GroupSolver<T> kGroupSolver{
    .members = kMembers<T>,
    .workspace = workspace_size<T>,
    .reduce = reduce<T>,
    .diagonalise = diagonalise<T>,
};

}  // namespace group
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
