#include "tile_squares.h"

#include <algorithm>

#include "tile_sums.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: an example's positions in the matrix units, squares of up to kExamples, those of a slice.
constexpr std::int64_t kExamples = 64;
constexpr std::int64_t kMostPanels = 8;           // of g in a block
constexpr std::int64_t kSplit = 1 << 19;          // bytes of examples that are split
constexpr std::int64_t kNear = 4;                 // panels of g whose sums stay in the nearest cache
constexpr std::int64_t kMostPositions = 1 << 11;  // of an example, kept as they are packed

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

std::int64_t outputs_of(const Layer<float>& layer) {
  return layer.geometry.vertical.output * layer.geometry.horizontal.output;
}

class TileSquares final : public TileSums {
 public:
  TileSquares(const Layer<float>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning)
      : TileSums(layer, parallel_for, tuning, {layer.examples, kExamples, 1, kMostPanels, x_panels(layer)}),
        parts_(parts_of(layer.type)),
        outputs_(outputs_of(layer)),
        chunks_(std::max<std::int64_t>(1, ceil_div(outputs_, kChunk))),
        side_size_(chunks_ * parts_ * kSide) {
    const ConvAxis &v = l_.geometry.vertical, &h = l_.geometry.horizontal;
    g_positions_.assign(static_cast<std::size_t>(chunks_ * kChunk), -1);
    for (std::int64_t t = 0; t < outputs_; ++t) g_positions_[static_cast<std::size_t>(t)] = t * kTileWidth;
    for (std::int64_t k = 0; k < offsets(); ++k) {
      std::vector<std::int64_t> positions(g_positions_.size(), -1);
      for (std::int64_t t = 0; t < outputs_; ++t) {
        const std::int64_t row = v.stride * (t / h.output) + v.dilation * (k / h.kernel) - v.pad;
        const std::int64_t column = h.stride * (t % h.output) + h.dilation * (k % h.kernel) - h.pad;
        if (row < 0 || row >= l_.x_height || column < 0 || column >= l_.x_width) continue;
        positions[static_cast<std::size_t>(t)] = (row * l_.x_width + column) * kTileWidth;
      }
      x_positions_.push_back(std::move(positions));
    }
  }

 private:
  /// As many of x's as a block may have.
  static std::int64_t x_panels(const Layer<float>& layer) {
    const std::int64_t blocks = layer.g_tiling.bundles * ceil_div(layer.g_tiling.panels, kMostPanels);
    return std::clamp<std::int64_t>(layer.x_tiling.panels / ceil_div(kBlocks, blocks), 1, kMostPanels / 2);
  }

  Box x_box(std::int64_t n) const {
    return {{n, n + 1}, {0, l_.x_height}, {0, l_.x_width}, {0, l_.x_height}, {0, l_.x_width}};
  }
  Box g_box(std::int64_t n) const {
    const Range rows{0, l_.geometry.vertical.output}, columns{0, l_.geometry.horizontal.output};
    return {{n, n + 1}, rows, columns, rows, columns};
  }

  /// All positions of some panels of a bundle, as [panel][position][32]: of all panels, where these are packed together.
  void pack(const Packer<float>& packer, const Tiling& tiling, const Box& box, std::int64_t bundle, const Range& panels,
            float* out) const {
    const bool together = packer.pieces() == tiling.bundles;
    const std::int64_t first = together ? bundle : bundle * tiling.panels + panels.begin;
    for (std::int64_t piece = 0; piece < (together ? 1 : panels.size()); ++piece, out += packer.piece_size(box)) {
      for (std::int64_t task = 0; task < packer.piece_tasks(box); ++task) {
        packer.pack_piece(box, first + piece, task, out);
      }
    }
  }

  /// One side of a panel's positions.
  bool split_panel(const float* panel, const std::vector<std::int64_t>& places, bool left, std::uint16_t* side) const {
    bool right = true;
    for (std::int64_t c = 0; c < chunks_; ++c, side += parts_ * kSide) {
      const float* positions[kChunk];
      for (std::int64_t p = 0; p < kChunk; ++p) {
        const std::int64_t place = places[static_cast<std::size_t>(c * kChunk + p)];
        positions[p] = place < 0 ? nullptr : panel + place;
      }
      right &= tiles_.split_positions(positions, ~0u, 0, parts_, left ? side : nullptr, left ? nullptr : side);
    }
    return right;
  }

