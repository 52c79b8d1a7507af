#pragma once

#include <cstdint>
#include <functional>

#include "../kernels.h"
#include "../lag_form/spectral.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// The patch covariance from spectra of whole images. At every frequency the spectra of all channels give one complex C × C
/// sum over the images; the sums of all lags are a transform of these. Compared with the lag form, the products of a pair
/// of channels are as many as an image has pixels with a margin, whatever the number of lags.
template <class T>
struct SpectralProblem {
  const PanelKernels<T>& simd;
  const GradientKernels<T>& products;
  const SpectralKernels<T>& spectral;
  SpectralPlan plan;
  const Tiling& tiling;
  ImageView x;
  Update update;
  FactorView out;
  const ParallelFor& parallel_for;
  std::int64_t around;  ///< as in GramProblem
  std::int64_t bytes;   ///< of spectra: as many images at a time as they have room for, one at least
  /// Adds the covariance of a batch in another form: one of numbers so large, or not finite, that sums of theirs might
  /// overflow.
  std::function<void(const ImageView& x, const Update& update)> otherwise;
};

template <class T>
void sum_spectra(const SpectralProblem<T>& problem);

}  // namespace eigendamage::cpu
