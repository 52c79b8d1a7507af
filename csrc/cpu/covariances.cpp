#include "covariances.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"
#include "spectral.h"
#include "tile_gram.h"

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

/// By matrix units where that is faster: chunks(tiles) makes their packer. Returns whether it could be done.
template <class T, class MakeChunks>
bool sum_in_tiles(const GramProblem<T>& problem, const MakeChunks& chunks) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (tiles_pay(problem)) {
      const std::unique_ptr<ChunkPacker> packer = chunks(*problem.simd.tiles);
      if (problem.tiles == 0 || problem.tiling.panels >= packer->least_panels()) return sum_tiles(problem, *packer);
    }
  }
  return false;
}

/// Whether weights would cut the pixels into short runs, all of them are read, and boxes hold whole images.
bool worth_lining_up(const Plan& plan, std::int64_t images, std::int64_t position_bytes, const Limits& limits) {
  constexpr std::int64_t kImages = 4;  // fewer are cut, to have work for all threads
  if (plan.slots.size() > 1 || plan.reach_down + plan.reach_right > 0 || plan.rectangles.size() < 2) return false;
  std::int64_t pixels = 0;
  for (const Rectangle& r : plan.rectangles) pixels += r.rows * r.columns;
  return images >= kImages && pixels == plan.height * plan.width && pixels * position_bytes <= limits.near_box;
}

/// Sums over the pixels of x.
template <class T>
void sum_pixels(const PanelKernels<T>& simd, const ImageView& x, const Plan& plan, bool bias, const Update& update,
                const FactorView& out, const Execution& run, const Tuning& tuning) {
  const Tiling tiling = tile_channels(simd, out.groups, x.channels / out.groups, bias, true);
  const auto packer = pack_pixels(simd, x, tiling);
  const GramProblem<T> problem{simd,          plan,          tiling,       *packer,
                               x.batch,       update,        out,          threads(plan, tiling, x.batch, run, tuning),
                               tuning.limits, tuning.around, tuning.tiles, x.batch};
  const bool summed = sum_in_tiles(problem, [&](const TileKernels& tiles) {
    if constexpr (sizeof(T) == sizeof(float)) return chunk_pixels(tiles, plan, tiling, *packer, x);
  });
  if (summed) return;
  const std::int64_t position = tiling.channels_per_position() * static_cast<std::int64_t>(sizeof(T));
  if (!can_order_pixels(simd, x) || !worth_lining_up(plan, x.batch, position, tuning.limits)) {
    sum_grams(problem);
    return;
  }
  const PixelLine line = line_up(plan);
  const auto in_order = pack_pixels_in_order(simd, x, tiling, line.pixels);
  sum_grams<T>({simd, line.plan, tiling, *in_order, x.batch, update, out, problem.parallel_for, tuning.limits,
                tuning.around, tuning.tiles, x.batch});
}

/// The lag form by matrix units, 32 images at a time. Returns whether it could be done.
template <class T>
bool sum_images_in_tiles(const PanelKernels<T>& simd, const ImageView& x, const Plan& plan, bool bias,
                         const Update& update, const FactorView& out, const Execution& run, const Tuning& tuning) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const Tiling tiling = tile_channels(simd, out.groups, x.channels / out.groups, bias, true);
    if (!simd.tiles || tiling.width != kTileWidth) return false;
    const auto packer = pack_pixels(simd, x, tiling);
    std::atomic<bool> special{false};
    const auto chunks = chunk_images(*simd.tiles, tiling, *packer, x.batch, x.type, special);
    const std::int64_t images = (x.batch + kChunk - 1) / kChunk;
    return sum_grams<T>({simd,
                         plan,
                         tiling,
                         *chunks,
                         images,
                         update,
                         out,
                         threads(plan, tiling, x.batch, run, tuning),
                         tuning.limits,
                         tuning.around,
                         tuning.tiles,
                         x.batch,
                         {simd.tiles, parts_of(x.type), &special}});
  }
  return false;
}

