// The text of the inner loops of gradients.h, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

template <class T, int Rows, int Vectors>
using Tile = Vector<T>[Rows][Vectors];

// body(row, vector, its place among sums of tiles)
template <class T, int Rows, int Vectors, class Body>
__attribute__((always_inline)) inline void for_each_vector(const Body& body) {
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) body(r, v, (2 * r + v) * kLanes<T>);
  }
}

// sum += Σ g xᵀ over the runs, of which there is one at least.
template <class T, int Rows, int Vectors>
__attribute__((always_inline)) inline void sum_pairs(const GradientTask<T>& task, const T* g, const T* x,
                                                     Tile<T, Rows, Vectors>& sum) {
  const std::int64_t down = task.g_width, right = task.step * task.x_width;
  const PairedRun* run = task.runs;
  do {
    const T* row = g + run->g * down;
    const T* column = x + run->x * task.x_width;
    for (std::int64_t left = run->count; left > 0; --left, row += down, column += right) {
      Vector<T> values[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) values[v] = load(column + v * kLanes<T>);
      for_each_vector<T, Rows, Vectors>([&](int r, int v, int) { sum[r][v] += values[v] * row[r]; });
    }
  } while (++run != task.runs_end);
}

// Likewise of products lane by lane. Two sums, of every other position, for one to be added to while the other waits.
template <class T, int Rows, int Vectors>
__attribute__((always_inline)) inline void sum_lanes(const GradientTask<T>& task, const T* g, const T* x,
                                                     Tile<T, Rows, Vectors>& sum) {
  const std::int64_t down = task.g_width, right = task.step * task.x_width;
  Vector<T> other[Vectors] = {};
  const PairedRun* run = task.runs;
  do {
    const T* row = g + run->g * down;
    const T* column = x + run->x * task.x_width;
    std::int64_t left = run->count;
    for (; left > 1; left -= 2, row += 2 * down, column += 2 * right) {
      for_each_vector<T, 1, Vectors>([&](int, int v, int at) {
        sum[0][v] += load(row + at) * load(column + at);
        other[v] += load(row + down + at) * load(column + right + at);
      });
    }
    if (left > 0) {
      for_each_vector<T, 1, Vectors>([&](int, int v, int at) { sum[0][v] += load(row + at) * load(column + at); });
    }
  } while (++run != task.runs_end);
  for_each_vector<T, 1, Vectors>([&](int, int v, int) { sum[0][v] += other[v]; });
}

// The squares stay in registers, as far as there are enough, from one example to the next. Each fetches a line of another
// that comes after all of these: its panels are far from theirs.
template <class T, int Rows, int Vectors, auto Sum>
__attribute__((noinline)) void add_whole(const GradientTask<T>& task, std::int64_t first) {
  const GradientTask<T> t = task;  // the compiler knows then that no store changes it
  Tile<T, Rows, Vectors> squares = {};
  constexpr auto line = static_cast<std::int64_t>(64 / sizeof(T));
  const std::int64_t fetched = (t.line + first / kTileRows) * line;
  const T *next_g = t.g + t.examples * t.g_example + fetched, *next_x = t.x + t.examples * t.x_example + fetched;
  for (std::int64_t n = 0; n < t.examples; ++n, next_g += t.g_example, next_x += t.x_example) {
    Tile<T, Rows, Vectors> sum = {};
    __builtin_prefetch(next_g);
    __builtin_prefetch(next_x);
    Sum(t, t.g + n * t.g_example + first, t.x + n * t.x_example, sum);
    for_each_vector<T, Rows, Vectors>([&](int r, int v, int) { squares[r][v] += sum[r][v] * sum[r][v]; });
  }
  T* out = t.squares + first * 2 * kLanes<T>;
  for_each_vector<T, Rows, Vectors>([&](int r, int v, int at) { store(out + at, load(out + at) + squares[r][v]); });
}

// One example's, or a part of it.
template <class T, int Rows, int Vectors, auto Sum>
__attribute__((noinline)) void add_part(const GradientTask<T>& task, std::int64_t first) {
  Tile<T, Rows, Vectors> sum = {};
  Sum(task, task.g + first, task.x, sum);
  const std::int64_t tile = first * 2 * kLanes<T>;
  T* partial = task.partial + tile;
  if (!task.fresh) {
    for_each_vector<T, Rows, Vectors>([&](int r, int v, int at) { sum[r][v] += load(partial + at); });
  }
  if (task.squares) {
    T* squares = task.squares + tile;
    for_each_vector<T, Rows, Vectors>(
        [&](int r, int v, int at) { store(squares + at, load(squares + at) + sum[r][v] * sum[r][v]); });
  } else {
    for_each_vector<T, Rows, Vectors>([&](int r, int v, int at) { store(partial + at, sum[r][v]); });
  }
}

template <class T, int Rows, int Vectors, auto Sum>
void add_tile(const GradientTask<T>& task, std::int64_t first) {
  if (task.fresh && task.squares) {
    add_whole<T, Rows, Vectors, Sum>(task, first);
  } else {
    add_part<T, Rows, Vectors, Sum>(task, first);
  }
}

template <class T, int Vectors>
void add_rows(const GradientTask<T>& task) {
  constexpr int rows = kTileRows, half = kTileRows / 2;
  std::int64_t row = 0;
  for (; task.rows - row > half; row += rows) add_tile<T, rows, Vectors, sum_pairs<T, rows, Vectors>>(task, row);
  if (row < task.rows) add_tile<T, half, Vectors, sum_pairs<T, half, Vectors>>(task, row);
}

template <class T>
void add_gradient(const GradientTask<T>& task) {
  if (task.columns > kLanes<T>) {
    add_rows<T, 2>(task);
  } else {
    add_rows<T, 1>(task);
  }
}

template <class T>
void add_lanes(const GradientTask<T>& task) {
  if (task.columns > kLanes<T>) {
    add_tile<T, 1, 2, sum_lanes<T, 1, 2>>(task, 0);
  } else {
    add_tile<T, 1, 1, sum_lanes<T, 1, 1>>(task, 0);
  }
}

template <class T>
constexpr GradientKernels<T> kGradientKernels{.add = add_gradient<T>, .add_lanes = add_lanes<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
