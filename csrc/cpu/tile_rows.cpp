#include "tile_rows.h"

#include <algorithm>

#include "tile_sums.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: up to kTogether chunks in the matrix units, kLevel of them in a tile, those of a slice. A number that
// two threads share takes each as long as splitting it, so that blocks split their own.
constexpr std::int64_t kLevel = 64, kShortSlice = 4, kLongSlice = 8, kMostPanels = 16;
constexpr std::int64_t kSplit = 3 << 18;     // bytes of examples that are split
constexpr std::int64_t kTogether = 16;       // chunks
constexpr std::int64_t kLeastExamples = 64;  // to be worth splitting
constexpr double kLeastWork = 3;             // times what examples of several positions need

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

class TileRows final : public TileSums {
 public:
  TileRows(const Layer<float>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning)
      : TileSums(layer, parallel_for, tuning, levels(layer)), parts_(layer.type == ScalarType::kBFloat16 ? 2 : 3) {}

 private:
  /// About as many panels of g as of x in a block, so that neither is split for many.
  static Levels levels(const Layer<float>& layer) {
    const std::int64_t pairs = layer.g_tiling.bundles * layer.g_tiling.panels * layer.x_tiling.panels;
    const std::int64_t in_block = ceil_div(pairs, kBlocks);
    std::int64_t g_panels = 1;
    while (g_panels * g_panels < in_block && g_panels < kMostPanels) g_panels *= 2;
    const std::int64_t x_panels = std::min(ceil_div(in_block, g_panels), kMostPanels);
    const std::int64_t chunks = ceil_div(layer.examples, kChunk);
    return {chunks, kLevel, chunks < kLongSlice * 4 ? kShortSlice : kLongSlice, g_panels, x_panels};
  }

  std::int64_t side_size() const { return parts_ * kSide; }

  /// One side of a chunk's squares.
  bool split_chunk(const Packer<float>& packer, std::int64_t chunk, std::int64_t panel, bool left,
                   std::uint16_t* side) const {
    alignas(64) float squares[kChunk * kTileWidth];
    const float* positions[kChunk] = {};
    const Range examples{chunk * kChunk, std::min(l_.examples, (chunk + 1) * kChunk)};
    const Box box{{0, 1}, {0, 1}, examples, {0, 1}, examples};
    for (std::int64_t task = 0; task < packer.piece_tasks(box); ++task) packer.pack_piece(box, panel, task, squares);
    l_.simd.square(squares, examples.size() * kTileWidth);
    for (std::int64_t n = 0; n < examples.size(); ++n) positions[n] = squares + n * kTileWidth;
    return tiles_.split_positions(positions, ~0u, 0, parts_, left ? side : nullptr, left ? nullptr : side);
  }

  bool sum(const Block& block, const Range& chunks, float* sums) const override {
    const std::int64_t panels = block.g.size() + block.x.size();
    const std::int64_t together = std::clamp<std::int64_t>(kSplit / (panels * side_size() * 2), 1, kTogether);
    const Buffer<std::uint16_t> sides = make_buffer<std::uint16_t>(panels * together * side_size());
    const auto g_side = [&](std::int64_t i) { return sides.get() + i * together * side_size(); };
    const auto x_side = [&](std::int64_t j) { return g_side(block.g.size() + j); };
    if (chunks.size() == 0) std::fill_n(sums, block.pairs() * kTileSize, 0.0f);
    bool right = true;
    for (std::int64_t begin = chunks.begin; begin < chunks.end; begin += together) {
      const std::int64_t some = std::min(together, chunks.end - begin);
      for (std::int64_t c = 0; c < some; ++c) {
        for (std::int64_t i = 0; i < block.g.size(); ++i) {
          const std::int64_t panel = block.bundle * l_.g_tiling.panels + block.g.begin + i;
          right &= split_chunk(*l_.g_packer, begin + c, panel, true, g_side(i) + c * side_size());
        }
        for (std::int64_t j = 0; j < block.x.size(); ++j) {
          const std::int64_t panel = block.bundle * l_.x_tiling.panels + block.x.begin + j;
          right &= split_chunk(*l_.x_packer, begin + c, panel, false, x_side(j) + c * side_size());
        }
      }
      for (std::int64_t j = 0; j < block.x.size(); ++j) {
        tiles_.sums({g_side(0), x_side(j), 0, 0, 1, together * side_size(), block.x.size() * kTileSize, block.g.size(),
                     some, parts_},
                    l_.g_tiling.panel_channels(block.bundle, block.g.begin),
                    l_.x_tiling.panel_channels(block.bundle, block.x.begin + j), begin == chunks.begin,
                    sums + j * kTileSize);
      }
    }
    return right;
  }

  const std::int64_t parts_;  ///< of squares
};

}  // namespace

bool tiles_pay_for_rows(const Layer<float>& layer, const GradientTuning& tuning) {
  if (!layer.simd.tiles || layer.x_tiling.width != kTileWidth || layer.g_tiling.width != kTileWidth) return false;
  const double products = static_cast<double>(layer.examples) * static_cast<double>(layer.out.outputs) *
                          static_cast<double>(layer.out.inputs);
  return tuning.tiles == 0 || (layer.examples >= kLeastExamples && products >= kLeastWork * tuning.tiles);
}

std::vector<WeightPair> sum_tile_rows(const Layer<float>& layer, const ParallelFor& parallel_for,
                                      const GradientTuning& tuning) {
  return TileRows(layer, parallel_for, tuning).run();
}

}  // namespace eigendamage::cpu
