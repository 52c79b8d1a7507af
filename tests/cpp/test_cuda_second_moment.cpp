#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cuda/second_moment.h"
#include "images.h"
#include "moment_cases.h"
#include "on_device.h"
#include "reference.h"

using namespace eigendamage;
using cuda::MomentForm;
using cuda::MomentTuning;
using cuda_on_cpu::DeviceRun;
using testing::choose;
using testing::Images;
using testing::Layout;
using testing::MomentProblem;
using testing::pick;
using testing::Random;
using testing::Weight;

namespace {

MomentTuning random_tuning(Random& random) {
  constexpr MomentForm forms[] = {MomentForm::kCheaper, MomentForm::kTiles, MomentForm::kTiles, MomentForm::kPairs,
                                  MomentForm::kWeights};
  constexpr std::int64_t splits[] = {0, 1, 2, 5}, examples[] = {2, 512}, positions[] = {16, 32, 1024};
  MomentTuning tuning;
  tuning.form = choose(random, forms);
  tuning.splits = choose(random, splits);
  tuning.examples_in_sum = choose(random, examples);
  tuning.positions_in_sum = choose(random, positions);
  return tuning;
}

void run(const Images& x, const Images& g, const ConvGeometry& geometry, const Update& update, Weight& out,
         const MomentTuning& tuning, bool tf32 = false) {
  cuda_on_cpu::on_device([&](DeviceRun& device) {
    device.execution().tf32 = tf32;
    cuda::gradient_second_moment(device.input(x.view()), device.input(g.view()), geometry, update,
                                 device.output(out.view(), geometry), device.execution(), tuning);
  });
}

/// The second moment of integers is exact.
void check_exact(const MomentProblem& p, ScalarType type, Layout x_layout, Layout g_layout, const MomentTuning& tuning,
                 Random& random) {
  Images x(p.x, type, x_layout), g(p.g, type, g_layout);
  x.fill_integers(random);
  g.fill_integers(random);
  const std::vector<double> sum = reference::gradient_second_moment(x.view(), g.view(), p.geometry, p.groups);
  const Update update = testing::random_update(random);
  Weight out(p.g.channels, p.x.channels / p.groups, p.geometry, type, random);
  const std::vector<double> before = out.values();
  if (update.beta == 0) out.fill([] { return NAN; });
  run(x, g, p.geometry, update, out, tuning, pick(random, 0, 1) == 1);
  check_moment(out, before, sum, update,
               testing::describe(x.view(), p.geometry) + " outputs " + std::to_string(p.g.channels) + " groups " +
                   std::to_string(p.groups) + " form " + std::to_string(static_cast<int>(tuning.form)) + " layouts " +
                   std::to_string(static_cast<int>(x_layout)) + " " + std::to_string(static_cast<int>(g_layout)) +
                   " splits " + std::to_string(tuning.splits));
}

}  // namespace

TEST(second_moment_equals_the_reference) {
  Random random(1);
  for (int i = 0; i < 100; ++i) {
    check_exact(testing::random_moment(random), choose(random, testing::kTypes), choose(random, testing::kLayouts),
                choose(random, testing::kLayouts), random_tuning(random), random);
  }
}

TEST(layers_of_several_tiles_equal_the_reference) {
  Random random(2);
  const ConvGeometry same{{3, 1, 1, 1, 4}, {3, 1, 1, 1, 4}}, pointwise{{1, 2, 0, 1, 3}, {1, 1, 0, 1, 3}},
      rows{{1, 1, 0, 1, 1}, {1, 1, 0, 1, 1}};
  const MomentProblem problems[] = {{{3, 64, 4, 4}, {3, 72, 4, 4}, 1, same},
                                    {{2, 130, 5, 3}, {2, 70, 3, 3}, 1, pointwise},
                                    {{2, 128, 5, 3}, {2, 128, 3, 3}, 1, pointwise},
                                    {{140, 72, 1, 1}, {140, 132, 1, 1}, 1, rows},
                                    {{2, 144, 4, 4}, {2, 24, 4, 4}, 2, same}};
  for (const MomentProblem& p : problems) {
    for (const Layout layout : {Layout::kPlanes, Layout::kChannelsLast}) {
      MomentTuning tuning;
      tuning.form = MomentForm::kTiles;
      tuning.splits = pick(random, 1, 2);
      check_exact(p, choose(random, testing::kTypes), layout, layout, tuning, random);
    }
  }
}

TEST(sums_of_many_splits_equal_the_reference) {
  Random random(7);
  const ConvGeometry pointwise{{1, 1, 0, 1, 2}, {1, 1, 0, 1, 2}};
  for (const MomentForm form : {MomentForm::kTiles, MomentForm::kPairs, MomentForm::kWeights}) {
    MomentTuning tuning;
    tuning.form = form;
    tuning.splits = 37;
    check_exact({{40, 7, 2, 2}, {40, 5, 2, 2}, 1, pointwise}, ScalarType::kFloat32, Layout::kPlanes, Layout::kPlanes,
                tuning, random);
  }
}

