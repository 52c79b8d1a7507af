#include "rows.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "tile_rows.h"
#include "weight_writer.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: positions in registers, register sums in a tile, tiles in the output. A small weight has too few
// entries for their errors to average out.
constexpr std::int64_t kListed = 64, kListedSmall = 16, kSmall = 2048;
constexpr std::int64_t kFew = 4;                 // panels of x that meet one of g while it stays in the nearest cache
constexpr std::int64_t kItems = 32;              // enough to share for all threads to end together
constexpr std::int64_t kWorthSharing = 1 << 20;  // multiply-adds

constexpr std::int64_t kTile = kMaxWidth * kMaxWidth;

/// Rows of panel i of g against a few panels of x.
struct Item {
  std::int64_t bundle, i;
  Range rows, panels;
};

template <class T>
class SquaredRows {
 public:
  /// `together` is the most examples that `add` is given; `only` those pairs, in order, or where there are none all.
  SquaredRows(const Layer<T>& layer, const ParallelFor& parallel_for, std::int64_t together,
              const std::vector<WeightPair>& only)
      : l_(layer),
        parallel_for_(parallel_for),
        writer_(layer),
        items_(items(only)),
        x_(make_buffer<T>(together * l_.x_tiling.channels_per_position())),
        g_(make_buffer<T>(together * l_.g_tiling.channels_per_position())) {}

  /// out += alpha·Σ (g_n x_nᵀ)²; `first` applies beta before.
  void add(const Range& examples, bool first) const {
    const std::int64_t size = examples.size(), x_panels = l_.x_tiling.bundles * l_.x_tiling.panels,
                       g_panels = l_.g_tiling.bundles * l_.g_tiling.panels;
    for_each(parallel_for_, x_panels + g_panels, [&](std::int64_t panel) {
      if (panel < x_panels) {
        pack(*l_.x_packer, examples, panel, x_.get() + panel * size * l_.x_tiling.width);
      } else {
        pack(*l_.g_packer, examples, panel - x_panels, g_.get() + (panel - x_panels) * size * l_.g_tiling.width);
      }
    });
    for_each(parallel_for_, static_cast<std::int64_t>(items_.size()), [&](std::int64_t i) {
      alignas(64) T sums[kFew * kTile];
      const Item& item = items_[static_cast<std::size_t>(i)];
      writer_.fetch({item.bundle, item.i, item.rows, item.panels, {0, 1}});
      sum(item, size, sums);
      writer_.write({item.bundle, item.i, item.rows, item.panels, {0, 1}}, sums, kTile, 0, first);
    });
  }

 private:
  std::vector<Item> items(const std::vector<WeightPair>& only) const {
    const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
    const std::int64_t few = only.empty() ? kFew : 1;
    const std::int64_t whole = g.bundles * g.panels * ((x.panels + few - 1) / few);
    const std::int64_t strip = whole < kItems ? std::min(g.width, l_.simd.tile_rows) : g.width;
    std::vector<Item> list;
    for (std::int64_t bundle = 0; bundle < g.bundles; ++bundle) {
      for (std::int64_t j = 0; j < x.panels; j += few) {
        for (std::int64_t i = 0; i < g.panels; ++i) {
          if (!only.empty() && !std::binary_search(only.begin(), only.end(), WeightPair{bundle, i, j})) continue;
          const std::int64_t rows = g.panel_channels(bundle, i);
          for (std::int64_t r = 0; r < rows; r += strip) {
            list.push_back({bundle, i, {r, std::min(rows, r + strip)}, {j, std::min(x.panels, j + few)}});
          }
        }
      }
    }
    return list;
  }

  void pack(const Packer<T>& packer, const Range& examples, std::int64_t panel, T* squares) const {
    const Box box{{0, 1}, {0, 1}, examples, {0, 1}, examples};
    for (std::int64_t task = 0; task < packer.piece_tasks(box); ++task) packer.pack_piece(box, panel, task, squares);
    l_.simd.square(squares, packer.piece_size(box));
  }

  /// (rows, 2·lanes) sums of packed squares, a tile for each panel of x.
  void sum(const Item& item, std::int64_t examples, T* sums) const {
    GradientTask<T> task{};
    task.g = g_.get() + (item.bundle * l_.g_tiling.panels + item.i) * examples * l_.g_tiling.width + item.rows.begin;
    task.g_width = l_.g_tiling.width;
    task.x_width = l_.x_tiling.width;
    task.examples = task.step = 1;
    task.rows = item.rows.size();
    task.fresh = true;
    const std::int64_t listed = l_.out.outputs * l_.out.inputs < kSmall ? kListedSmall : kListed;
    if (examples == 0) std::fill_n(sums, kFew * kTile, T(0));
    for (std::int64_t first = 0; first < examples; first += listed, task.fresh = false) {
      const PairedRun run{first, first, std::min(listed, examples - first)};
      task.runs = &run;
      task.runs_end = &run + 1;
      task.partial = sums;
      for (std::int64_t j = item.panels.begin; j < item.panels.end; ++j, task.partial += kTile) {
        task.x = x_.get() + (item.bundle * l_.x_tiling.panels + j) * examples * l_.x_tiling.width;
        task.columns = l_.x_tiling.panel_channels(item.bundle, j);
        l_.gradients.add(task);
      }
    }
  }

  const Layer<T>& l_;
  const ParallelFor& parallel_for_;
  const WeightWriter<T> writer_;
  const std::vector<Item> items_;
  const Buffer<T> x_, g_;  ///< squares, packed
};

}  // namespace

template <class T>
void add_squared_rows(const Layer<T>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning) {
  static const ParallelFor alone = [](std::int64_t count, const auto& body) { body(0, count); };
  const std::int64_t all = layer.examples,
                     numbers = layer.x_tiling.channels_per_position() + layer.g_tiling.channels_per_position();
  const ParallelFor& threads = all * layer.out.outputs * layer.out.inputs > kWorthSharing ? parallel_for : alone;
  std::vector<WeightPair> only;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (tiles_pay_for_rows(layer, tuning)) {
      only = sum_tile_rows(layer, threads, tuning);
      if (only.empty()) return;
      std::sort(only.begin(), only.end());
    }
  }
  const std::int64_t fitting = tuning.packed / (numbers * static_cast<std::int64_t>(sizeof(T)));
  const std::vector<Range> parts = split(all, std::max<std::int64_t>(1, fitting));
  const SquaredRows<T> rows(layer, threads, parts.front().size() + 1, only);
  for (const Range& part : parts) rows.add(part, part.begin == 0);
}

template void add_squared_rows(const Layer<float>&, const ParallelFor&, const GradientTuning&);
template void add_squared_rows(const Layer<double>&, const ParallelFor&, const GradientTuning&);

}  // namespace eigendamage::cpu
