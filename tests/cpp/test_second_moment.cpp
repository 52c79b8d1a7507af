#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cpu/second_moment.h"
#include "cpu/simd.h"
#include "images.h"
#include "moment_cases.h"
#include "reference.h"

using namespace eigendamage;
using testing::choose;
using testing::Images;
using testing::Layout;
using testing::pick;
using testing::Random;
using testing::Weight;

namespace {

std::int64_t to_threads(Random& random) { return pick(random, 0, 4) ? 1 : 3; }

cpu::GradientTuning random_tuning(Random& random) {
  constexpr cpu::GradientForm forms[] = {cpu::GradientForm::kCheaper, cpu::GradientForm::kOffsets,
                                         cpu::GradientForm::kPatches, cpu::GradientForm::kLanes};
  constexpr std::int64_t packed[] = {0, 1 << 13, 1 << 22}, own[] = {0, 1 << 12, 1 << 19}, sums[] = {0, 1 << 24};
  constexpr double tiles[] = {0, 0, 8e6};
  return {choose(random, forms), choose(random, packed), choose(random, own), choose(random, sums),
          choose(random, tiles)};
}

}  // namespace

TEST(second_moment_equals_the_reference) {
  Random random(1);
  for (int i = 0; i < 400; ++i) {
    const auto sets = cpu::supported_instruction_sets();
    const auto last = static_cast<std::int64_t>(sets.size()) - 1;
    cpu::force_instruction_set(*sets[static_cast<std::size_t>(pick(random, 0, 1) ? 0 : pick(random, 0, last))]);
    const testing::MomentProblem p = testing::random_moment(random);
    const ScalarType type = choose(random, testing::kTypes);
    Images x(p.x, type, choose(random, testing::kLayouts)), g(p.g, type, choose(random, testing::kLayouts));
    x.fill_integers(random);
    g.fill_integers(random);
    const std::vector<double> sum = reference::gradient_second_moment(x.view(), g.view(), p.geometry, p.groups);
    const Update update = testing::random_update(random);
    const cpu::GradientTuning tuning = random_tuning(random);
    Weight out(p.g.channels, p.x.channels / p.groups, p.geometry, type, random);
    const std::vector<double> before = out.values();
    if (update.beta == 0) out.fill([] { return NAN; });
    const ParallelFor parallel_for = testing::threads(to_threads(random));
    cpu::gradient_second_moment(x.view(), g.view(), p.geometry, update, out.view(), {&parallel_for}, tuning);
    check_moment(out, before, sum, update,
                 testing::describe(x.view(), p.geometry) + " outputs " + std::to_string(p.g.channels) + " groups " +
                     std::to_string(p.groups) + " form " + std::to_string(static_cast<int>(tuning.form)) + " " +
                     cpu::instruction_set().name);
  }
}

TEST(threads_change_no_bit) {
  using enum cpu::GradientForm;
  const ConvGeometry convolution{{3, 1, 1, 1, 12}, {3, 1, 1, 1, 11}};
  Random random(2);
  Images x({17, 36, 12, 11}, ScalarType::kFloat32, Layout::kPlanes),
      g({17, 36, 12, 11}, ScalarType::kFloat32, Layout::kChannelsLast);
  x.fill_normal(random, 0.5);
  g.fill_normal(random, 0);
  constexpr std::pair<std::int64_t, cpu::GradientForm> forms[] = {{1, kOffsets}, {3, kOffsets}, {36, kOffsets},
                                                                  {1, kPatches}, {18, kLanes},  {36, kLanes}};
  for (const auto& [groups, form] : forms) {
    for (const cpu::GradientTuning& limits :
         {cpu::GradientTuning{form, 1 << 15, 0, 0}, cpu::GradientTuning{form, 1 << 22, 0, 0},
          cpu::GradientTuning{form, 0, 1 << 15, 1 << 24}, cpu::GradientTuning{form, 0, 1 << 20, 1 << 24},
          cpu::GradientTuning{form, 0, 0, 0, 0}, cpu::GradientTuning{form, 0, 0, 1 << 24, 0}}) {
      std::vector<double> alone;
      for (const std::int64_t threads : {1, 2, 5}) {
        Random content(3);
        Weight out(36, 36 / groups, convolution, ScalarType::kFloat32, content);
        const ParallelFor parallel_for = testing::threads(threads);
        cpu::gradient_second_moment(x.view(), g.view(), convolution, {0.3, 0.7}, out.view(), {&parallel_for}, limits);
        if (threads == 1) alone = out.values();
        CHECK(out.values() == alone, std::to_string(threads) + " threads, groups " + std::to_string(groups));
      }
    }
  }
}

