#pragma once

#include <cstdint>
#include <functional>

#include "../kernels.h"
#include "panels.h"
#include "plan.h"
#include "simd.h"

namespace eigendamage::cpu {

/// Bytes of memory. Small sums are set aside from box to box, others added to `out` after each box.
struct Limits {
  std::int64_t kept = 4 << 20;       ///< sums set aside, all together
  std::int64_t kept_box = 1 << 20;   ///< packed positions of a box, where sums are set aside
  std::int64_t added = 4 << 20;      ///< sums that a thread holds before it adds them to `out`
  std::int64_t added_box = 8 << 20;  ///< packed positions of a box, where they are added
};

/// Everything that sums over positions is one computation: the plan says which Grams of a grid's positions and lags make
/// up which block of the output, the tiling how channels are laid into panels, the packer where their values come from.
///
///   out = beta·out + alpha·Σ_images (blocks of the plan), with the constant's row and column last.
///
/// Boxes of positions are packed one after the other, and their sums set aside or added to `out`. Which thread computes
/// what is left open; what is added to what, in which order, depends on the shape alone.
template <class T>
struct GramProblem {
  const PanelKernels<T>& simd;
  const Plan& plan;
  const Tiling& tiling;
  const Packer<T>& packer;
  std::int64_t images;
  Update update;
  FactorView out;
  const ParallelFor& parallel_for;
  Limits limits;
};

template <class T>
void sum_grams(const GramProblem<T>& problem);

}  // namespace eigendamage::cpu
