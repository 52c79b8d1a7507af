#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cuda/covariances.h"
#include "cuda_on_cpu/machine.h"
#include "cuda_on_cpu/on_device.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::choose;
using testing::Images;
using testing::Layout;
using testing::Output;
using testing::pick;
using testing::Problem;
using testing::Random;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Few multiprocessors make few parts; little memory for partial sums, many batches of lags and pairs: so many for a large
/// kernel that they only take time. On sm_90 four warps multiply together.
cuda::Tuning random_tuning(Random& random, std::int64_t offsets = 1) {
  cuda_on_cpu::device().capability = choose(random, {8, 9});
  const cuda::PatchForm forms[] = {cuda::PatchForm::kCheaper, cuda::PatchForm::kLags, cuda::PatchForm::kDirect};
  const cuda::PatchForm form = choose(random, forms);
  const std::int64_t multiprocessors = choose(random, {0L, 1L, 20L, 500L});
  const std::int64_t partial_bytes = choose(random, {1L, 200000L, 200000L, 48L << 20, 48L << 20});
  return {form, {multiprocessors, offsets > 6 ? std::max(partial_bytes, std::int64_t{200000}) : partial_bytes}};
}

/// Runs launch(view of x, update, view of out, execution) on an output of random content and checks the result.
template <class Launch>
void check_kernel(Random& random, std::int64_t groups, std::int64_t size, const ImageView& x,
                  const std::vector<double>& sum, const std::string& message, const Launch& launch) {
  const Update update = testing::random_update(random);
  Output out(groups, size, x.type, pick(random, 0, 2), random);
  const std::vector<double> before = out.values();
  if (update.beta == 0) out.fill(kNan);
  cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
    launch(device.input(x), update, device.output(out.view()), device.execution());
  });
  testing::check_output(out, before, sum, update, message + " groups " + std::to_string(groups));
}

std::string describe(const ImageView& x, const ConvGeometry& geometry, const cuda::Tuning& tuning) {
  return testing::describe(x, geometry) + " form " + std::to_string(static_cast<int>(tuning.form)) + " on " +
         std::to_string(tuning.schedule.multiprocessors) + ", " + std::to_string(tuning.schedule.partial_bytes) +
         " bytes of sm_" + std::to_string(cuda_on_cpu::device().capability) + "0";
}

/// Row-major (size, size) of one group.
bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b; }

}  // namespace

TEST(covariance_equals_the_reference) {
  Random random(1);
  for (int i = 0; i < 24; ++i) {
    const Problem p = testing::random_problem(random);
    testing::Shape shape = p.shape;
    if (pick(random, 0, 2) == 0) shape = {pick(random, 1, 1200), shape.channels, 1, 1};
    Images x(shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const bool bias = pick(random, 0, 1);
    const cuda::Tuning tuning = random_tuning(random);
    check_kernel(random, p.groups, shape.channels / p.groups + bias, x.view(),
                 reference::covariance(x.view(), p.groups, bias), describe(x.view(), {}, tuning),
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::covariance(view, bias, update, out, run, tuning);
                 });
  }
}

TEST(channel_covariance_equals_the_reference) {
  Random random(2);
  for (int i = 0; i < 30; ++i) {
    const Problem p = testing::random_problem(random);
    Images x(p.shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const cuda::Tuning tuning = random_tuning(random);
    check_kernel(random, p.groups, p.shape.channels / p.groups, x.view(),
                 reference::channel_covariance(x.view(), p.geometry, p.groups), describe(x.view(), p.geometry, tuning),
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::channel_covariance(view, p.geometry, update, out, run, tuning);
                 });
  }
}

TEST(patch_covariance_equals_the_reference) {
  Random random(3);
  for (int i = 0; i < 36; ++i) {
    const Problem p = testing::random_problem(random);
    Images x(p.shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const bool bias = pick(random, 0, 1);
    const std::int64_t offsets = p.geometry.vertical.kernel * p.geometry.horizontal.kernel;
    const cuda::Tuning tuning = random_tuning(random, offsets);
    check_kernel(random, p.groups, p.shape.channels / p.groups * offsets + bias, x.view(),
                 reference::patch_covariance(x.view(), p.geometry, p.groups, bias),
                 describe(x.view(), p.geometry, tuning),
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::patch_covariance(view, p.geometry, bias, update, out, run, tuning);
                 });
  }
}

