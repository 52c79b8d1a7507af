// The text of the inner loops of gradients.h, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Ends the sum of an example as GradientKernels says of `add`.
template <class T, int Rows, int Vectors>
void finish_gradient(Vector<T> (&sum)[Rows][Vectors], const T* before, T* partial, T* squares) {
  const auto for_each_vector = [&](const auto& body) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) body(sum[r][v], (2 * r + v) * kLanes<T>);
    }
  };
  if (before) {
    for_each_vector([&](Vector<T>& s, int at) { s += load(before + at); });
  }
  if (squares) {
    for_each_vector([&](Vector<T>& s, int at) { store(squares + at, load(squares + at) + s * s); });
  } else {
    for_each_vector([&](Vector<T>& s, int at) { store(partial + at, s); });
  }
}

template <class T, int Rows, int Vectors>
__attribute__((noinline)) void add_gradient_tile(const GradientTask<T>& task, std::int64_t first) {
  const GradientTask<T> t = task;  // a store into a tile may change no number of a copy
  const std::int64_t down = t.g_width, right = t.step * t.x_width, at = first * 2 * kLanes<T>;
  const T *g = t.g + first, *x = t.x;
  for (std::int64_t n = 0; n < t.examples; ++n, g += t.g_example, x += t.x_example) {
    Vector<T> sum[Rows][Vectors] = {};
    for (const PairedRun* run = t.runs; run != t.runs_end; ++run) {
      const T* row = g + run->g * down;
      const T* column = x + run->x * t.x_width;
      for (std::int64_t left = run->count; left > 0; --left, row += down, column += right) {
        Vector<T> values[Vectors];
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) values[v] = load(column + v * kLanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < Vectors; ++v) sum[r][v] += values[v] * row[r];
        }
      }
    }
    finish_gradient<T>(sum, t.fresh ? nullptr : t.partial + at, t.partial + at, t.squares ? t.squares + at : nullptr);
  }
}

template <class T, int Vectors>
void add_gradient_rows(const GradientTask<T>& task) {
  std::int64_t row = 0;
  for (; task.rows - row > kTileRows / 2; row += kTileRows) add_gradient_tile<T, kTileRows, Vectors>(task, row);
  if (row < task.rows) add_gradient_tile<T, kTileRows / 2, Vectors>(task, row);
}

template <class T>
void add_gradient(const GradientTask<T>& task) {
  if (task.columns > kLanes<T>) {
    add_gradient_rows<T, 2>(task);
  } else {
    add_gradient_rows<T, 1>(task);
  }
}

// Two sums, of every other position, for one to be added to while the other waits.
template <class T, int Vectors>
void add_lanes_of(const GradientTask<T>& task) {
  const GradientTask<T> t = task;
  const std::int64_t down = t.g_width, right = t.step * t.x_width;
  const T *g = t.g, *x = t.x;
  for (std::int64_t n = 0; n < t.examples; ++n, g += t.g_example, x += t.x_example) {
    Vector<T> sum[1][Vectors] = {}, other[Vectors] = {};
    for (const PairedRun* run = t.runs; run != t.runs_end; ++run) {
      const T* row = g + run->g * down;
      const T* column = x + run->x * t.x_width;
      std::int64_t left = run->count;
      for (; left > 1; left -= 2, row += 2 * down, column += 2 * right) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          sum[0][v] += load(row + v * kLanes<T>) * load(column + v * kLanes<T>);
          other[v] += load(row + down + v * kLanes<T>) * load(column + right + v * kLanes<T>);
        }
      }
      if (left > 0) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[0][v] += load(row + v * kLanes<T>) * load(column + v * kLanes<T>);
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[0][v] += other[v];
    finish_gradient<T>(sum, t.fresh ? nullptr : t.partial, t.partial, t.squares);
  }
}

template <class T>
void add_lanes(const GradientTask<T>& task) {
  if (task.columns > kLanes<T>) {
    add_lanes_of<T, 2>(task);
  } else {
    add_lanes_of<T, 1>(task);
  }
}

template <class T>
constexpr GradientKernels<T> kGradientKernels{.add = add_gradient<T>, .add_lanes = add_lanes<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
