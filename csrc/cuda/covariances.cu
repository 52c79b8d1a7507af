// Host code: which plan a covariance is, and whether patches are summed in lag form. What runs is in gram.cu: a block owns
// a pair of tiles and some positions, a thread 32 of the tile's sums; reading x bounds a covariance of channels, the
// matrix units one of patches.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "../lag_form/plan.h"
#include "covariances.h"
#include "row_tiles.cuh"

namespace eigendamage::cuda {
namespace {

/// How many windows read each line of an axis.
std::vector<float> multiplicities(const ConvAxis& axis, std::int64_t size) {
  std::vector<float> counts(static_cast<std::size_t>(size), 0.0F);
  for (std::int64_t i = 0; i < axis.kernel; ++i) {
    for (std::int64_t t = 0; t < axis.output; ++t) {
      const std::int64_t line = axis.stride * t + axis.dilation * i - axis.pad;
      if (0 <= line && line < size) counts[static_cast<std::size_t>(line)] += 1;
    }
  }
  return counts;
}

/// Pairs of tiles, and pairs of panels in them that are multiplied.
struct Pairs {
  double tiles, panels;
};

/// Those of a position of lag zero or, with `lags`, of a lag of either sign on the average.
Pairs pairs_of(const RowTiling& tiling, bool lags) {
  const auto groups = static_cast<double>(tiling.groups);
  if (tiling.bundle > 0) {
    const double panels = std::ceil(groups / static_cast<double>(tiling.bundle)), tiles = std::ceil(panels / 2);
    return lags ? Pairs{tiles / 2, panels / 2} : Pairs{tiles, panels};
  }
  const auto tiles = static_cast<double>(tiling.tiles);
  const double panels = std::ceil(static_cast<double>(tiling.rows) / kPanel);
  return lags ? Pairs{groups * tiles * tiles / 2, groups * panels * panels / 2}
              : Pairs{groups * tiles * (tiles + 1) / 2, groups * panels * (panels + 1) / 2};
}

}  // namespace

/// Counted in the time of a block that multiplies all four pairs of panels of a stage of 32 positions. A half of it is
/// fetching pixels, an eighth each pair. Numbers of a patch take longer to fetch: an index of each, and two bounds. A term
/// is a number read to add up the output, of which a stage multiplies 4096. A plan of many terms would take too long to make
/// and to send.
bool lags_pay(const ImageView& x, const ConvGeometry& geometry, std::int64_t groups) {
  constexpr double kFetchPixels = 0.5, kFetchPatches = 1.2, kMultiply = 0.125, kTerm = 0.25, kMostTerms = 1 << 16;
  const LagWork lag = lag_work(geometry, x.height, x.width);
  if (lag.terms > kMostTerms) return false;
  const std::int64_t channels = x.channels / groups;
  const std::int64_t numbers = channels * geometry.vertical.kernel * geometry.horizontal.kernel;
  const Pairs pixels = pairs_of(RowTiling(groups, channels), true);
  const Pairs patches = pairs_of(RowTiling(groups, numbers), false);
  const double stages = static_cast<double>(x.batch) / 32;
  const auto outputs = static_cast<double>(geometry.vertical.output * geometry.horizontal.output);
  const double lags = stages * lag.positions * (kFetchPixels * pixels.tiles + kMultiply * pixels.panels);
  const double direct = stages * outputs * (kFetchPatches * patches.tiles + kMultiply * patches.panels);
  return lags + kTerm * lag.terms * pixels.tiles <= direct;
}

namespace {

/// Sums over the pixels of x.
void sum_pixels(const ImageView& x, const Plan& plan, bool bias, const Update& update, const FactorView& out,
                const Execution& run, const Tuning& tuning) {
  sum_grams({x, plan, nullptr, {}, {}, bias, update, out}, run, tuning.schedule);
}

}  // namespace

void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run,
                const Tuning& tuning) {
  sum_pixels(x, dense_plan(x.height, x.width), bias, update, out, run, tuning);
}

void channel_covariance(const ImageView& image, const ConvGeometry& window, const Update& update, const FactorView& out,
                        const Execution& run, const Tuning& tuning) {
  ConvGeometry geometry = window;
  const ImageView x = read_by(image, geometry);
  const Plan plan = dense_plan(x.height, x.width);
  GramProblem problem{x, plan, nullptr, {}, {}, false, update, out};
  std::vector<float> rows = multiplicities(geometry.vertical, x.height);
  std::vector<float> columns = multiplicities(geometry.horizontal, x.width);
  const auto is_one = [](float count) { return count == 1; };
  if (!std::all_of(rows.begin(), rows.end(), is_one) || !std::all_of(columns.begin(), columns.end(), is_one)) {
    problem.row_weights = std::move(rows);
    problem.column_weights = std::move(columns);
  }
  sum_grams(problem, run, tuning.schedule);
}

void patch_covariance(const ImageView& image, const ConvGeometry& window, bool bias, const Update& update,
                      const FactorView& out, const Execution& run, const Tuning& tuning) {
  ConvGeometry geometry = window;
  const ImageView x = read_by(image, geometry);
  const bool lags =
      tuning.form == PatchForm::kCheaper ? lags_pay(x, geometry, out.groups) : tuning.form == PatchForm::kLags;
  if (lags) {
    sum_pixels(x, patch_plan(geometry, x.height, x.width), bias, update, out, run, tuning);
  } else {
    const Plan plan = dense_plan(geometry.vertical.output, geometry.horizontal.output);
    sum_grams({x, plan, &geometry, {}, {}, bias, update, out}, run, tuning.schedule);
  }
}

}  // namespace eigendamage::cuda
