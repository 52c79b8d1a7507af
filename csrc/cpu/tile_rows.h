#pragma once

#include <vector>

#include "squares.h"
#include "weight_writer.h"

namespace eigendamage::cpu {

/// Whether sum_tile_rows can take the layer, and there are enough examples for their squares to be worth splitting.
bool tiles_pay_for_rows(const Layer<float>& layer, const GradientTuning& tuning);

/// add_squared_rows by matrix units: examples are positions, and their squares are multiplied as numbers are. Returns pairs of
/// panels that it has left out, and not written: where products of parts would spoil them.
std::vector<WeightPair> sum_tile_rows(const Layer<float>& layer, const ParallelFor& parallel_for,
                                      const GradientTuning& tuning);

}  // namespace eigendamage::cpu
