#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../lag_form/plan.h"
#include "../views.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// How the positions of a box fall into chunks: those of one weight after those of another. The last chunk of each may be
/// filled up with zeros.
struct ChunkList {
  struct Weighted {
    Range chunks;
    float weight;
  };
  std::vector<Weighted> weighted;
  std::vector<std::int64_t> positions;  ///< where those of a chunk begin, kChunk each, −1 for none; not of segments

  std::int64_t count() const { return weighted.empty() ? 0 : weighted.back().chunks.end; }
};

/// Fills the chunks of a box: chunks[bundle][panel][chunk][part], from the positions of a plan that has one slot, of lag
/// zero.
class ChunkPacker {
 public:
  virtual ~ChunkPacker() = default;
  virtual std::int64_t parts() const = 0;
  virtual std::int64_t least_panels() const = 0;  ///< for products to save more time than packing takes
  virtual std::int64_t most_chunks(const Box& box) const = 0;
  virtual ChunkList list(const Box& box) const = 0;
  virtual std::int64_t pieces() const = 0;  ///< that are packed apart from each other

  /// Returns whether they are right: not if a number is not finite.
  virtual bool pack(const Box& box, const ChunkList& list, std::int64_t piece, std::uint16_t* chunks) const = 0;
};

/// Chunks of what the packer puts into panels, numbers of that type.
std::unique_ptr<ChunkPacker> chunk_panels(const TileKernels& tiles, const Plan& plan, const Tiling& tiling,
                                          const Packer<float>& packer, ScalarType type);

/// Chunks of the pixels of x, read where they are if these are floats that lie side by side, lines of pixels or of channels;
/// else by way of panels.
std::unique_ptr<ChunkPacker> chunk_pixels(const TileKernels& tiles, const Plan& plan, const Tiling& tiling,
                                          const Packer<float>& packer, const ImageView& x);

/// Panels of chunks in place of numbers: a position is one of every image in turn, and an image 32 of the packer's, those
/// behind the last one empty. What is packed is bfloat16 numbers, chunk_size(parts) for every position, in twice as few floats.
/// `special` becomes true where a number is not finite.
std::unique_ptr<Packer<float>> chunk_images(const TileKernels& tiles, const Tiling& tiling, const Packer<float>& packer,
                                            std::int64_t images, ScalarType type, std::atomic<bool>& special);

}  // namespace eigendamage::cpu
