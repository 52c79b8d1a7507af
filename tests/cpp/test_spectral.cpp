#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <tuple>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cpu/covariances.h"
#include "cpu/fourier.h"
#include "cpu/simd.h"
#include "images.h"
#include "lag_form/spectral.h"
#include "reference.h"

using namespace eigendamage;
using testing::choose;
using testing::distance;
using testing::Images;
using testing::norm;
using testing::Output;
using testing::pick;
using testing::Problem;
using testing::Random;
using testing::Shape;

namespace {

using Pixel = std::tuple<std::int64_t, std::int64_t>;
using Pairs = std::map<std::tuple<Pixel, Pixel>, std::int64_t>;

/// A problem with a spectral form.
Problem random_spectral_problem(Random& random) {
  for (;;) {
    Problem p = testing::random_problem(random);
    for (ConvAxis* axis : {&p.geometry.vertical, &p.geometry.horizontal}) {
      const std::int64_t size = axis == &p.geometry.vertical ? p.shape.height : p.shape.width;
      axis->output = std::min(axis->output * axis->stride, size + 2 * axis->pad - axis->dilation * (axis->kernel - 1));
      axis->stride = 1;
    }
    if (spectral_work(p.geometry, p.shape.height, p.shape.width)) return p;
  }
}

/// The pixels that a border position stands for.
std::vector<Pixel> border_pixels(const SpectralPlan& plan) {
  std::vector<Pixel> pixels;
  for (const std::int64_t row : plan.lines_across) {
    for (std::int64_t w = 0; w < plan.plan.width; ++w) pixels.emplace_back(row, w);
  }
  for (const std::int64_t column : plan.lines_down) {
    for (std::int64_t h = 0; h < plan.plan.height; ++h) pixels.emplace_back(h, column);
  }
  return pixels;
}

/// The pairs of pixels that a slot sums.
Pairs pairs_of(const SpectralPlan& plan, std::int64_t slot) {
  Pairs pairs;
  if (slot < static_cast<std::int64_t>(plan.plan.groups.size())) {
    const LagGroup& lag = plan.plan.groups[static_cast<std::size_t>(slot)];
    for (std::int64_t h = std::max<std::int64_t>(0, -lag.down);
         h < plan.plan.height - std::max<std::int64_t>(0, lag.down); ++h) {
      for (std::int64_t w = std::max<std::int64_t>(0, -lag.right);
           w < plan.plan.width - std::max<std::int64_t>(0, lag.right); ++w) {
        ++pairs[{{h, w}, {h + lag.down, w + lag.right}}];
      }
    }
  }
  const std::vector<Pixel> border = border_pixels(plan);
  for (const BorderRun& run : plan.runs[static_cast<std::size_t>(slot)]) {
    for (std::int64_t i = 0; i < run.count; ++i) {
      --pairs[{border.at(static_cast<std::size_t>(run.a + i)), border.at(static_cast<std::size_t>(run.b + i))}];
    }
  }
  return pairs;
}

struct Case {
  const ImageView& x;
  const ConvGeometry& geometry;
  std::int64_t groups;
  bool bias;
  std::int64_t size() const {
    return x.channels / groups * geometry.vertical.kernel * geometry.horizontal.kernel + bias;
  }
};

std::vector<double> run(const Case& c, const cpu::Tuning& tuning, std::int64_t threads, Output& out,
                        const Update& update) {
  const ParallelFor parallel_for = testing::threads(threads);
  cpu::patch_covariance(c.x, c.geometry, c.bias, update, out.view(), {&parallel_for}, tuning);
  return out.values();
}

void force_random_instruction_set(Random& random) {
  const auto sets = cpu::supported_instruction_sets();
  cpu::force_instruction_set(
      *sets[static_cast<std::size_t>(pick(random, 0, static_cast<std::int64_t>(sets.size()) - 1))]);
}

}  // namespace

