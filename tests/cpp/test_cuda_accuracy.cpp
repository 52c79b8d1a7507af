#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cuda/covariances.h"
#include "cuda_on_cpu/machine.h"
#include "cuda_on_cpu/on_device.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::distance;
using testing::Images;
using testing::norm;
using testing::Output;
using testing::Random;

namespace {

constexpr double kEpsilon = static_cast<double>(std::numeric_limits<float>::epsilon());

void patch_covariance_on_device(const Images& x, const ConvGeometry& geometry, bool bias, Output& out,
                                const cuda::Tuning& tuning, bool tf32 = false) {
  cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
    device.execution().tf32 = tf32;
    cuda::patch_covariance(device.input(x.view()), geometry, bias, {1, 0}, device.output(out.view()),
                           device.execution(), tuning);
  });
}

void covariance_on_device(const Images& x, double alpha, Output& out, const cuda::Tuning& tuning = {}) {
  cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
    cuda::covariance(device.input(x.view()), false, {alpha, 0}, device.output(out.view()), device.execution(), tuning);
  });
}

}  // namespace

TEST(float_sums_are_as_accurate_as_a_float_matrix_product) {
  const ConvGeometry geometry{{3, 1, 1, 1, 24}, {3, 1, 1, 1, 20}};
  for (const double mean : {0.0, 2.0}) {
    Random random(1);
    Images x({6, 5, 24, 20}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, mean);
    const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, false);
    const double plain = distance(reference::patch_covariance_in_float(x.view(), geometry), exact);
    const double bound = 2 * plain + kEpsilon * norm(exact);
    for (const cuda::PatchForm form : {cuda::PatchForm::kLags, cuda::PatchForm::kDirect}) {
      for (const std::int64_t multiprocessors : {1, 100}) {
        Output out(1, 45, ScalarType::kFloat32, 0, random);
        patch_covariance_on_device(x, geometry, false, out, {form, {multiprocessors}});
        const double error = distance(out.values(), exact);
        CHECK(!(error > bound) && std::isfinite(error), "error " + std::to_string(error / norm(exact) * 1e7) +
                                                            "e-7, plain " + std::to_string(plain / norm(exact) * 1e7) +
                                                            "e-7");
      }
    }
  }
}

TEST(halves_are_multiplied_exactly_and_tf32_rounds_factors) {
  const ConvGeometry geometry{{3, 1, 1, 1, 9}, {3, 1, 1, 1, 7}};
  Random random(2);
  for (const ScalarType type : {ScalarType::kBFloat16, ScalarType::kFloat16, ScalarType::kFloat32}) {
    Images x({3, 6, 9, 7}, type, testing::Layout::kPlanes);
    x.fill_normal(random, 1);
    const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, true);
    Output out(1, 55, type, 0, random);
    patch_covariance_on_device(x, geometry, true, out, {}, true);
    const double error = distance(out.values(), exact) / norm(exact);
    if (type == ScalarType::kFloat32) {
      CHECK(error > 1e-6 && error < 1e-3, std::to_string(error * 1e4) + "e-4");
    } else {
      CHECK(error < 1.5e-7, std::to_string(error * 1e7) + "e-7");
    }
  }
}

TEST(weights_of_pixels_round_no_half) {
  const ConvGeometry geometry{{7, 1, 3, 1, 12}, {7, 1, 3, 1, 12}};
  Random random(5);
  for (const ScalarType type : {ScalarType::kBFloat16, ScalarType::kFloat16}) {
    Images x({2, 6, 12, 12}, type, testing::Layout::kChannelsLast);
    x.fill_normal(random, 0);
    const std::vector<double> exact = reference::channel_covariance(x.view(), geometry, 1);
    Output out(1, 6, type, 0, random);
    cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
      cuda::channel_covariance(device.input(x.view()), geometry, {1, 0}, device.output(out.view()), device.execution(),
                               {});
    });
    const double error = distance(out.values(), exact) / norm(exact);
    CHECK(error < 1.5e-7, std::to_string(error * 1e7) + "e-7");
  }
}

