#include "rows.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

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
  SquaredRows(const PanelKernels<T>& simd, const GradientKernels<T>& gradients, const Rows& x, const Rows& g,
              const Update& update, const WeightView& out)
      : simd_(simd), gradients_(gradients), x_(x.tiling), g_(g.tiling), update_(update), out_(out) {
    x_packer_ = pack_pixels(simd, x.values, x_);
    g_packer_ = pack_pixels(simd, g.values, g_);
  }

  /// Adds the examples, so many at a time.
  void add(std::int64_t examples, std::int64_t together, const ParallelFor& parallel_for) const {
    const std::vector<Item> items = this->items();
    const Buffer<T> x = make_buffer<T>(together * x_.channels_per_position());
    const Buffer<T> g = make_buffer<T>(together * g_.channels_per_position());
    const std::int64_t x_panels = x_.bundles * x_.panels, g_panels = g_.bundles * g_.panels;
    for (std::int64_t begin = 0; begin == 0 || begin < examples; begin += together) {
      const Range some{begin, std::min(examples, begin + together)};
      for_each(parallel_for, x_panels + g_panels, [&](std::int64_t panel) {
        if (panel < x_panels) {
          pack(*x_packer_, x_, some, panel, x.get());
        } else {
          pack(*g_packer_, g_, some, panel - x_panels, g.get());
        }
      });
      for_each(parallel_for, static_cast<std::int64_t>(items.size()), [&](std::int64_t i) {
        alignas(64) T sums[kFew * kTile];
        const Item& item = items[static_cast<std::size_t>(i)];
        sum(item, some.size(), x.get(), g.get(), sums);
        write(item, sums, begin == 0 ? update_.beta : 1);
      });
    }
  }

 private:
  std::vector<Item> items() const {
    const std::int64_t whole = g_.bundles * g_.panels * ((x_.panels + kFew - 1) / kFew);
    const std::int64_t strip = whole < kItems ? std::min(g_.width, simd_.tile_rows) : g_.width;
    std::vector<Item> list;
    for (std::int64_t bundle = 0; bundle < g_.bundles; ++bundle) {
      for (std::int64_t few = 0; few < x_.panels; few += kFew) {
        const Range panels{few, std::min(x_.panels, few + kFew)};
        for (std::int64_t i = 0; i < g_.panels; ++i) {
          const std::int64_t rows = g_.panel_channels(bundle, i);
          for (std::int64_t r = 0; r < rows; r += strip)
            list.push_back({bundle, i, {r, std::min(rows, r + strip)}, panels});
        }
      }
    }
    return list;
  }

  void pack(const Packer<T>& packer, const Tiling& tiling, const Range& examples, std::int64_t panel, T* packed) const {
    packer.pack({{0, 1}, {0, 1}, examples, {0, 1}, examples}, panel, packed);
    const std::int64_t size = examples.size() * tiling.width;
    simd_.square(packed + panel * size, size);
  }

  /// (rows, 2·lanes) sums of packed squares, a tile for each panel of x.
  void sum(const Item& item, std::int64_t examples, const T* x, const T* g, T* sums) const {
    GradientTask<T> task{};
    task.g = g + (item.bundle * g_.panels + item.i) * examples * g_.width + item.rows.begin;
    task.g_width = g_.width;
    task.x_width = x_.width;
    task.examples = task.step = 1;
    task.rows = item.rows.size();
    task.fresh = true;
    const std::int64_t listed = out_.outputs * out_.inputs < kSmall ? kListedSmall : kListed;
    if (examples == 0) std::fill_n(sums, kFew * kTile, T(0));
    for (std::int64_t first = 0; first < examples; first += listed, task.fresh = false) {
      const PairedRun run{first, first, std::min(listed, examples - first)};
      task.runs = &run;
      task.runs_end = &run + 1;
      task.partial = sums;
      for (std::int64_t j = item.panels.begin; j < item.panels.end; ++j, task.partial += kTile) {
        task.x = x + (item.bundle * x_.panels + j) * examples * x_.width;
        task.columns = x_.panel_channels(item.bundle, j);
        gradients_.add(task);
      }
    }
  }

  /// out = beta·out + alpha·sums, of the columns of a row's own group.
  void write(const Item& item, const T* sums, double beta) const {
    for (std::int64_t r = item.rows.begin; r < item.rows.end; ++r, sums += 2 * simd_.lanes) {
      const std::int64_t row = item.i * g_.width + r, output = item.bundle * g_.bundle_groups * g_.channels + row;
      T* line = static_cast<T*>(out_.data) + output * out_.output_stride;
      const std::int64_t group = row / g_.channels * x_.channels;  // its first channel in the bundle
      const T* tile = sums;
      for (std::int64_t j = item.panels.begin; j < item.panels.end; ++j, tile += kTile) {
        const std::int64_t origin = group - j * x_.width, begin = std::max<std::int64_t>(0, origin);
        const std::int64_t end = std::clamp<std::int64_t>(origin + x_.channels, begin, x_.width);
        T* to = line + (begin - origin) * out_.input_stride;
        if (out_.input_stride == 1) {
          simd_.update(to, tile + begin, end - begin, update_.alpha, beta);
          continue;
        }
        for (std::int64_t c = begin; c < end; ++c, to += out_.input_stride) {
          simd_.update(to, tile + c, 1, update_.alpha, beta);
        }
      }
    }
  }

  const PanelKernels<T>& simd_;
  const GradientKernels<T>& gradients_;
  const Tiling x_, g_;
  const Update update_;
  const WeightView out_;
  std::unique_ptr<Packer<T>> x_packer_, g_packer_;
};

}  // namespace

template <class T>
void add_squared_rows(const PanelKernels<T>& simd, const GradientKernels<T>& gradients, const Rows& x, const Rows& g,
                      const Update& update, const WeightView& out, const ParallelFor& parallel_for,
                      const GradientTuning& tuning) {
  const std::int64_t examples = x.values.width,
                     channels = x.tiling.channels_per_position() + g.tiling.channels_per_position();
  const std::int64_t fitting = tuning.packed / (channels * static_cast<std::int64_t>(sizeof(T)));
  const std::int64_t together = std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(1, examples));
  static const ParallelFor alone = [](std::int64_t count, const auto& body) { body(0, count); };
  const bool share = examples * out.outputs * out.inputs > kWorthSharing;
  SquaredRows<T>(simd, gradients, x, g, update, out).add(examples, together, share ? parallel_for : alone);
}

template void add_squared_rows(const PanelKernels<float>&, const GradientKernels<float>&, const Rows&, const Rows&,
                               const Update&, const WeightView&, const ParallelFor&, const GradientTuning&);
template void add_squared_rows(const PanelKernels<double>&, const GradientKernels<double>&, const Rows&, const Rows&,
                               const Update&, const WeightView&, const ParallelFor&, const GradientTuning&);

}  // namespace eigendamage::cpu