TEST(a_block_of_the_spectral_plan_is_a_whole_correlation_without_what_its_windows_leave_out) {
  Random random(1);
  for (int i = 0; i < 60; ++i) {
    const Problem p = random_spectral_problem(random);
    const ConvAxis &v = p.geometry.vertical, &h = p.geometry.horizontal;
    const SpectralPlan spectral = spectral_plan(p.geometry, p.shape.height, p.shape.width);
    const Plan& plan = spectral.plan;
    const auto inside = [&](std::int64_t row, std::int64_t column) {
      return 0 <= row && row < p.shape.height && 0 <= column && column < p.shape.width;
    };
    double terms = 0;
    for (std::int64_t k1 = 0; k1 < plan.offsets; ++k1) {
      for (std::int64_t k2 = 0; k2 < plan.offsets; ++k2) {
        const std::int64_t down = v.dilation * (k2 / h.kernel - k1 / h.kernel);
        const std::int64_t right = h.dilation * (k2 % h.kernel - k1 % h.kernel);
        Pairs expected, summed;
        for (std::int64_t th = 0; th < v.output; ++th) {
          for (std::int64_t tw = 0; tw < h.output; ++tw) {
            const std::int64_t row = th + v.dilation * (k1 / h.kernel) - v.pad;
            const std::int64_t column = tw + h.dilation * (k1 % h.kernel) - h.pad;
            if (inside(row, column) && inside(row + down, column + right)) {
              ++expected[{{row, column}, {row + down, column + right}}];
            }
          }
        }
        const Range block = plan.blocks[static_cast<std::size_t>(k1 * plan.offsets + k2)];
        terms += static_cast<double>(block.size());
        for (std::int64_t t = block.begin; t < block.end; ++t) {
          for (const auto& [pair, times] : pairs_of(spectral, plan.terms[static_cast<std::size_t>(t)])) {
            summed[pair] += times;
          }
        }
        std::erase_if(summed, [](const auto& entry) { return entry.second == 0; });
        CHECK(summed == expected, std::to_string(k1) + " " + std::to_string(k2));
      }
    }
    double border = 0;
    for (const std::vector<BorderRun>& runs : spectral.runs) {
      for (const BorderRun& one : runs) border += static_cast<double>(one.count);
    }
    const SpectralWork work = *spectral_work(p.geometry, p.shape.height, p.shape.width);
    CHECK(work.border == border && work.terms == terms, "work");
    CHECK(work.lags == static_cast<double>(plan.groups.size()), "lags");
  }
}

TEST(strides_and_windows_with_little_in_common_have_no_spectral_form) {
  const ConvAxis plain{3, 1, 1, 1, 8}, strided{3, 2, 1, 1, 4}, far{3, 1, 8, 8, 8}, narrow{3, 1, 0, 1, 1};
  CHECK(spectral_work({plain, plain}, 8, 8), "plain");
  CHECK(!spectral_work({strided, plain}, 8, 8) && !spectral_work({plain, strided}, 8, 8), "stride");
  CHECK(!spectral_work({far, plain}, 8, 8), "lags of the image's size");
  CHECK(!spectral_work({narrow, plain}, 3, 8), "windows of one line");
}

TEST(a_transform_is_that_of_the_image_with_zeros_after_it) {
  Random random(2);
  const auto& kernels = cpu::supported_instruction_sets().front()->double_spectral;
  const std::int64_t lanes = cpu::supported_instruction_sets().front()->double_precision.lanes;
  const std::int64_t tile_rows = cpu::supported_instruction_sets().front()->double_precision.tile_rows;
  for (const auto& [height, width, rows, columns] :
       {std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>{5, 4, 7, 6},
        {6, 3, 8, 5},
        {1, 9, 1, 11},
        {4, 1, 6, 1},
        {2, 2, 3, 3},
        {1, 1, 2, 2}}) {
    const std::int64_t images = 3, panel = lanes, numbers = images * panel;
    const cpu::Frequencies frequencies(rows, columns);
    const cpu::Fourier<double> fourier(kernels, tile_rows, height, width, rows, columns);
    std::vector<double> pixels(static_cast<std::size_t>(height * width * numbers));
    for (double& pixel : pixels) pixel = static_cast<double>(pick(random, -9, 9));
    std::vector<double> scratch(static_cast<std::size_t>(fourier.scratch(numbers)));
    const std::int64_t step = 2 * numbers + 1;
    std::vector<double> out(static_cast<std::size_t>(frequencies.count() * step));
    fourier.transform(frequencies, pixels.data(), images, panel, scratch.data(), step, out.data());
    double power = 0;
    for (std::int64_t f = 0; f < frequencies.count(); ++f) {
      const auto [down, across, real] = frequencies[f];
      power += real ? 1 : 2;
      for (std::int64_t i = 0; i < numbers; ++i) {
        double re = 0, im = 0;
        for (std::int64_t h = 0; h < height; ++h) {
          for (std::int64_t w = 0; w < width; ++w) {
            const double angle = 2 * std::acos(-1.0) *
                                 (static_cast<double>(down * h) / static_cast<double>(rows) +
                                  static_cast<double>(across * w) / static_cast<double>(columns));
            const double pixel = pixels[static_cast<std::size_t>((h * width + w) * numbers + i)];
            re += pixel * std::cos(angle);
            im -= pixel * std::sin(angle);
          }
        }
        const auto at = static_cast<std::size_t>(f * step + i / panel * 2 * panel + i % panel);
        CHECK(std::fabs(out[at] - re) < 1e-11, "real part");
        CHECK(std::fabs(out[at + static_cast<std::size_t>(panel)] - im) < 1e-11, "imaginary part");
      }
    }
    CHECK(power == static_cast<double>(rows * columns), "of every conjugate pair one");
    const auto [down, across, real] = frequencies[frequencies.count() - 1];
    CHECK(down == 0 && across == 0 && real, "the mean is last");
  }
}

