#pragma once

#include "chunks.h"
#include "gram.h"

namespace eigendamage::cpu {

/// Whether sum_tiles can take the problem, a plan of one sum without lags in panels of kTileWidth channels, and there is more
/// work than the matrix units take to begin.
bool tiles_pay(const GramProblem<float>& problem);

/// sum_grams by matrix units. Returns false, and has written nothing, where a number is not finite, which a product of parts
/// would spoil.
///
/// Where the sums are few, a thread packs and sums slices of the batch; else all share what is packed, and a thread sums a
/// block of pairs of panels over it. What is added to what, in which order, depends on the shape alone.
bool sum_tiles(const GramProblem<float>& problem, const ChunkPacker& packer);

}  // namespace eigendamage::cpu
