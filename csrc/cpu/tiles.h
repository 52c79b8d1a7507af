#pragma once

#include <cstdint>

#include "../lag_form/plan.h"
#include "../views.h"

namespace eigendamage::cpu {

struct Run;

constexpr std::int64_t kChunk = 32;      ///< positions that a product of tiles sums
constexpr std::int64_t kTileWidth = 32;  ///< channels of a panel in tiles: two tiles of 16
constexpr std::int64_t kSide = 1024;     ///< bfloat16 numbers of a part of a chunk, on one side of a product

/// Sixteen positions in a row: those in `mask` of lines at `offset`, each counted as often as its weight says.
struct Segment16 {
  std::int64_t offset;
  std::uint32_t mask;
  const float* weights;
};

/// Examples for TileKernels::sums: some panels' left sides of a product, and one's right sides.
struct Sides {
  const std::uint16_t *a, *b;
  std::int64_t a_step, b_step, examples;    ///< from an example to the next, and how many
  std::int64_t a_panel, tile_step, panels;  ///< from a panel on the left and its tile to the next, and how many
  std::int64_t chunks, parts;
};

/// Products of bfloat16 numbers, summed as floats by the CPU's matrix units. A float is the sum of three bfloat16s of 8 bits
/// each, its parts; the products of parts that matter to a float are summed one after the other.
///
/// A chunk holds 32 positions of a panel of 32 channels for both sides of a product: all parts as rows of positions, one for
/// each channel, then all parts as rows of channels, one for each pair of positions; in tiles of 16 rows.
struct TileKernels {
  /// The channels in `channels`, a bit for each, at 32 positions, as that many parts, for both sides of a product or one,
  /// where the other is null; those in `constant` are 1 and others 0, as are positions that are null. Returns whether
  /// products of the parts are right: not where a number is not finite, or in several parts 2^48 or more.
  bool (*split_positions)(const float* const* positions, std::uint32_t channels, std::uint32_t constant,
                          std::int64_t parts, std::uint16_t* left, std::uint16_t* right);

  /// chunk = 32 lines of numbers, one for each channel or null for zeros, at the positions of two segments, as three parts;
  /// with `weighted`, those on the left of a product times the weights. Meanwhile lines at `next` are fetched. Likewise.
  bool (*split_lines)(const float* const* lines, const Segment16* segments, bool weighted, const std::int64_t* next,
                      std::uint16_t* chunk);

  /// PanelKernels<float>::gram over runs of chunks of two panels, each `step` numbers after the one before. rows.begin is a
  /// multiple of 16.
  void (*gram)(const std::uint16_t* a, const std::uint16_t* b, std::int64_t step, const Run* runs,
               std::int64_t run_count, std::int64_t parts, const Range& rows, std::int64_t columns, bool upper,
               float weight, bool fresh, float* tile);

  /// tile[r·32 + c] = (fresh ? 0 : tile) + Σ_n Σ_p a_n[p, r] b_n[p, c], r < rows, c < columns, over examples n of so many
  /// chunks each, for every panel on the left. Whole tiles of 16 × 16 are computed: the other entries hold rubbish afterwards.
  void (*sums)(const Sides& sides, std::int64_t rows, std::int64_t columns, bool fresh, float* tile);

  /// The same of squares, (Σ_p a_n[p, r] b_n[p, c])².
  void (*squares)(const Sides& sides, std::int64_t rows, std::int64_t columns, bool fresh, float* tile);
};

constexpr std::int64_t chunk_size(std::int64_t parts) { return 2 * parts * kSide; }

/// Parts that hold every number of the type exactly, as long as it is not tiny.
inline std::int64_t parts_of(ScalarType type) {
  return type == ScalarType::kBFloat16 ? 1 : type == ScalarType::kFloat16 ? 2 : 3;
}

}  // namespace eigendamage::cpu