TEST(spectra_give_the_patch_covariance) {
  Random random(3);
  for (int i = 0; i < 200; ++i) {
    force_random_instruction_set(random);
    Problem p = random_spectral_problem(random);
    const bool many = pick(random, 0, 3) == 0;
    if (many) p.shape.batch = pick(random, 0, 300);
    Images x(p.shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_normal(random, choose(random, {0.0, 1.0}));
    const Case c{x.view(), p.geometry, p.groups, pick(random, 0, 1) == 1};
    const Update update = testing::random_update(random);
    Output out(p.groups, c.size(), x.view().type, pick(random, 0, 2), random);
    std::vector<double> expected = reference::patch_covariance(x.view(), p.geometry, p.groups, c.bias);
    const std::vector<double> before = out.values();
    for (std::size_t n = 0; n < expected.size(); ++n) {
      expected[n] = update.alpha * expected[n] + (update.beta == 0 ? 0 : update.beta * before[n]);
    }
    if (update.beta == 0) out.fill(std::numeric_limits<double>::quiet_NaN());
    cpu::Tuning tuning{cpu::PatchForm::kSpectral};
    if (!many) tuning.spectra = choose(random, {1, 1 << 14, 20 << 20});
    const std::vector<double> found = run(c, tuning, pick(random, 0, 4) ? 1 : 3, out, update);
    const double scale = norm(expected) + norm(before);
    const double tolerance = x.view().type == ScalarType::kFloat64 ? 3e-14 : 4e-7;
    const std::string message = testing::describe(x.view(), p.geometry) + " groups " + std::to_string(p.groups) +
                                " spectra " + std::to_string(tuning.spectra) + " bias " + std::to_string(c.bias) +
                                " alpha " + std::to_string(update.alpha) + " beta " + std::to_string(update.beta) +
                                " " + cpu::instruction_set().name;
    CHECK(distance(found, expected) <= tolerance * scale,
          message + " error " + std::to_string(distance(found, expected) / scale));
    CHECK(out.gaps_untouched() && out.symmetric(), message);
  }
}

TEST(wide_panels_and_several_batches_of_images_agree) {
  const ConvGeometry geometry{{3, 1, 1, 1, 6}, {3, 1, 1, 1, 7}};
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    for (const auto& [channels, layout] : {std::tuple<std::int64_t, testing::Layout>{64, testing::Layout::kPlanes},
                                           {70, testing::Layout::kPlanes},
                                           {20, testing::Layout::kTransposed}}) {
      Random random(4);
      Images x({9, channels, 6, 7}, ScalarType::kFloat32, layout);
      x.fill_normal(random, 0.5);
      const Case c{x.view(), geometry, 1, true};
      const std::vector<double> expected = reference::patch_covariance(x.view(), geometry, 1, true);
      for (const std::int64_t spectra : {20 << 20, 1 << 17}) {
        cpu::Tuning tuning{cpu::PatchForm::kSpectral};
        tuning.spectra = spectra;
        std::vector<double> alone;
        for (const std::int64_t threads : {1, 2, 5}) {
          Output out(1, c.size(), ScalarType::kFloat32, 0, random);
          const std::vector<double> found = run(c, tuning, threads, out, {1, 0});
          if (threads == 1) alone = found;
          CHECK(found == alone, "threads");
        }
        CHECK(distance(alone, expected) < 2e-7 * norm(expected),
              std::string(set->name) + " error " + std::to_string(distance(alone, expected) / norm(expected) * 1e7) +
                  "e-7");
      }
    }
  }
}