TEST(several_tiles_of_channels_of_every_type) {
  Random random(4);
  const ConvGeometry geometry{{2, 1, 1, 1, 5}, {2, 1, 0, 1, 3}};
  for (const std::int64_t channels : {64, 70, 130}) {
    const ScalarType types[] = {channels == 70 ? ScalarType::kFloat64 : ScalarType::kFloat32,
                                channels == 70 ? ScalarType::kFloat16 : ScalarType::kBFloat16};
    for (const ScalarType type : types) {
      const std::int64_t groups = channels == 70 ? 2 : 1;
      Images x({2, groups * channels, 4, 4}, type, choose(random, testing::kLayouts));
      x.fill_integers(random);
      const cuda::Tuning tuning = random_tuning(random);
      check_kernel(random, groups, channels * 4 + 1, x.view(),
                   reference::patch_covariance(x.view(), geometry, groups, true), describe(x.view(), geometry, tuning),
                   [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                     cuda::patch_covariance(view, geometry, true, update, out, run, tuning);
                   });
      check_kernel(random, groups, channels, x.view(), reference::channel_covariance(x.view(), geometry, groups),
                   describe(x.view(), geometry, tuning),
                   [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                     cuda::channel_covariance(view, geometry, update, out, run, tuning);
                   });
    }
  }
}

TEST(long_sums_are_taken_down_in_parts) {
  Random random(6);
  for (const ScalarType type : {ScalarType::kFloat32, ScalarType::kFloat64}) {
    for (const std::int64_t groups : {1, 7}) {
      Images x({1900, 35, 1, 1}, type, Layout::kChannelsLast);
      x.fill_integers(random);
      const std::vector<double> expected = reference::covariance(x.view(), groups, true);
      for (const std::int64_t multiprocessors : {1, 20}) {  // few parts; so many that several threads add them up
        const cuda::Tuning tuning{cuda::PatchForm::kCheaper, {multiprocessors}};
        check_kernel(random, groups, 35 / groups + 1, x.view(), expected, describe(x.view(), {}, tuning),
                     [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                       cuda::covariance(view, true, update, out, run, tuning);
                     });
      }
    }
  }
}

TEST(an_empty_sum_only_scales_the_output) {
  Random random(5);
  const ConvGeometry some{{3, 1, 1, 1, 4}, {3, 1, 1, 1, 5}}, none{{3, 1, 1, 1, 0}, {3, 1, 1, 1, 5}};
  const ConvGeometry beside{{1, 1, 3, 1, 2}, {1, 1, 0, 1, 5}};  // every window lies in the padding
  for (int i = 0; i < 12; ++i) {
    const bool empty_batch = i % 3 == 0;
    const ConvGeometry& geometry = empty_batch ? some : i % 3 == 1 ? none : beside;
    Images x({empty_batch ? 0 : 2, 6, 4, 5}, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
    const cuda::Tuning tuning = random_tuning(random, offsets);
    const std::int64_t groups = pick(random, 1, 2);
    check_kernel(random, groups, 6 / groups, x.view(), std::vector<double>(static_cast<std::size_t>(36 / groups)),
                 "channel",
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::channel_covariance(view, geometry, update, out, run, tuning);
                 });
    check_kernel(random, groups, 6 / groups * offsets + 1, x.view(),
                 reference::patch_covariance(x.view(), geometry, groups, true), "patch",
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::patch_covariance(view, geometry, true, update, out, run, tuning);
                 });
    if (!empty_batch) continue;
    check_kernel(random, groups, 6 / groups + 1, x.view(), reference::covariance(x.view(), groups, true), "covariance",
                 [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                   cuda::covariance(view, true, update, out, run, tuning);
                 });
  }
}

TEST(without_channels_only_positions_are_counted) {
  Random random(9);
  const Images x({3, 0, 2, 2}, ScalarType::kFloat32, Layout::kPlanes);
  check_kernel(random, 1, 1, x.view(), {12}, "no channels",
               [&](const ImageView& view, const Update& update, const FactorView& out, const Execution& run) {
                 cuda::covariance(view, true, update, out, run, {});
               });
}