TEST(pixels_far_outside_the_image_are_none) {
  constexpr std::int64_t kFar = std::int64_t{1} << 33;
  const ConvAxis axis{3, 1, kFar, kFar, 2};
  Random random(6);
  check_exact({{2, 5, 3, 3}, {2, 4, 2, 2}, 1, {axis, axis}}, ScalarType::kFloat32, Layout::kPlanes, Layout::kPlanes, {},
              random);
}

TEST(float_sums_of_many_positions_and_examples_stay_accurate) {
  struct Shapes {
    testing::Shape x, g;
  };
  for (const Shapes& s : {Shapes{{2, 2, 40, 50}, {2, 3, 40, 50}}, Shapes{{3000, 2, 1, 1}, {3000, 3, 1, 1}},
                          Shapes{{1100, 2, 1, 2}, {1100, 3, 1, 2}}}) {
    const ConvGeometry geometry{{1, 1, 0, 1, s.g.height}, {1, 1, 0, 1, s.g.width}};
    for (const MomentForm form : {MomentForm::kTiles, MomentForm::kPairs, MomentForm::kWeights}) {
      Random random(3);
      Images x(s.x, ScalarType::kFloat32, Layout::kPlanes), g(s.g, ScalarType::kFloat32, Layout::kPlanes);
      x.fill_normal(random, 2);  // roundings of one sign would add up
      g.fill_normal(random, 2);
      Weight out(3, 2, geometry, ScalarType::kFloat32, random);
      MomentTuning tuning;
      tuning.form = form;
      tuning.splits = 1;
      run(x, g, geometry, {1, 0}, out, tuning);
      const std::vector<double> exact = reference::gradient_second_moment(x.view(), g.view(), geometry, 1);
      const std::vector<double> ours = out.values();
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const double error = std::fabs(ours[i] / exact[i] - 1);
        CHECK(error < 6e-7, std::to_string(s.x.batch) + " " + std::to_string(error * 1e7) + "e-7");
      }
    }
  }
}

TEST(errors_are_those_of_the_type) {
  const ConvGeometry geometry{{3, 1, 1, 1, 6}, {3, 1, 1, 1, 6}};
  for (const ScalarType type : testing::kTypes) {
    for (const bool tf32 : {false, true}) {
      Random random(4);
      Images x({3, 8, 6, 6}, type, Layout::kChannelsLast), g({3, 9, 6, 6}, type, Layout::kChannelsLast);
      x.fill_normal(random, 0);
      g.fill_normal(random, 0);
      Weight out(9, 8, geometry, type, random);
      MomentTuning tuning;
      tuning.form = MomentForm::kTiles;
      run(x, g, geometry, {1, 0}, out, tuning, tf32);
      const std::vector<double> exact = reference::gradient_second_moment(x.view(), g.view(), geometry, 1);
      const double error = testing::distance(out.values(), exact) / testing::norm(exact);
      const bool rounded = tf32 && type == ScalarType::kFloat32;
      const double bound = type == ScalarType::kFloat64 ? 1e-15 : rounded ? 1e-3 : 2e-7;
      CHECK(error < bound && (!rounded || error > 1e-5), std::to_string(error * 1e7) + "e-7");
    }
  }
}

TEST(numbers_beyond_the_range_are_those_of_plain_arithmetic) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  const ConvGeometry geometry{{3, 1, 1, 1, 4}, {3, 1, 1, 1, 4}};
  for (const MomentForm form : {MomentForm::kTiles, MomentForm::kPairs, MomentForm::kWeights}) {
    for (const double special : {static_cast<double>(NAN), static_cast<double>(INFINITY), kLargest}) {
      Random random(5);
      Images x({3, 4, 4, 4}, ScalarType::kFloat32, Layout::kPlanes),
          g({3, 3, 4, 4}, ScalarType::kFloat32, Layout::kPlanes);
      x.fill_normal(random, 0);
      g.fill_normal(random, 0);
      if (special == kLargest) {
        for (std::int64_t i = 0; i < 48; ++i) g.set(1, i / 16, i / 4 % 4, i % 4, 1e-30);
        x.set(1, 2, 1, 1, kLargest);
      } else {
        g.set(1, 1, 0, 0, special);  // meets only pixels that some offsets leave outside
      }
      Weight out(3, 4, geometry, ScalarType::kFloat32, random);
      MomentTuning tuning;
      tuning.form = form;
      run(x, g, geometry, {1, 0}, out, tuning);
      const std::vector<double> ours = out.values();
      const std::vector<double> exact = reference::gradient_second_moment(x.view(), g.view(), geometry, 1);
      for (std::size_t i = 0; i < ours.size(); ++i) {
        const bool met = i / 36 == 1 && i % 9 / 3 >= 1 && i % 3 >= 1;  // windows of the first position begin outside
        const std::string message = std::to_string(special) + " " + std::to_string(i) + ": " + std::to_string(ours[i]);
        if (special == kLargest) {
          CHECK(std::fabs(ours[i] / exact[i] - 1) < 1e-5, message);
        } else {
          CHECK(met ? std::isnan(special) ? std::isnan(ours[i]) : !std::isfinite(ours[i]) : std::isfinite(ours[i]),
                message);
        }
      }
    }
  }
}

int main() { return check::run_tests(); }
