#include "panels.h"

#include <algorithm>

namespace eigendamage::cpu {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

Range widened(const Range& range, std::int64_t reach, std::int64_t size) {
  return {std::max<std::int64_t>(0, range.begin - reach), std::min(size, range.end + reach)};
}

}  // namespace

std::int64_t Tiling::bundle_channels(std::int64_t bundle) const {
  return std::min(bundle_groups, groups - bundle * bundle_groups) * channels;
}

std::int64_t Tiling::panel_channels(std::int64_t bundle, std::int64_t panel) const {
  return std::clamp<std::int64_t>(bundle_channels(bundle) + constant - panel * width, 0, width);
}

std::int64_t Tiling::constant_place(std::int64_t bundle, std::int64_t panel) const {
  const std::int64_t place = bundle_channels(bundle) - panel * width;
  return constant && 0 <= place && place < width ? place : -1;
}

template <class T>
Tiling tile_bundles(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t channels, bool constant,
                    std::int64_t bundle_groups) {
  Tiling tiling{groups, channels, constant, bundle_groups, 0, 0, 0};
  tiling.bundles = ceil_div(groups, tiling.bundle_groups);
  const std::int64_t most = tiling.bundle_groups * channels + constant;
  tiling.width = most <= simd.min_width ? simd.min_width : 2 * simd.lanes;
  tiling.panels = std::max<std::int64_t>(1, ceil_div(most, tiling.width));
  return tiling;
}

template <class T>
Tiling tile_channels(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t channels, bool constant,
                     bool share_panels) {
  const std::int64_t fitting = share_panels && channels > 0 ? (simd.min_width - constant) / channels : 1;
  return tile_bundles(simd, groups, channels, constant, std::clamp<std::int64_t>(fitting, 1, groups));
}

template Tiling tile_bundles(const PanelKernels<float>&, std::int64_t, std::int64_t, bool, std::int64_t);
template Tiling tile_bundles(const PanelKernels<double>&, std::int64_t, std::int64_t, bool, std::int64_t);
template Tiling tile_channels(const PanelKernels<float>&, std::int64_t, std::int64_t, bool, bool);
template Tiling tile_channels(const PanelKernels<double>&, std::int64_t, std::int64_t, bool, bool);

std::vector<Range> split(std::int64_t size, std::int64_t part) {
  const std::int64_t parts = std::max<std::int64_t>(1, ceil_div(size, std::max<std::int64_t>(1, part)));
  std::vector<Range> ranges;
  for (std::int64_t i = 0; i < parts; ++i) ranges.push_back({size * i / parts, size * (i + 1) / parts});
  return ranges;
}

std::vector<Box> split_boxes(const Plan& plan, std::int64_t images, std::int64_t budget) {
  const std::int64_t pixels = plan.height * plan.width;
  std::int64_t rows = std::max<std::int64_t>(1, plan.height), columns = std::max<std::int64_t>(1, plan.width);
  std::int64_t together = 1;
  if (pixels <= budget) {
    together = budget / std::max<std::int64_t>(1, pixels);
  } else {
    // Bands of rows; where even a thin band is too large, of columns too. A band is at least as thick as its margin.
    const std::int64_t down = 2 * plan.reach_down, right = 2 * plan.reach_right;
    const std::int64_t thin = std::min(rows, std::max<std::int64_t>(1, down));
    if ((thin + down) * columns > budget) {
      columns = std::min(columns, std::max({std::int64_t{1}, right, budget / (thin + down) - right}));
    }
    const std::int64_t packed_columns = std::min(plan.width, columns + right);
    rows = std::min(rows, std::max(thin, budget / packed_columns - down));
  }
  std::vector<Box> boxes;
  for (const Range& n : split(images, together)) {
    for (const Range& h : split(plan.height, rows)) {
      for (const Range& w : split(plan.width, columns)) {
        boxes.push_back({n, h, w, widened(h, plan.reach_down, plan.height), widened(w, plan.reach_right, plan.width)});
      }
    }
  }
  return boxes;
}

}  // namespace eigendamage::cpu