TEST(numbers_of_one_sign_are_summed_as_accurately) {
  const ConvGeometry geometry{{3, 1, 1, 1, 8}, {3, 1, 1, 1, 8}};
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    Random random(5);
    Images x({300, 3, 8, 8}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, 20);
    const Case c{x.view(), geometry, 1, true};
    Output out(1, c.size(), ScalarType::kFloat32, 0, random);
    const std::vector<double> expected = reference::patch_covariance(x.view(), geometry, 1, true);
    const double error = distance(run(c, {cpu::PatchForm::kSpectral}, 1, out, {1, 0}), expected) / norm(expected);
    CHECK(error < 1.2e-7, std::string(set->name) + " error " + std::to_string(error * 1e7) + "e-7");
  }
}

TEST(what_is_too_large_or_not_finite_is_summed_in_lag_form) {
  const ConvGeometry geometry{{3, 1, 1, 1, 5}, {3, 1, 1, 1, 5}};
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double special : {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN(), 1e18, 3e38}) {
    for (const std::int64_t image : {0, 5}) {
      Random random(6);
      Images x({6, 5, 5, 5}, ScalarType::kFloat32, testing::Layout::kPlanes);
      x.fill_normal(random, 0);
      x.set(image, 3, 4, 0, special);
      const Case c{x.view(), geometry, 1, true};
      cpu::Tuning tuning{cpu::PatchForm::kSpectral};
      for (const std::int64_t spectra : {20 << 20, 1}) {
        tuning.spectra = spectra;
        Output out(1, c.size(), ScalarType::kFloat32, 0, random), in_lags(1, c.size(), ScalarType::kFloat32, 0, random);
        out.fill(2), in_lags.fill(2);
        const std::vector<double> found = run(c, tuning, 1, out, {0.5, 0.25});
        const std::vector<double> expected = run(c, {cpu::PatchForm::kLags}, 1, in_lags, {0.5, 0.25});
        for (std::size_t i = 0; i < found.size(); ++i) {
          const bool same = found[i] == expected[i] || (std::isnan(found[i]) && std::isnan(expected[i])) ||
                            std::fabs(found[i] - expected[i]) <= 1e-5 * (1 + std::fabs(expected[i]));
          CHECK(same,
                std::to_string(special) + ": " + std::to_string(found[i]) + " for " + std::to_string(expected[i]));
        }
      }
    }
  }
}

TEST(work_is_left_to_spectra_where_they_pay) {
  const ParallelFor parallel_for = testing::threads(1);
  const auto cheapest_is_spectral = [&](const Shape& shape, std::int64_t kernel) {
    Random random(7);
    const ConvGeometry geometry{{kernel, 1, kernel / 2, 1, shape.height}, {kernel, 1, kernel / 2, 1, shape.width}};
    Images x(shape, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, 0);
    const Case c{x.view(), geometry, 1, false};
    Output cheapest(1, c.size(), ScalarType::kFloat32, 0, random),
        spectral(1, c.size(), ScalarType::kFloat32, 0, random);
    return run(c, {}, 1, cheapest, {1, 0}) == run(c, {cpu::PatchForm::kSpectral}, 1, spectral, {1, 0});
  };
  CHECK(cheapest_is_spectral({8, 32, 16, 16}, 5), "5×5");
  CHECK(cheapest_is_spectral({64, 32, 16, 16}, 3), "3×3");
  CHECK(!cheapest_is_spectral({1, 32, 4, 4}, 3), "little work");
  CHECK(!cheapest_is_spectral({2, 3, 16, 16}, 3), "few channels");
}

int main() { return check::run_tests(); }
