#pragma once

#include <vector>

#include "squares.h"
#include "weight_writer.h"

namespace eigendamage::cpu {

/// Whether sum_tile_squares can take the layer, and it is enough work for its numbers to be worth splitting.
bool tiles_pay(const Layer<float>& layer, const GradientTuning& tuning);

/// add_squared_gradients by matrix units. Returns pairs of panels that it has left out, and not written: where a number is not
/// finite, products of parts would spoil them.
///
/// A thread takes a slice of the examples where all sums fit into a cache, else a block of pairs of panels. It splits the
/// positions of g once, those of x anew for every kernel offset, which reads others.
std::vector<WeightPair> sum_tile_squares(const Layer<float>& layer, const ParallelFor& parallel_for,
                                         const GradientTuning& tuning);

}  // namespace eigendamage::cpu
