#pragma once

#include "../kernels.h"

namespace eigendamage::cpu {

enum class GradientForm { kCheaper, kOffsets, kPatches, kLanes };

/// Choices that change no result but for rounding. Tests force them. kPatches is for a single group.
struct GradientTuning {
  GradientForm form = GradientForm::kCheaper;
  // Bytes that are held at a time:
  std::int64_t packed = 8 << 20;  ///< of packed examples that all threads share; one example at least
  std::int64_t own = 1 << 19;     ///< of those that a thread packs for itself
  std::int64_t sums = 16 << 20;   ///< of sums, where every thread has its own
  double tiles = 8e6;             ///< multiply-adds from which on matrix units are used; 0 wherever they can be
};

/// As in kernels.h.
void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const GradientTuning& tuning);

}  // namespace eigendamage::cpu
