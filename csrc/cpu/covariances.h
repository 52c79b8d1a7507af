#pragma once

#include "../kernels.h"
#include "gram.h"

namespace eigendamage::cpu {

enum class PatchForm {
  kCheaper,
  kLags,
  kTiledLags,
  kDirect,
  kSpectral
};  ///< kTiledLags: by matrix units, if there are any

/// Choices that change no result but for rounding. Tests force them.
struct Tuning {
  PatchForm form = PatchForm::kCheaper;
  Limits limits = {};
  double alone = 4e6;  ///< multiply-adds that the calling thread does by itself: others take as long to wake up
  double tiles = 8e6;  ///< multiply-adds from which on matrix units are used; 0 wherever they can be
  std::int64_t spectra = 20 << 20;  ///< bytes of spectra, shared by the threads
  std::int64_t around = 16 << 20;   ///< bytes of a result from which on it is written around the caches
};

/// As in kernels.h.
void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run,
                const Tuning& tuning);
void channel_covariance(const ImageView& x, const ConvGeometry& geometry, const Update& update, const FactorView& out,
                        const Execution& run, const Tuning& tuning);
void patch_covariance(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                      const FactorView& out, const Execution& run, const Tuning& tuning);

}  // namespace eigendamage::cpu
