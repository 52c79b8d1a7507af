#pragma once

#include <mutex>
#include <vector>

#include "squares.h"
#include "weight_writer.h"

namespace eigendamage::cpu {

/// Sums by matrix units for every pair of panels of a layer: who sums which, over which examples.
///
/// A thread takes a slice of the examples where all sums fit into a cache, else a block of pairs of panels. What is added to
/// what depends on the shape alone.
class TileSums {
 public:
  static constexpr std::int64_t kTileSize = kTileWidth * kTileWidth;
  static constexpr std::int64_t kBlocks = 8;  ///< enough for threads to share

  virtual ~TileSums() = default;

  /// Returns pairs of panels that it has left out, and not written: where a number is not finite, products of parts would
  /// spoil them.
  std::vector<WeightPair> run();

 protected:
  /// Some panels of g against some of x.
  struct Block {
    std::int64_t bundle;
    Range g, x;

    std::int64_t pairs() const { return g.size() * x.size(); }
  };

  /// How the examples are summed, and what is worth a thread's while.
  struct Levels {
    std::int64_t units, together;     ///< of examples: all, and how many `sum` is given at most
    std::int64_t in_slice;            ///< units that are worth sums of their own
    std::int64_t g_panels, x_panels;  ///< of a block
  };

  TileSums(const Layer<float>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning,
           const Levels& levels)
      : l_(layer),
        tiles_(*layer.simd.tiles),
        parallel_for_(parallel_for),
        sums_(tuning.sums),
        writer_(layer),
        levels_(levels) {}

  /// sums (offsets, pairs of the block, 32, 32) = Σ over some units. Returns whether they are right.
  virtual bool sum(const Block& block, const Range& units, float* sums) const = 0;

  std::int64_t offsets() const { return l_.geometry.vertical.kernel * l_.geometry.horizontal.kernel; }

  const Layer<float>& l_;
  const TileKernels& tiles_;

 private:
  std::int64_t all_pairs() const { return l_.g_tiling.bundles * l_.g_tiling.panels * l_.x_tiling.panels; }
  std::int64_t sums_size(const Block& block) const { return offsets() * block.pairs() * kTileSize; }
  std::vector<Block> blocks(std::int64_t g_panels, std::int64_t x_panels) const;
  bool sum_all(const Block& block, const Range& units, float* total, float* sums) const;
  void write(const Block& block, std::int64_t i, const float* sums) const;
  void leave_out(const Block& block);
  void sum_slices(std::int64_t slices);
  void sum_blocks();

  const ParallelFor& parallel_for_;
  const std::int64_t sums_;  ///< bytes
  const WeightWriter<float> writer_;
  const Levels levels_;
  std::mutex mutex_;
  std::vector<WeightPair> left_out_;
};

}  // namespace eigendamage::cpu
