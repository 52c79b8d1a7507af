#include "covariances.h"

#include <algorithm>

#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {
namespace {

/// f(panel kernels of the type that x is summed in).
template <class F>
void dispatch(const ImageView& x, const F& f) {
  const InstructionSet& set = instruction_set();
  if (x.type == ScalarType::kFloat64) {
    f(set.double_precision);
  } else {
    f(set.single_precision);
  }
}

/// All threads, or the calling one where that has little to do.
const ParallelFor& threads(const Plan& plan, const Tiling& tiling, std::int64_t images, const Execution& run,
                           const Tuning& tuning) {
  constexpr double kPack = 16, kAdd = 4;  // in multiply-adds
  static const ParallelFor alone = [](std::int64_t count, const auto& body) {
    if (count > 0) body(0, count);
  };
  const auto numbers = static_cast<double>(tiling.channels_per_position());
  const double products = numbers * static_cast<double>(tiling.width * (tiling.panels + 1)) / 2;
  double positions = 0;
  for (const Rectangle& r : plan.rectangles) positions += static_cast<double>(r.rows * r.columns);
  const double image = positions * products + kPack * static_cast<double>(plan.height * plan.width) * numbers;
  const double output = kAdd * static_cast<double>(plan.terms.size()) * products;
  return static_cast<double>(images) * image + output < tuning.alone ? alone : *run.parallel_for;
}

/// Sums over the pixels of x.
template <class T>
void sum_pixels(const PanelKernels<T>& simd, const ImageView& x, const Plan& plan, bool bias, const Update& update,
                const FactorView& out, const Execution& run, const Tuning& tuning) {
  const Tiling tiling = tile_channels(simd, out.groups, x.channels / out.groups, bias, true);
  const auto packer = pack_pixels(simd, x, tiling);
  sum_grams<T>(
      {simd, plan, tiling, *packer, x.batch, update, out, threads(plan, tiling, x.batch, run, tuning), tuning.limits});
}

/// Sums over the outputs of a convolution, from patches written out for a box of outputs at a time.
template <class T>
void sum_patches(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& tiling,
                 const Update& update, const FactorView& out, const Execution& run, const Tuning& tuning) {
  const Plan plan = dense_plan(geometry.vertical.output, geometry.horizontal.output);
  const auto packer = pack_patches(simd, x, geometry, tiling);
  sum_grams<T>(
      {simd, plan, tiling, *packer, x.batch, update, out, threads(plan, tiling, x.batch, run, tuning), tuning.limits});
}

/// Whether sharing the Grams of lags takes less time than writing out the patches. Counted in multiply-adds: packing a
/// pixel's number costs about as much as kPackPixel of them, a patch's kPackPatch, adding up a number of the output kAdd,
/// and planning what is shared kPlan for each pair of pairs of offsets, were there only one image. A plan of more than
/// kMostTerms would take too much memory.
template <class T>
bool lags_pay(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& channels,
              const Tiling& patch) {
  constexpr double kPackPixel = 16, kPackPatch = 24, kAdd = 4, kPlan = 4000, kBoxPositions = 4096, kMostTerms = 1 << 20;
  const auto side = [&](const Tiling& tiling) {  // of the Gram of a bundle, in whole vectors
    const std::int64_t used = tiling.bundle_groups * tiling.channels + tiling.constant;
    return static_cast<double>((used + simd.lanes - 1) / simd.lanes * simd.lanes);
  };
  const auto numbers = [](const Tiling& tiling) { return static_cast<double>(tiling.channels_per_position()); };
  const auto images = static_cast<double>(std::max<std::int64_t>(1, x.batch));
  const auto pixels = images * static_cast<double>(x.height * x.width);
  const auto outputs = images * static_cast<double>(geometry.vertical.output * geometry.horizontal.output);
  const auto offsets = static_cast<double>(geometry.vertical.kernel * geometry.horizontal.kernel);

  const double triangle =
      static_cast<double>(patch.bundles) * side(patch) * (side(patch) + static_cast<double>(simd.lanes)) / 2;
  const double direct = outputs * (triangle + kPackPatch * numbers(patch)), plan = kPlan * offsets * offsets;
  if (direct < plan) return false;
  const LagWork lag = lag_work(geometry, x.height, x.width);
  if (lag.terms > kMostTerms) return false;
  const double square = static_cast<double>(channels.bundles) * side(channels) * side(channels) / 2;
  return plan + images * lag.positions * square + kPackPixel * pixels * numbers(channels) +
             kAdd * pixels / kBoxPositions * lag.terms * square <=
         direct;
}

}  // namespace

void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run,
                const Tuning& tuning) {
  ImageView rows = x;
  if (x.height == 1 && x.width == 1) {  // a matrix: one long image, so that columns can be its lines
    rows.width = x.batch;
    rows.width_stride = x.batch_stride;
    rows.batch = 1;
  }
  dispatch(x, [&](const auto& simd) {
    sum_pixels(simd, rows, dense_plan(rows.height, rows.width), bias, update, out, run, tuning);
  });
}

void channel_covariance(const ImageView& image, const ConvGeometry& window, const Update& update, const FactorView& out,
                        const Execution& run, const Tuning& tuning) {
  ConvGeometry geometry = window;
  const ImageView x = read_by(image, geometry);
  dispatch(x, [&](const auto& simd) {
    sum_pixels(simd, x, channel_plan(geometry, x.height, x.width), false, update, out, run, tuning);
  });
}

void patch_covariance(const ImageView& image, const ConvGeometry& window, bool bias, const Update& update,
                      const FactorView& out, const Execution& run, const Tuning& tuning) {
  ConvGeometry geometry = window;
  const ImageView x = read_by(image, geometry);
  dispatch(x, [&](const auto& simd) {
    const Tiling channels = tile_channels(simd, out.groups, x.channels / out.groups, bias, true);
    const Tiling patch = tile_channels(simd, out.groups, out.size - bias, bias, false);
    if (tuning.form == PatchForm::kLags ||
        (tuning.form == PatchForm::kCheaper && lags_pay(simd, x, geometry, channels, patch))) {
      sum_pixels(simd, x, patch_plan(geometry, x.height, x.width), bias, update, out, run, tuning);
    } else {
      sum_patches(simd, x, geometry, patch, update, out, run, tuning);
    }
  });
}

}  // namespace eigendamage::cpu
