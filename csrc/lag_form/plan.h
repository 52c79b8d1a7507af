#pragma once

#include <cstdint>
#include <vector>

#include "../views.h"
#include "lags.h"

namespace eigendamage {

/// Positions of a grid (an image's pixels, or the outputs of a convolution): `rows` × `columns` of them, each counted
/// `weight` times.
struct Rectangle {
  std::int64_t row, rows, row_step;
  std::int64_t column, columns, column_step;
  std::int64_t weight;
};

/// A range of indices into one of the plan's lists.
struct Range {
  std::int64_t begin, end;
  std::int64_t size() const { return end - begin; }
};

/// One C × C sum Σ_n Σ_q x_nq x_n(q+lag)ᵀ, q over the rectangles.
struct Slot {
  Range rectangles;
};

/// Slots that share the lag (down, right).
struct LagGroup {
  std::int64_t down, right;
  Range slots;
};

/// What a kernel sums, for every pair of channels: a list of rectangles and where their sums go. The output is made of
/// K × K blocks: block (k1, k2) holds row c·K + k1, column c'·K + k2 for channels c and c'. Its terms have a negative lag
/// if k1 > k2, zero if k1 = k2, else a positive one. Opposite lags mirror each other, so negative ones are needed only
/// between different channel panels.
struct Plan {
  std::int64_t height, width;            ///< of the grid of positions
  std::int64_t reach_down, reach_right;  ///< the largest lag
  std::int64_t offsets;                  ///< K, kernel offsets kept apart in the output
  std::int64_t outputs;                  ///< rows summed per image
  std::vector<LagGroup> groups;          ///< of negative lag, then zero, then positive
  Range zero_lag;                        ///< among the groups
  std::vector<Slot> slots;
  std::vector<Rectangle> rectangles;
  std::vector<std::int64_t> terms;  ///< slots
  std::vector<Range> blocks;        ///< of the terms of (k1, k2), at k1·K + k2
};

/// A plan with its grid and its blocks, all of them empty yet.
Plan empty_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width, std::int64_t offsets);

/// add(v, h) for every pair of groups of the two axes, which adds a lag group to the plan: in the order of a plan's groups.
template <class Add>
void add_lags(Plan& plan, const std::vector<AxisGroup>& vertical, const std::vector<AxisGroup>& horizontal,
              const Add& add) {
  for (const int wanted : {-1, 0, 1}) {
    if (wanted == 0) plan.zero_lag.begin = static_cast<std::int64_t>(plan.groups.size());
    for (const AxisGroup& v : vertical) {
      for (const AxisGroup& h : horizontal) {
        const std::int64_t lag = v.lag != 0 ? v.lag : h.lag;
        if ((lag > 0) - (lag < 0) == wanted) add(v, h);
      }
    }
    if (wanted == 0) plan.zero_lag.end = static_cast<std::int64_t>(plan.groups.size());
  }
}

/// Σ over all positions of the grid.
Plan dense_plan(std::int64_t height, std::int64_t width);

/// Σ over pixels, each as often as windows cover it.
Plan channel_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width);

/// The same sum with pixels of equal weight side by side: the grid of `plan` is a line, place i of which is pixel `pixels`[i].
struct PixelLine {
  Plan plan;
  std::vector<std::int64_t> pixels;
};

/// Lines up the pixels that a plan of one slot, without lags, reads.
PixelLine line_up(const Plan& plan);

/// The patch covariance in lag form: every block is a sum of rectangles shared between the blocks of its lag.
Plan patch_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width);

/// Work of the lag form, known before its plan is made, per pair of channels: positions summed, for an image; slots; and terms
/// added.
struct LagWork {
  double positions, slots, terms;
};
LagWork lag_work(const ConvGeometry& geometry, std::int64_t height, std::int64_t width);

/// Leaves out the last lines and columns of x that no window reaches.
ImageView reached_by(ImageView x, const ConvGeometry& geometry);

/// Leaves of x only what is read along an axis on which the kernel has one offset, and which no window leaves.
ImageView read_by(ImageView x, ConvGeometry& geometry);

}  // namespace eigendamage