/// Of the three, the second has groups in bundles, of which a panel has 30 rows.
TEST(four_warps_sum_whole_images_as_accurately) {
  const ConvGeometry geometry{{3, 1, 1, 1, 5}, {3, 1, 1, 1, 8}};
  Random random(6);
  for (const auto& [channels, groups] : {std::pair{70, 1}, {99, 33}, {130, 2}}) {
    Images x({4, channels, 5, 8}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, 1);
    for (const bool bias : {false, true}) {
      const std::vector<double> exact = bias ? reference::covariance(x.view(), groups, true)
                                             : reference::channel_covariance(x.view(), geometry, groups);
      Output out(groups, channels / groups + bias, ScalarType::kFloat32, 0, random);
      cuda_on_cpu::device().capability = 9;
      cuda_on_cpu::on_device([&](cuda_on_cpu::DeviceRun& device) {
        const ImageView view = device.input(x.view());
        const FactorView to = device.output(out.view());
        if (bias) {
          cuda::covariance(view, true, {1, 0}, to, device.execution(), {});
        } else {
          cuda::channel_covariance(view, geometry, {1, 0}, to, device.execution(), {});
        }
      });
      cuda_on_cpu::device().capability = 8;
      const double error = distance(out.values(), exact) / norm(exact);
      CHECK(error < 1.5e-7, std::to_string(channels) + ": " + std::to_string(error * 1e7) + "e-7");
    }
  }
}

TEST(alpha_adds_no_rounding_of_its_own) {
  Random random(3);
  Images x({1, 1, 1, 1}, ScalarType::kFloat32, testing::Layout::kPlanes);
  x.set(0, 0, 0, 0, 3);
  Output out(1, 1, ScalarType::kFloat32, 0, random);
  for (int count = 1; count < 50; ++count) {
    const double alpha = 1.0 / count;
    covariance_on_device(x, alpha, out);
    CHECK(out.at(0, 0, 0) == static_cast<double>(static_cast<float>(9 * alpha)), std::to_string(count));
  }
}

TEST(errors_of_short_and_of_one_sided_sums_stay_small) {
  Random random(4);
  Output out(1, 1, ScalarType::kFloat32, 0, random);
  double squares = 0;
  constexpr int kTrials = 100;
  for (int i = 0; i < kTrials; ++i) {  // too few entries for their errors to average out in the norm
    Images x({1, 1, 10, 20}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, 0);
    covariance_on_device(x, 1, out);
    squares += std::pow(out.at(0, 0, 0) / reference::covariance(x.view(), 1, false)[0] - 1, 2);
  }
  CHECK(std::sqrt(squares / kTrials) < 1.5e-7, std::to_string(std::sqrt(squares / kTrials) * 1e8) + "e-8");

  Images same({1, 1, 100, 400}, ScalarType::kFloat32, testing::Layout::kPlanes);  // every rounding has the same sign
  for (std::int64_t p = 0; p < 40000; ++p) same.set(0, 0, p / 400, p % 400, 0.3);
  const double exact = reference::covariance(same.view(), 1, false)[0];
  covariance_on_device(same, 1, out, {cuda::PatchForm::kCheaper, {1}});
  const double error = std::fabs(out.at(0, 0, 0) / exact - 1);
  CHECK(error < 3e-7, std::to_string(error * 1e7) + "e-7");
}

TEST(double_sums_are_accurate_to_rounding) {
  const ConvGeometry geometry{{3, 2, 1, 1, 8}, {3, 1, 0, 2, 11}};
  Random random(2);
  Images x({6, 5, 15, 15}, ScalarType::kFloat64, testing::Layout::kChannelsLast);
  x.fill_normal(random, 0.0);
  const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, true);
  Output out(1, 46, ScalarType::kFloat64, 0, random);
  patch_covariance_on_device(x, geometry, true, out, {});
  const double error = distance(out.values(), exact) / norm(exact);
  CHECK(error < 1e-15, std::to_string(error * 1e15) + "e-15");
}

int main() { return check::run_tests(); }
