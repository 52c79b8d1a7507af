#pragma once

#include "../kernels.h"
#include "gram.h"

namespace eigendamage::cuda {

enum class PatchForm { kCheaper, kLags, kDirect };

/// Choices that change no result but for rounding. Tests force them.
struct Tuning {
  PatchForm form = PatchForm::kCheaper;
  Schedule schedule;
};

/// Whether the lag form of a patch covariance takes less time than multiplying patches gathered from x.
bool lags_pay(const ImageView& x, const ConvGeometry& geometry, std::int64_t groups);

/// As in kernels.h.
void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run,
                const Tuning& tuning);
void channel_covariance(const ImageView& x, const ConvGeometry& geometry, const Update& update, const FactorView& out,
                        const Execution& run, const Tuning& tuning);
void patch_covariance(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                      const FactorView& out, const Execution& run, const Tuning& tuning);

}  // namespace eigendamage::cuda
