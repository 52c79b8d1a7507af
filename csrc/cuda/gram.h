#pragma once

#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "../lag_form/plan.h"

namespace eigendamage::cuda {

/// Choices that change no result but for rounding. Tests force them.
struct Schedule {
  std::int64_t multiprocessors = 0;         ///< 0: those of the device
  std::int64_t partial_bytes = 48LL << 20;  ///< of sums that wait to be added up
};

/// Everything that sums over positions is one computation:
///
///   out = beta·out + alpha·Σ_images (blocks of the plan), with the constant's row and column last.
///
/// Rows are the channels of x, positions its pixels, each counted as often as its row's and column's weight say. Or, with
/// `patches`, rows are the numbers of a patch and positions the outputs of the convolution.
struct GramProblem {
  const ImageView& x;
  const Plan& plan;  ///< one rectangle in every slot
  const ConvGeometry* patches;
  std::vector<float> row_weights, column_weights;  ///< of every line of x; empty for 1
  bool bias;
  Update update;
  FactorView out;
};

void sum_grams(const GramProblem& problem, const Execution& run, const Schedule& schedule);

}  // namespace eigendamage::cuda
