#pragma once

#include "../kernels.h"

namespace eigendamage::cpu {

enum class GradientForm { kCheaper, kOffsets, kPatches };

/// Choices that change no result but for rounding. Tests force them. kPatches is for a single group.
struct GradientTuning {
  GradientForm form = GradientForm::kCheaper;
  std::int64_t packed = 8 << 20;  ///< bytes of packed examples, shared by the threads; one example at least
};

/// As in kernels.h.
void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const GradientTuning& tuning);

}  // namespace eigendamage::cpu
