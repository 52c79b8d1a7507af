#pragma once

#include "../kernels.h"

namespace eigendamage::cpu {

/// As in kernels.h.
void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run);

}  // namespace eigendamage::cpu
