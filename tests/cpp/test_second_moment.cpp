#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "cpu/second_moment.h"
#include "cpu/simd.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::Images;
using testing::Layout;
using testing::pick;
using testing::Random;

namespace {

/// A weight (outputs, inputs, kernel height, kernel width) in any order of strides with gaps, of integers at first.
class Weight {
 public:
  Weight(std::int64_t outputs, std::int64_t inputs, const ConvGeometry& geometry, ScalarType input_type, Random& random)
      : sizes_{outputs, inputs, geometry.vertical.kernel, geometry.horizontal.kernel},
        twice_(input_type == ScalarType::kFloat64) {
    std::int64_t order[] = {0, 1, 2, 3}, stride = pick(random, 1, 2);
    std::shuffle(order, order + 4, random);
    for (const std::int64_t dim : order) {
      strides_[dim] = stride;
      stride *= sizes_[dim] + pick(random, 0, 1);
    }
    single_.resize(static_cast<std::size_t>(stride), kGap);
    double_.resize(static_cast<std::size_t>(stride), kGap);
    fill([&] { return static_cast<double>(pick(random, -9, 9)); });
  }

  WeightView view() {
    return {twice_ ? static_cast<void*>(double_.data()) : single_.data(),
            twice_ ? ScalarType::kFloat64 : ScalarType::kFloat32,
            sizes_[0],
            sizes_[1],
            strides_[0],
            strides_[1],
            strides_[2],
            strides_[3]};
  }

  std::vector<double> values() const {
    std::vector<double> all;
    for (const std::size_t i : places()) all.push_back(twice_ ? double_[i] : static_cast<double>(single_[i]));
    return all;
  }

  template <class Number>
  void fill(const Number& number) {
    for (const std::size_t i : places()) {
      double_[i] = number();
      single_[i] = static_cast<float>(double_[i]);
    }
  }

  bool gaps_untouched() {
    fill([] { return kGap; });
    bool untouched = true;
    for (const double value : double_) untouched &= value == kGap;
    for (const float value : single_) untouched &= static_cast<double>(value) == kGap;
    return untouched;
  }

 private:
  static constexpr double kGap = 12345;

  std::vector<std::size_t> places() const {
    std::vector<std::size_t> all;
    for (std::int64_t o = 0; o < sizes_[0]; ++o) {
      for (std::int64_t c = 0; c < sizes_[1]; ++c) {
        for (std::int64_t i = 0; i < sizes_[2]; ++i) {
          for (std::int64_t j = 0; j < sizes_[3]; ++j) {
            all.push_back(
                static_cast<std::size_t>(o * strides_[0] + c * strides_[1] + i * strides_[2] + j * strides_[3]));
          }
        }
      }
    }
    return all;
  }

  std::int64_t sizes_[4], strides_[4];
  bool twice_;
  std::vector<float> single_;
  std::vector<double> double_;
};

template <class Item, std::size_t Size>
Item choose(Random& random, const Item (&items)[Size]) {
  return items[pick(random, 0, static_cast<std::int64_t>(Size) - 1)];
}

std::int64_t to_threads(Random& random) { return pick(random, 0, 4) ? 1 : 3; }

struct Problem {
  testing::Shape x, g;
  std::int64_t groups;
  ConvGeometry geometry;
};

Problem random_problem(Random& random) {
  constexpr std::int64_t channels[] = {1, 1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 40};
  Problem p{};
  p.groups = pick(random, 0, 2) ? 1 : pick(random, 2, 20);
  const std::int64_t most = p.groups > 1 ? pick(random, 1, 9) : 40;
  const std::int64_t inputs = std::min(most, choose(random, channels));
  const std::int64_t outputs = std::min(most, choose(random, channels));
  const std::int64_t largest = inputs * outputs > 256 ? 2 : inputs * outputs > 40 ? 3 : 5;
  p.x = {pick(random, 0, 6), inputs * p.groups, pick(random, 1, 12), pick(random, 1, 12)};
  p.geometry = {testing::random_axis(random, p.x.height, largest), testing::random_axis(random, p.x.width, largest)};
  if (pick(random, 0, 5) == 0) {  // rows
    p.x = {pick(random, 0, 300), p.x.channels, 1, 1};
    p.geometry = {{1, 1, 0, 1, 1}, {1, 1, 0, 1, 1}};
  }
  p.g = {p.x.batch, outputs * p.groups, p.geometry.vertical.output, p.geometry.horizontal.output};
  return p;
}

cpu::GradientTuning random_tuning(Random& random) {
  constexpr cpu::GradientForm forms[] = {cpu::GradientForm::kCheaper, cpu::GradientForm::kOffsets,
                                         cpu::GradientForm::kPatches, cpu::GradientForm::kLanes};
  constexpr std::int64_t packed[] = {0, 1 << 13, 1 << 22}, own[] = {0, 1 << 12, 1 << 19}, sums[] = {0, 1 << 24};
  return {choose(random, forms), choose(random, packed), choose(random, own), choose(random, sums)};
}

}  // namespace

