#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "../kernels.h"
#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// Bytes of memory.
struct Limits {
  // Where sums are kept until the end:
  std::int64_t kept = 1 << 20;      ///< the most of them, of one slice of the batch
  std::int64_t slices = 4 << 20;    ///< of all slices
  std::int64_t kept_box = 1 << 20;  ///< packed positions of a thread
  std::int64_t near_box = 1 << 18;  ///< likewise where no lag makes boxes overlap: all that is read again stays near
  // Where they are not:
  std::int64_t added = 1 << 19;      ///< sums that a thread holds before it adds them to `out`
  std::int64_t added_box = 1 << 19;  ///< packed positions of two panels, read again for every lag
  std::int64_t packed = 16 << 20;    ///< packed positions shared by the threads
};

/// Panels of chunks in place of numbers: a position is one of 32 images, in chunk_size(parts) bfloat16 numbers.
struct InTiles {
  const TileKernels* kernels = nullptr;  ///< null for panels of numbers
  std::int64_t parts = 0;
  const std::atomic<bool>* special = nullptr;  ///< true where a number that was packed is not finite
};

/// Everything that sums over positions is one computation: the plan says which Grams of a grid's positions and lags make
/// up which block of the output, the tiling how channels are laid into panels, the packer where their values come from.
///
///   out = beta·out + alpha·Σ_images (blocks of the plan), with the constant's row and column last.
///
/// Where the sums are few, a thread packs and sums slices of the batch; else all pack a batch of boxes together, and a
/// thread sums rows of two panels over them, to write the output as seldom as memory allows. Which thread does what is left
/// open; what is added to what, in which order, depends on the shape alone.
template <class T>
struct GramProblem {
  const PanelKernels<T>& simd;
  const Plan& plan;
  const Tiling& tiling;
  const Packer<T>& packer;
  std::int64_t images;  ///< that are packed; as such, 32 in tiles are one
  Update update;
  FactorView out;
  const ParallelFor& parallel_for;
  Limits limits;
  std::int64_t around;    ///< bytes of `out` from which on it is written around the caches
  double tiles;           ///< multiply-adds from which on matrix units are worth the time that they take to begin
  std::int64_t examples;  ///< images, each of those in tiles counted
  InTiles in_tiles = {};
};

/// Returns false, and has written nothing, where a number in tiles is not finite, which products of parts would spoil.
template <class T>
bool sum_grams(const GramProblem<T>& problem);

}  // namespace eigendamage::cpu
