#pragma once

#include "../kernels.h"
#include "panels.h"
#include "second_moment.h"
#include "simd.h"

namespace eigendamage::cpu {

/// Examples of one position each, as the columns of one image, and how their channels are laid into panels.
struct Rows {
  ImageView values;
  Tiling tiling;
};

/// out = beta·out + alpha·Σ_n (g_n x_nᵀ)² = beta·out + alpha·(g²)ᵀ(x²), whose kernel is a single offset.
template <class T>
void add_squared_rows(const PanelKernels<T>& simd, const GradientKernels<T>& gradients, const Rows& x, const Rows& g,
                      const Update& update, const WeightView& out, const ParallelFor& parallel_for,
                      const GradientTuning& tuning);

}  // namespace eigendamage::cpu