  /// sums (offsets, pairs of the block, 32, 32) = Σ of squares of up to kExamples examples. Returns whether they are right.
  bool sum(const Block& block, const Range& examples, float* sums) const override {
    const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
    const std::int64_t x_size = l_.x_height * l_.x_width * kTileWidth, g_size = outputs_ * kTileWidth;
    const std::int64_t together =
        std::clamp<std::int64_t>(kSplit / (side_size_ * 2 * std::max(block.g.size(), block.x.size())), 1,
                                 std::max<std::int64_t>(1, examples.size()));
    // Patches are packed with those of all panels.
    const Range x_packed = l_.x_packer->pieces() == x.bundles ? Range{0, x.panels} : block.x;
    const Buffer<float> x_panels = make_buffer<float>(together * x_packed.size() * x_size);
    const auto x_panel = [&](std::int64_t n, std::int64_t j) {
      return x_panels.get() + (n * x_packed.size() + block.x.begin + j - x_packed.begin) * x_size;
    };
    const Buffer<float> g_panel = make_buffer<float>(g_size);
    const Buffer<std::uint16_t> left = make_buffer<std::uint16_t>(block.g.size() * together * side_size_);
    const Buffer<std::uint16_t> right = make_buffer<std::uint16_t>(together * side_size_);
    bool finite = true;
    if (examples.size() == 0) std::fill_n(sums, offsets() * block.pairs() * kTileSize, 0.0f);
    for (std::int64_t begin = examples.begin; begin < examples.end; begin += together) {
      const std::int64_t some = std::min(together, examples.end - begin);
      for (std::int64_t i = 0; i < block.g.size(); ++i) {
        for (std::int64_t n = 0; n < some; ++n) {
          pack(*l_.g_packer, g, g_box(begin + n), block.bundle, {block.g.begin + i, block.g.begin + i + 1},
               g_panel.get());
          finite &= split_panel(g_panel.get(), g_positions_, true, left.get() + (i * together + n) * side_size_);
        }
      }
      for (std::int64_t n = 0; n < some; ++n) {
        pack(*l_.x_packer, x, x_box(begin + n), block.bundle, x_packed, x_panels.get() + n * x_packed.size() * x_size);
      }
      for (std::int64_t k = 0; k < offsets(); ++k) {
        for (std::int64_t j = 0; j < block.x.size(); ++j) {
          for (std::int64_t n = 0; n < some; ++n) {
            finite &= split_panel(x_panel(n, j), x_positions_[static_cast<std::size_t>(k)], false,
                                  right.get() + n * side_size_);
          }
          for (std::int64_t i = 0; i < block.g.size(); i += kNear) {
            tiles_.squares({left.get() + i * together * side_size_, right.get(), side_size_, side_size_, some,
                            together * side_size_, block.x.size() * kTileSize, std::min(kNear, block.g.size() - i),
                            chunks_, parts_},
                           g.panel_channels(block.bundle, block.g.begin + i),
                           x.panel_channels(block.bundle, block.x.begin + j), begin == examples.begin,
                           sums + (k * block.pairs() + i * block.x.size() + j) * kTileSize);
          }
        }
      }
    }
    return finite;
  }

  const std::int64_t parts_, outputs_;
  const std::int64_t chunks_, side_size_;  ///< of a side of an example's panel
  std::vector<std::int64_t>
      g_positions_;  ///< of every output, and of what it meets of x under each offset, −1 for none
  std::vector<std::vector<std::int64_t>> x_positions_;
};

/// What an example takes, in cycles of the CPU that these were measured on: with vectors, and with matrix units.
struct Costs {
  static constexpr double kWorth = 0.8;    // of the time with vectors
  static constexpr double kProducts = 24;  // of vectors
  static constexpr double kSplitLeft = 550, kSplitRight = 350, kWhole = 65, kPart = 55, kSquares = 200;
  double vectors, tiles;

  explicit Costs(const Layer<float>& layer) {
    const Tiling &x = layer.x_tiling, &g = layer.g_tiling;
    const ConvAxis &v = layer.geometry.vertical, &h = layer.geometry.horizontal;
    const std::int64_t outputs = v.output * h.output, parts = parts_of(layer.type);
    double met = 0, whole = 0, part = 0;  // channels of g and x that meet, pairs of panels, those with fewer tiles
    for (std::int64_t bundle = 0; bundle < g.bundles; ++bundle) {
      for (std::int64_t i = 0; i < g.panels; ++i) {
        const std::int64_t rows = g.panel_channels(bundle, i);
        for (std::int64_t j = 0; j < x.panels; ++j) {
          const std::int64_t columns = x.panel_channels(bundle, j);
          met += static_cast<double>(rows * ceil_div(columns, kTileWidth / 2) * kTileWidth / 2);
          (rows > kTileWidth / 2 && columns > kTileWidth / 2 ? whole : part) += 1;
        }
      }
    }
    const auto offsets = static_cast<double>(v.kernel * h.kernel),
               chunks = static_cast<double>(ceil_div(outputs, kChunk));
    const double splitting = chunks * (parts == 3 ? 1 : parts == 2 ? 0.7 : 0.4);
    const double products = chunks * (parts == 3 ? 6 : parts == 2 ? 4 : 1);
    const double pairs = products * (whole * kWhole + part * kPart) + (whole + part) * kSquares;
    vectors = pairs_of_positions(v, layer.x_height) * pairs_of_positions(h, layer.x_width) * met / kProducts;
    tiles = static_cast<double>(g.bundles * g.panels) * splitting * kSplitLeft +
            offsets * (static_cast<double>(x.bundles * x.panels) * splitting * kSplitRight + pairs);
  }

  /// Lines of g and of x that meet under an offset of the axis, all offsets together.
  static double pairs_of_positions(const ConvAxis& axis, std::int64_t size) {
    std::int64_t pairs = 0;
    for (std::int64_t k = 0; k < axis.kernel; ++k) {
      for (std::int64_t t = 0; t < axis.output; ++t) {
        const std::int64_t line = axis.stride * t + axis.dilation * k - axis.pad;
        pairs += 0 <= line && line < size;
      }
    }
    return static_cast<double>(pairs);
  }
};

}  // namespace

bool tiles_pay(const Layer<float>& layer, const GradientTuning& tuning) {
  const std::int64_t outputs = outputs_of(layer), pixels = layer.x_height * layer.x_width;
  const bool possible = layer.simd.tiles && layer.products == Products::kPairs && layer.x_tiling.width == kTileWidth &&
                        layer.g_tiling.width == kTileWidth && std::max(outputs, pixels) <= kMostPositions;
  if (!possible || tuning.tiles == 0) return possible;
  const Costs costs(layer);
  return static_cast<double>(layer.examples) * costs.vectors * Costs::kProducts >= tuning.tiles &&
         costs.tiles < Costs::kWorth * costs.vectors;
}

std::vector<WeightPair> sum_tile_squares(const Layer<float>& layer, const ParallelFor& parallel_for,
                                         const GradientTuning& tuning) {
  return TileSquares(layer, parallel_for, tuning).run();
}

}  // namespace eigendamage::cpu
