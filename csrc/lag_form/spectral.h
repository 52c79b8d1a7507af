#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "plan.h"

namespace eigendamage {

/// `count` pairs of border positions: a + i and b + i.
struct BorderRun {
  std::int64_t a, b, count;
};

/// The patch covariance from spectra. Over the whole image the sums of a lag are a correlation, which is a product of
/// spectra, whatever the number of lags; what a window does not reach at the border is subtracted.
///
/// `plan` says which sums make up which block. Its slots have no rectangles: slot g is the sum of lag group g over all pairs
/// of pixels that far apart, each slot of the group itself that of the border runs in `runs[slot]`, to be taken negative.
struct SpectralPlan {
  Plan plan;
  std::int64_t rows, columns;  ///< of the transform: long enough for no lag to wrap around to another
  /// Lines of the image of which the border is made. Position (r, w) of `lines_across` is r·width + w; those of
  /// `lines_down` follow, position (c, h) at c·height + h.
  std::vector<std::int64_t> lines_across, lines_down;
  std::vector<std::vector<BorderRun>> runs;

  std::int64_t border_positions() const;
};

/// Work of the spectral form, known before its plan is made: pairs of border positions per image and pair of channels, terms
/// added for a number of the output, and lags.
struct SpectralWork {
  double border, terms, lags;
};

/// Nothing where a geometry has no spectral form, which takes strides of 1, lags inside the image, and windows that have most
/// of it in common.
std::optional<SpectralWork> spectral_work(const ConvGeometry& geometry, std::int64_t height, std::int64_t width);

SpectralPlan spectral_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width);

}  // namespace eigendamage