/// Sums over the outputs of a convolution, from patches written out for a box of outputs at a time.
template <class T>
void sum_patches(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& tiling,
                 const Update& update, const FactorView& out, const Execution& run, const Tuning& tuning) {
  const Plan plan = dense_plan(geometry.vertical.output, geometry.horizontal.output);
  const auto packer = pack_patches(simd, x, geometry, tiling);
  const GramProblem<T> problem{simd,          plan,          tiling,       *packer,
                               x.batch,       update,        out,          threads(plan, tiling, x.batch, run, tuning),
                               tuning.limits, tuning.around, tuning.tiles, x.batch};
  const bool summed = sum_in_tiles(problem, [&](const TileKernels& tiles) {
    if constexpr (sizeof(T) == sizeof(float)) return chunk_panels(tiles, plan, tiling, *packer, x.type);
  });
  if (!summed) sum_grams(problem);
}

const GradientKernels<float>& products(const PanelKernels<float>&) { return instruction_set().single_gradients; }
const GradientKernels<double>& products(const PanelKernels<double>&) { return instruction_set().double_gradients; }
const SpectralKernels<float>& spectral(const PanelKernels<float>&) { return instruction_set().single_spectral; }
const SpectralKernels<double>& spectral(const PanelKernels<double>&) { return instruction_set().double_spectral; }

template <class T>
void sum_patches_by_spectra(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry,
                            const Tiling& tiling, const Update& update, const FactorView& out, const Execution& run,
                            const Tuning& tuning) {
  const auto by_lags = [&](const ImageView& some, const Update& now) {
    sum_pixels(simd, some, patch_plan(geometry, x.height, x.width), tiling.constant, now, out, run, tuning);
  };
  sum_spectra<T>({simd, products(simd), spectral(simd), spectral_plan(geometry, x.height, x.width), tiling, x, update,
                  out, *run.parallel_for, tuning.around, tuning.spectra, by_lags});
}

/// What the forms of a patch covariance cost, in multiply-adds: packing a pixel's number costs about as much as kPackPixel of
/// them, a patch's kPackPatch, transforming a pixel's kTransform and one more for every line and column, adding up a number of
/// the output kAdd, planning what is shared kPlan for each pair of pairs of offsets, were there only one image, and a sine and a
/// cosine kSine. Products of short lists are slower than those of long ones.
template <class T>
class Costs {
 public:
  Costs(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& channels,
        const Tiling& patch, const Tuning& tuning)
      : simd_(simd), x_(x), geometry_(geometry), channels_(channels), patch_(patch), tuning_(tuning) {
    images_ = static_cast<double>(std::max<std::int64_t>(1, x.batch));
    pixels_ = images_ * static_cast<double>(x.height * x.width);
    square_ = static_cast<double>(channels.bundles) * side(channels) * side(channels) / 2;
    plan_ = kPlan * static_cast<double>(geometry.vertical.kernel * geometry.horizontal.kernel) *
            static_cast<double>(geometry.vertical.kernel * geometry.horizontal.kernel);
  }

  PatchForm cheapest() const {
    const double direct = this->direct();
    if (direct < plan_) return PatchForm::kDirect;
    const double lags = this->lags(), spectra = lags < kLittle ? kNever : this->spectra();
    const double tiled = this->tiled_lags();
    if (tiled < std::min({lags, spectra, direct})) return PatchForm::kTiledLags;
    if (std::min(lags, spectra) > direct) return PatchForm::kDirect;
    return lags <= spectra ? PatchForm::kLags : PatchForm::kSpectral;
  }

 private:
  static constexpr double kPackPixel = 16, kPackPatch = 24, kTransform = 90, kAdd = 4, kPlan = 4000, kSine = 3000;
  static constexpr double kShortList = 1.5, kBoxPositions = 4096;
  static constexpr std::int64_t kBytesInTiles = 2 << 20;  // of a box of two panels
  static constexpr double kLittle = 1e7;                  // too little work for spectra to save much
  static constexpr double kMostTerms = 1 << 20;           // a plan of more would take too much memory
  static constexpr double kNever = std::numeric_limits<double>::infinity();

  /// Of the Gram of a bundle, in whole vectors.
  double side(const Tiling& tiling) const {
    const std::int64_t used = tiling.bundle_groups * tiling.channels + tiling.constant;
    return static_cast<double>((used + simd_.lanes - 1) / simd_.lanes * simd_.lanes);
  }
  static double numbers(const Tiling& tiling) { return static_cast<double>(tiling.channels_per_position()); }

  double direct() const {
    const double outputs = images_ * static_cast<double>(geometry_.vertical.output * geometry_.horizontal.output);
    const double triangle =
        static_cast<double>(patch_.bundles) * side(patch_) * (side(patch_) + static_cast<double>(simd_.lanes)) / 2;
    return outputs * (triangle + kPackPatch * numbers(patch_));
  }

