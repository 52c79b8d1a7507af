#pragma once

#include "squares.h"

namespace eigendamage::cpu {

/// out = beta·out + alpha·Σ_n (g_n x_nᵀ)² = beta·out + alpha·(g²)ᵀ(x²), where the kernel is a single offset: the packers see the
/// examples as columns of one image.
template <class T>
void add_squared_rows(const Layer<T>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning);

}  // namespace eigendamage::cpu
