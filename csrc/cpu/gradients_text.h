// The text of the inner loops of gradients.h, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

template <class T, int Rows, int Vectors>
__attribute__((noinline)) void add_gradient_tile(const GradientTask<T>& task, std::int64_t first) {
  Vector<T> sum[Rows][Vectors] = {};
  const std::int64_t down = task.g_width, right = task.step * task.x_width;
  for (const PairedRun* run = task.runs; run != task.runs_end; ++run) {
    const T* row = task.g + run->g * down + first;
    const T* column = task.x + run->x * task.x_width;
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
  const auto for_each_vector = [&](const auto& body) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) body(sum[r][v], (first + r) * task.x_width + v * kLanes<T>);
    }
  };
  if (!task.fresh) {
    for_each_vector([&](Vector<T>& s, std::int64_t at) { s += load(task.partial + at); });
  }
  if (task.squares) {
    for_each_vector([&](Vector<T>& s, std::int64_t at) { store(task.squares + at, load(task.squares + at) + s * s); });
  } else {
    for_each_vector([&](Vector<T>& s, std::int64_t at) { store(task.partial + at, s); });
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

template <class T>
constexpr GradientKernels<T> kGradientKernels{.add = add_gradient<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