TEST(non_finite_numbers_make_what_plain_arithmetic_makes_of_them) {
  Random random(7);
  const ConvGeometry geometry{{2, 3, 0, 1, 2}, {2, 3, 0, 1, 2}};  // reads lines 0, 1, 3, 4 of 6
  for (const ScalarType type : testing::kTypes) {
    for (const cuda::PatchForm form : {cuda::PatchForm::kLags, cuda::PatchForm::kDirect}) {
      Images x({2, 5, 6, 6}, type, choose(random, testing::kLayouts));
      x.fill_integers(random);
      x.set(0, 3, 4, 1, kNan);
      x.set(0, 1, 1, 3, kInfinity);
      x.set(0, 2, 0, 0, -kInfinity);
      x.set(0, 0, 2, 1, kInfinity);  // where no window reads
      const std::vector<double> expected[] = {reference::channel_covariance(x.view(), geometry, 1),
                                              reference::patch_covariance(x.view(), geometry, 1, true)};
      Output channel(1, 5, type, 0, random), patch(1, 21, type, 0, random);
      cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
        cuda::channel_covariance(device.input(x.view()), geometry, {1, 0}, device.output(channel.view()),
                                 device.execution(), {});
        cuda::patch_covariance(device.input(x.view()), geometry, true, {1, 0}, device.output(patch.view()),
                               device.execution(), {form, {}});
      });
      const std::vector<double> got[] = {channel.values(), patch.values()};
      for (int kernel = 0; kernel < 2; ++kernel) {
        for (std::size_t i = 0; i < got[kernel].size(); ++i) {
          CHECK(same(got[kernel][i], expected[kernel][i]),
                std::to_string(got[kernel][i]) + " for " + std::to_string(expected[kernel][i]));
        }
      }
    }
  }
}

TEST(padding_adds_nothing_to_the_lag_form_where_a_number_is_not_finite) {
  Random random(8);
  const ConvGeometry geometry{{3, 1, 1, 1, 3}, {3, 1, 1, 1, 3}};
  Images x({1, 1, 3, 3}, ScalarType::kFloat32, Layout::kPlanes);
  x.fill_integers(random);
  x.set(0, 0, 0, 0, kNan);
  Output patch(1, 9, ScalarType::kFloat32, 0, random);
  cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
    cuda::patch_covariance(device.input(x.view()), geometry, false, {1, 0}, device.output(patch.view()),
                           device.execution(), {cuda::PatchForm::kLags, {}});
  });
  for (std::int64_t k1 = 0; k1 < 9; ++k1) {
    for (std::int64_t k2 = 0; k2 < 9; ++k2) {
      bool met = false;  // pixel (0, 0), by one of the offsets while the other is inside
      for (std::int64_t t = 0; t < 9; ++t) {
        const auto line = [&](std::int64_t k) { return t / 3 + k / 3 - 1; };
        const auto column = [&](std::int64_t k) { return t % 3 + k % 3 - 1; };
        const auto inside = [&](std::int64_t k) {
          return 0 <= line(k) && line(k) < 3 && 0 <= column(k) && column(k) < 3;
        };
        const auto corner = [&](std::int64_t k) { return line(k) == 0 && column(k) == 0; };
        met = met || (inside(k1) && inside(k2) && (corner(k1) || corner(k2)));
      }
      CHECK(std::isnan(patch.at(0, k1, k2)) == met, std::to_string(k1) + " " + std::to_string(k2));
    }
  }
}

TEST(lags_are_chosen_where_there_is_less_to_do) {
  const auto pay = [](std::int64_t batch, std::int64_t channels, std::int64_t size, const ConvAxis& axis,
                      std::int64_t groups = 1) {
    const ImageView x{nullptr, ScalarType::kFloat32, batch, channels, size, size, 0, 0, 0, 0};
    return cuda::lags_pay(x, {axis, axis}, groups);
  };
  for (const std::int64_t channels : {16, 64, 512}) CHECK(pay(64, channels, 32, {3, 1, 1, 1, 32}), "3 × 3");
  CHECK(pay(64, 64, 32, {3, 2, 1, 1, 16}), "3 × 3 in steps of 2");
  CHECK(pay(64, 512, 32, {3, 1, 1, 1, 32}, 512), "depthwise");
  CHECK(!pay(64, 3, 32, {3, 1, 1, 1, 32}), "27 numbers");
  CHECK(!pay(64, 3, 224, {7, 2, 3, 1, 112}), "147 numbers");
  CHECK(!pay(64, 64, 224, {40, 1, 20, 1, 225}), "too many terms");
}

int main() { return check::run_tests(); }
