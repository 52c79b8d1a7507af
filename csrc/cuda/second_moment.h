#pragma once

#include "../kernels.h"

namespace eigendamage::cuda {

enum class MomentForm { kCheaper, kTiles, kPairs, kWeights };

/// Choices that change no result but for rounding. Tests force them.
struct MomentTuning {
  MomentForm form = MomentForm::kCheaper;
  std::int64_t splits = 0;               ///< parts of the batch that are summed apart; 0: as many as fill the device
  std::int64_t scratch = 64 << 20;       ///< bytes that their sums may take
  std::int64_t examples_in_sum = 512;    ///< added up in one register
  std::int64_t positions_in_sum = 1024;  ///< likewise; a power of two
};

/// As in kernels.h.
void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const MomentTuning& tuning);

}  // namespace eigendamage::cuda