TEST(second_moment_equals_the_reference) {
  Random random(1);
  for (int i = 0; i < 400; ++i) {
    const auto sets = cpu::supported_instruction_sets();
    cpu::force_instruction_set(
        *sets[static_cast<std::size_t>(pick(random, 0, static_cast<std::int64_t>(sets.size()) - 1))]);
    const Problem p = random_problem(random);
    const ScalarType type = choose(random, testing::kTypes);
    Images x(p.x, type, choose(random, testing::kLayouts)), g(p.g, type, choose(random, testing::kLayouts));
    x.fill_integers(random);
    g.fill_integers(random);
    const std::vector<double> sum = reference::gradient_second_moment(x.view(), g.view(), p.geometry, p.groups);
    constexpr Update updates[] = {{1, 0}, {1, 1}, {0.5, 2}, {2, -0.5}};
    const Update update = choose(random, updates);
    const cpu::GradientTuning tuning = random_tuning(random);
    Weight out(p.g.channels, p.x.channels / p.groups, p.geometry, type, random);
    const std::vector<double> before = out.values();
    if (update.beta == 0) out.fill([] { return NAN; });
    const ParallelFor parallel_for = testing::threads(to_threads(random));
    cpu::gradient_second_moment(x.view(), g.view(), p.geometry, update, out.view(), {&parallel_for}, tuning);
    const std::vector<double> after = out.values();
    std::size_t wrong = 0;
    for (std::size_t at = 0; at < sum.size(); ++at) {
      wrong += !(after[at] == update.alpha * sum[at] + (update.beta == 0 ? 0 : update.beta * before[at]));
    }
    const std::string message = testing::describe(x.view(), p.geometry) + " outputs " + std::to_string(p.g.channels) +
                                " groups " + std::to_string(p.groups) + " form " +
                                std::to_string(static_cast<int>(tuning.form)) + " " + cpu::instruction_set().name;
    CHECK(after.size() == sum.size(), message);
    CHECK(wrong == 0, message + ": " + std::to_string(wrong) + " of " + std::to_string(sum.size()) + " entries");
    CHECK(out.gaps_untouched(), message);
  }
}

TEST(threads_change_no_bit) {
  const ConvGeometry convolution{{3, 1, 1, 1, 12}, {3, 1, 1, 1, 11}};
  for (const std::int64_t groups : {1, 3, 36}) {
    for (const cpu::GradientForm form :
         {cpu::GradientForm::kOffsets, cpu::GradientForm::kPatches, cpu::GradientForm::kLanes}) {
      for (const cpu::GradientTuning& limits :
           {cpu::GradientTuning{form, 1 << 15, 0, 0}, cpu::GradientTuning{form, 1 << 22, 0, 0},
            cpu::GradientTuning{form, 0, 1 << 15, 1 << 24}, cpu::GradientTuning{form, 0, 1 << 20, 1 << 24}}) {
        std::vector<double> alone;
        for (const std::int64_t threads : {1, 2, 5}) {
          Random random(2);
          Images x({17, 36, 12, 11}, ScalarType::kFloat32, Layout::kPlanes),
              g({17, 36, 12, 11}, ScalarType::kFloat32, Layout::kChannelsLast);
          x.fill_normal(random, 0.5);
          g.fill_normal(random, 0);
          Weight out(36, 36 / groups, convolution, ScalarType::kFloat32, random);
          const ParallelFor parallel_for = testing::threads(threads);
          cpu::gradient_second_moment(x.view(), g.view(), convolution, {0.3, 0.7}, out.view(), {&parallel_for}, limits);
          if (threads == 1) alone = out.values();
          CHECK(out.values() == alone, std::to_string(threads) + " threads, groups " + std::to_string(groups));
        }
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

int main() { return check::run_tests(); }
