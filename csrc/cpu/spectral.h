#pragma once

#include <cstdint>

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
  const SpectralPlan& plan;
  const Tiling& tiling;
  ImageView x;
  Update update;
  FactorView out;
  const ParallelFor& parallel_for;
};

/// Images whose spectra are held at once: as many as fit into `bytes`, one at least.
template <class T>
std::int64_t images_together(const SpectralPlan& plan, const Tiling& tiling, std::int64_t bytes);

/// False, and nothing is written, where x holds numbers so large, or not finite, that sums could overflow which another form
/// can do.
template <class T>
bool sum_spectra(const SpectralProblem<T>& problem);

}  // namespace eigendamage::cpu
