// The eigensolver for one matrix, under the rules of simd_text.h.

#pragma once

#include "divide_text.h"
#include "reflectors_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

/// Hands out pieces of the workspace, each aligned to 64 bytes.
struct Pieces {
  char* next;

  template <class Item>
  Item* take(std::int64_t count) {
    auto* piece = static_cast<Item*>(static_cast<void*>(next));
    next += round_up(count * static_cast<std::int64_t>(sizeof(Item)), 64);
    return piece;
  }
};

template <class T>
int hybrid(std::int64_t n, T* a, T* values, T* vectors_t, T* workspace) {
  const std::int64_t stride = eigh_stride(n), row_step = stride + 16, padded = n + 64;
  Pieces pieces{static_cast<char*>(static_cast<void*>(workspace))};
  const Triangle<T> triangle{pieces.take<T>(triangle_size(n)), n};
  T *rows = pieces.take<T>(n * row_step), *diagonal = pieces.take<T>(n), *beside = pieces.take<T>(n),
    *taus = pieces.take<T>(n), **row_table = pieces.take<T*>(n), **table = pieces.take<T*>(padded);
  auto* row_sums = pieces.take<Vector<T>>(padded);
  T* scratch = pieces.take<T>(reflector_scratch(n));

  pack_triangle(a, triangle);
  tridiagonalise(triangle, diagonal, beside, taus, scratch);

  for (std::int64_t r = 0; r < n; ++r) row_table[r] = rows + r * row_step;
  for (std::int64_t i = 0; i < n * row_step; ++i) rows[i] = 0;
  Tridiagonal<T> problem{};
  problem.diagonal = diagonal;
  problem.beside = beside;
  problem.rows = row_table;
  problem.table = table;
  problem.products = row_sums;
  problem.vectors = vectors_t;
  problem.packed = scratch;
  problem.z = pieces.take<T>(padded);
  problem.poles = pieces.take<T>(padded);
  problem.weights = pieces.take<T>(padded);
  problem.roots = pieces.take<T>(padded);
  problem.order = pieces.take<std::int32_t>(n);
  problem.merged = pieces.take<std::int32_t>(n + 1);
  problem.kept = pieces.take<std::int32_t>(n);
  problem.out = pieces.take<std::int32_t>(n);
  problem.place = pieces.take<std::int32_t>(n);
  problem.side = pieces.take<signed char>(n);
  if (!divide_and_conquer(problem, n)) return 1;

  apply_reflectors(triangle, taus, row_table, problem.order, stride, vectors_t, scratch);
  for (std::int64_t k = 0; k < n; ++k) values[k] = diagonal[problem.order[k]];
  return 0;
}

template <class T>
constexpr EighKernels<T> kEighKernels{.hybrid = hybrid<T>};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
