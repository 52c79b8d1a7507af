#pragma once

#include <cstdint>
#include <vector>

#include "../views.h"

namespace eigendamage::cpu {

/// Positions g + i of an output's gradient that meet positions x + i·step of the input, i < count.
struct PairedRun {
  std::int64_t g, x, count;
};

/// All pairs of positions that meet under one kernel offset. They are cut into lists short enough for a float sum.
struct OffsetRuns {
  std::vector<PairedRun> runs;
  std::vector<std::int64_t> ends;  ///< list l is runs [ends[l − 1], ends[l])

  std::int64_t lists() const { return static_cast<std::int64_t>(ends.size()); }
  const PairedRun* begin(std::int64_t list) const {
    return runs.data() + (list == 0 ? 0 : ends[static_cast<std::size_t>(list - 1)]);
  }
};

/// For every kernel offset (row, column), pixels in the padding left out. `longest` positions are in a list, the last one
/// has fewer. A run's step is the horizontal stride.
std::vector<OffsetRuns> offset_runs(const ConvGeometry& geometry, std::int64_t height, std::int64_t width,
                                    std::int64_t longest);

/// A list of runs on two panels of some examples, one unless their sums are complete, and where these go.
template <class T>
struct GradientTask {
  const T *g, *x;  ///< first channel of the rows and of the columns at position 0 of the first example
  std::int64_t g_width, x_width;
  std::int64_t examples, g_example, x_example;  ///< how many, and from one to the next
  std::int64_t line;  ///< of the panels of as many examples after these: it and one for every tile_rows are fetched
  const PairedRun *runs, *runs_end;
  std::int64_t step;
  std::int64_t rows, columns;
  bool fresh;  ///< nothing was summed before
  T* partial;  ///< (rows, 2·lanes): sums of one example so far
  T* squares;  ///< (rows, 2·lanes): sum of squares of complete sums; null while the sum is not complete
};

/// The inner loops, once per instruction set.
template <class T>
struct GradientKernels {
  /// For each example sum = (fresh ? 0 : partial) + Σ g xᵀ over the runs; partial = sum, or squares += sum² where that is
  /// given. Whole halves of tile_rows and whole lanes are computed: the other entries hold rubbish afterwards.
  void (*add)(const GradientTask<T>& task);

  /// The same of one row, the products Σ g x channel by channel.
  void (*add_lanes)(const GradientTask<T>& task);
};

}  // namespace eigendamage::cpu