  double lags() const {
    const LagWork lag = lag_work(geometry_, x_.height, x_.width);
    if (lag.terms > kMostTerms) return kNever;
    return plan_ + images_ * lag.positions * square_ + kPackPixel * pixels_ * numbers(channels_) +
           kAdd * std::max(1.0, pixels_ / kBoxPositions) * lag.terms * square_;
  }

  /// An image should be a box: bands would be packed again for the lines that lags reach.
  double tiled_lags() const {
    constexpr double kProduct = 2.0 / 3, kCall = 24000, kSplit = 56;
    const std::int64_t parts = parts_of(x_.type), pixels = x_.height * x_.width;
    const std::int64_t in_box = kBytesInTiles / (2 * chunk_size(parts) * 2);
    if (!simd_.tiles || channels_.width != kTileWidth || pixels > in_box) return kNever;
    const LagWork lag = lag_work(geometry_, x_.height, x_.width);
    if (lag.terms > kMostTerms) return kNever;
    const double units = std::ceil(images_ / kChunk), panels = static_cast<double>(channels_.panels);
    const double pairs = static_cast<double>(channels_.bundles) * panels * panels / 2;
    const double splitting = parts == 3 ? 1 : parts == 2 ? 0.7 : 0.4, products = parts == 3 ? 6 : parts == 2 ? 4 : 1;
    const double boxes = std::ceil(units * static_cast<double>(pixels) / static_cast<double>(in_box));
    const double packed = units * kChunk * static_cast<double>(pixels) * numbers(channels_);
    return plan_ + units * kChunk * lag.positions * pairs * (kTileWidth * kTileWidth) * kProduct * products / 6 +
           kCall * lag.slots * pairs * boxes + (kPackPixel + kSplit * splitting) * packed +
           kAdd * std::max(1.0, pixels_ / kBoxPositions) * lag.terms * square_;
  }

  double spectra() const {
    const std::optional<SpectralWork> work = spectral_work(geometry_, x_.height, x_.width);
    if (!work || work->terms > kMostTerms) return kNever;
    const double rows = static_cast<double>(x_.height + geometry_.vertical.dilation * (geometry_.vertical.kernel - 1));
    const double columns =
        static_cast<double>(x_.width + geometry_.horizontal.dilation * (geometry_.horizontal.kernel - 1));
    const double area = rows * columns;
    const double image = numbers(channels_) * (area + work->border) * sizeof(T);
    const double batches = std::ceil(images_ * image / static_cast<double>(tuning_.spectra));
    const double transform = (kPackPixel + kTransform + rows + columns) * pixels_ * numbers(channels_);
    const double products = images_ * (2 * area + kShortList * work->border) * square_;
    return plan_ + kSine * area + transform + products + batches * (area * work->lags + kAdd * work->terms) * square_;
  }

  const PanelKernels<T>& simd_;
  const ImageView& x_;
  const ConvGeometry& geometry_;
  const Tiling &channels_, &patch_;
  const Tuning& tuning_;
  double images_, pixels_, square_, plan_;
};

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
  const ImageView x = reached_by(read_by(image, geometry), geometry);
  dispatch(x, [&](const auto& simd) {
    const Tiling channels = tile_channels(simd, out.groups, x.channels / out.groups, bias, true);
    const Tiling patch = tile_channels(simd, out.groups, out.size - bias, bias, false);
    const PatchForm form =
        tuning.form == PatchForm::kCheaper ? Costs(simd, x, geometry, channels, patch, tuning).cheapest() : tuning.form;
    if (form == PatchForm::kSpectral && spectral_work(geometry, x.height, x.width)) {
      sum_patches_by_spectra(simd, x, geometry, channels, update, out, run, tuning);
    } else if (form == PatchForm::kDirect) {
      sum_patches(simd, x, geometry, patch, update, out, run, tuning);
    } else {
      const Plan plan = patch_plan(geometry, x.height, x.width);
      if (form == PatchForm::kTiledLags && sum_images_in_tiles(simd, x, plan, bias, update, out, run, tuning)) return;
      sum_pixels(simd, x, plan, bias, update, out, run, tuning);
    }
  });
}

}  // namespace eigendamage::cpu