TEST(float_sums_of_many_positions_and_examples_stay_accurate) {
  const ParallelFor parallel_for = testing::threads(1);
  struct Shapes {
    testing::Shape x, g;
  };
  for (const Shapes& s : {Shapes{{2, 2, 40, 50}, {2, 3, 40, 50}}, Shapes{{3000, 2, 1, 1}, {3000, 3, 1, 1}},
                          Shapes{{3000, 2, 1, 2}, {3000, 3, 1, 2}}}) {
    const ConvGeometry geometry{{1, 1, 0, 1, s.g.height}, {1, 1, 0, 1, s.g.width}};
    for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
      cpu::force_instruction_set(*set);
      for (const std::int64_t sums : {0, 1 << 24}) {
        Random random(3);
        Images x(s.x, ScalarType::kFloat32, Layout::kPlanes), g(s.g, ScalarType::kFloat32, Layout::kPlanes);
        x.fill_normal(random, 2);  // roundings of one sign would add up
        g.fill_normal(random, 2);
        Weight out(3, 2, geometry, ScalarType::kFloat32, random);
        cpu::gradient_second_moment(x.view(), g.view(), geometry, {1, 0}, out.view(), {&parallel_for}, {.sums = sums});
        const std::vector<double> exact = reference::gradient_second_moment(x.view(), g.view(), geometry, 1);
        const std::vector<double> ours = out.values();
        for (std::size_t i = 0; i < exact.size(); ++i) {
          const double error = std::fabs(ours[i] / exact[i] - 1);
          CHECK(error < 6e-7, std::string(set->name) + " " + std::to_string(error * 1e7) + "e-7");
        }
      }
    }
  }
}

TEST(matrix_units_are_as_accurate) {
  const auto sets = cpu::supported_instruction_sets();
  if (!sets.front()->single_precision.tiles) return;
  cpu::force_instruction_set(*sets.front());
  using enum ScalarType;
  const ParallelFor parallel_for = testing::threads(1);
  for (const testing::Shape& shape :
       {testing::Shape{2, 20, 40, 50}, testing::Shape{3000, 20, 1, 2}, testing::Shape{70, 20, 4, 4},
        testing::Shape{70, 20, 5, 7}, testing::Shape{3000, 20, 1, 1}}) {
    const ConvGeometry geometry{{1, 1, 0, 1, shape.height}, {1, 1, 0, 1, shape.width}};
    for (const auto& [sums, type] : {std::pair{0, kFloat32}, {1 << 24, kFloat32}, {0, kFloat16}, {0, kBFloat16}}) {
      Random random(3);
      Images x(shape, type, Layout::kPlanes), g(shape, type, Layout::kPlanes);
      x.fill_normal(random, 2);
      g.fill_normal(random, 2);
      Weight out(20, 20, geometry, kFloat32, random);
      cpu::gradient_second_moment(x.view(), g.view(), geometry, {1, 0}, out.view(), {&parallel_for},
                                  {.sums = sums, .tiles = 0});
      const std::vector<double> exact = reference::gradient_second_moment(x.view(), g.view(), geometry, 1);
      const std::vector<double> ours = out.values();
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const double error = std::fabs(ours[i] / exact[i] - 1);
        CHECK(error < 6e-7, testing::describe(x.view(), geometry) + " " + std::to_string(error * 1e7) + "e-7");
      }
    }
  }
}

/// Sizes at the edges of chunks, levels, slices and blocks.
TEST(rows_equal_the_reference_and_threads_change_no_bit) {
  const ConvGeometry geometry{{1, 1, 0, 1, 1}, {1, 1, 0, 1, 1}};
  struct Rows {
    std::int64_t examples, inputs, outputs, groups;
  };
  Random random(6);
  for (const Rows& r :
       {Rows{0, 40, 20, 1}, Rows{1, 33, 17, 1}, Rows{31, 70, 33, 1}, Rows{33, 300, 130, 1}, Rows{130, 130, 300, 1},
        Rows{600, 70, 70, 1}, Rows{2100, 40, 33, 1}, Rows{100, 70, 40, 2}, Rows{300, 4, 6, 13}}) {
    for (const ScalarType type : testing::kTypes) {
      const Layout layout = choose(random, testing::kLayouts);
      Images x({r.examples, r.inputs * r.groups, 1, 1}, type, layout),
          g({r.examples, r.outputs * r.groups, 1, 1}, type, layout);
      x.fill_integers(random);
      g.fill_integers(random);
      const std::vector<double> sum = reference::gradient_second_moment(x.view(), g.view(), geometry, r.groups);
      for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
        cpu::force_instruction_set(*set);
        for (const std::int64_t sums : {0, 1 << 24}) {
          std::vector<double> alone;
          for (const std::int64_t threads : {1, 3}) {
            Random content(7);
            Weight out(r.outputs * r.groups, r.inputs, geometry, type, content);
            const std::vector<double> before = out.values();
            const ParallelFor parallel_for = testing::threads(threads);
            const Update update{0.5, 2};
            cpu::gradient_second_moment(x.view(), g.view(), geometry, update, out.view(), {&parallel_for},
                                        {.packed = 1 << 16, .sums = sums, .tiles = 0});
            check_moment(out, before, sum, update, testing::describe(x.view(), geometry) + " " + set->name);
            if (threads == 1) alone = out.values();
            CHECK(out.values() == alone, "threads");
          }
        }
      }
    }
  }
}

TEST(matrix_units_leave_numbers_that_are_not_finite_to_others) {
  const auto sets = cpu::supported_instruction_sets();
  if (!sets.front()->single_precision.tiles) return;
  const ConvGeometry convolution{{3, 1, 1, 1, 6}, {3, 1, 1, 1, 5}}, rows{{1, 1, 0, 1, 1}, {1, 1, 0, 1, 1}};
  Random random(4);
  for (const ConvGeometry& geometry : {convolution, rows}) {
    const std::int64_t examples = geometry.vertical.kernel == 1 ? 600 : 8, height = geometry.vertical.output,
                       width = geometry.horizontal.output;
    for (const float special : {NAN, INFINITY, std::numeric_limits<float>::max(), 0x1p25f}) {
      if (special == 0x1p25f && examples == 8) continue;  // what rows multiply is its square
      for (const std::int64_t sums : {0, 1 << 24}) {
        for (const bool in_x : {false, true}) {
          Images x({examples, 300, height, width}, ScalarType::kFloat32, Layout::kPlanes);
          Images g({examples, 70, height, width}, ScalarType::kFloat32, Layout::kPlanes);
          x.fill_integers(random);
          g.fill_integers(random);
          (in_x ? x : g).set(5, 66, height / 2, width / 2, static_cast<double>(special));
          std::vector<double> results[2];
          for (const int which : {0, 1}) {
            cpu::force_instruction_set(*sets[static_cast<std::size_t>(which)]);
            Random content(5);
            Weight out(70, 300, geometry, ScalarType::kFloat32, content);
            const ParallelFor parallel_for = testing::threads(3);
            cpu::gradient_second_moment(x.view(), g.view(), geometry, {0.5, 0.5}, out.view(), {&parallel_for},
                                        {.sums = sums, .tiles = 0});
            results[which] = out.values();
          }
          for (std::size_t i = 0; i < results[0].size(); ++i) {
            const double a = results[0][i], b = results[1][i];
            CHECK(std::isnan(a) ? std::isnan(b) : a == b, std::to_string(i) + " " + std::to_string(special));
          }
        }
      }
    }
  }
}

int main() { return check::run_tests(); }
