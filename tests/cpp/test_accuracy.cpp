#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cpu/covariances.h"
#include "cpu/simd.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::distance;
using testing::Images;
using testing::norm;
using testing::Output;
using testing::Random;

TEST(float_sums_are_as_accurate_as_a_float_matrix_product) {
  const ConvGeometry geometry{{3, 1, 1, 1, 24}, {3, 1, 1, 1, 20}};
  const ParallelFor parallel_for = testing::threads(1);
  const Execution run{&parallel_for};
  for (const double mean : {0.0, 2.0}) {
    Random random(1);
    Images x({16, 5, 24, 20}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, mean);
    const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, false);
    const double plain = distance(reference::patch_covariance_in_float(x.view(), geometry), exact);
    const double bound = 2 * plain + static_cast<double>(std::numeric_limits<float>::epsilon()) * norm(exact);
    for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
      cpu::force_instruction_set(*set);
      for (const cpu::PatchForm form : {cpu::PatchForm::kLags, cpu::PatchForm::kDirect, cpu::PatchForm::kTiledLags}) {
        for (const auto& [kept, tiles] :
             {std::pair<std::int64_t, double>{1 << 20, 1e99}, {1 << 20, 0}, {0, 1e99}, {0, 0}}) {
          Output out(1, 45, ScalarType::kFloat32, 0, random);
          cpu::Tuning tuning{form, {.kept = kept}};
          tuning.tiles = tiles;
          cpu::patch_covariance(x.view(), geometry, false, {1, 0}, out.view(), run, tuning);
          const double error = distance(out.values(), exact);
          CHECK(!(error > bound) && std::isfinite(error),
                std::string(set->name) + " error " + std::to_string(error / norm(exact) * 1e7) + "e-7, plain " +
                    std::to_string(plain / norm(exact) * 1e7) + "e-7");
        }
      }
    }
  }
}

TEST(lags_in_tiles_are_as_accurate) {
  const ConvGeometry geometry{{3, 1, 1, 1, 6}, {3, 1, 1, 1, 5}};
  const ParallelFor parallel_for = testing::threads(1);
  const cpu::InstructionSet* best = cpu::supported_instruction_sets().front();
  if (!best->single_precision.tiles) return;
  cpu::force_instruction_set(*best);
  for (const double mean : {0.0, 2.0}) {
    Random random(1);
    Images x({200, 20, 6, 5}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, mean);
    const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, false);
    const double plain = distance(reference::patch_covariance_in_float(x.view(), geometry), exact);
    const double bound = 2 * plain + static_cast<double>(std::numeric_limits<float>::epsilon()) * norm(exact);
    for (const std::int64_t kept : {1 << 20, 0}) {
      Output out(1, 180, ScalarType::kFloat32, 0, random);
      cpu::patch_covariance(x.view(), geometry, false, {1, 0}, out.view(), {&parallel_for},
                            {cpu::PatchForm::kTiledLags, {.kept = kept}});
      const double error = distance(out.values(), exact);
      CHECK(!(error > bound) && std::isfinite(error), std::to_string(error / norm(exact) * 1e7) + "e-7, plain " +
                                                          std::to_string(plain / norm(exact) * 1e7) + "e-7");
    }
  }
}

TEST(alpha_adds_no_rounding_of_its_own) {
  Random random(3);
  const ParallelFor parallel_for = testing::threads(1);
  Images x({1, 1, 1, 1}, ScalarType::kFloat32, testing::Layout::kPlanes);
  x.set(0, 0, 0, 0, 3);
  Output out(1, 1, ScalarType::kFloat32, 0, random);
  for (int count = 1; count < 50; ++count) {
    const double alpha = 1.0 / count;
    cpu::covariance(x.view(), false, {alpha, 0}, out.view(), {&parallel_for}, {});
    CHECK(out.at(0, 0, 0) == static_cast<double>(static_cast<float>(9 * alpha)), std::to_string(count));
  }
}

TEST(errors_of_short_and_of_one_sided_sums_stay_small) {
  const ParallelFor parallel_for = testing::threads(1);
  const Execution run{&parallel_for};
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    Random random(4);
    Output out(1, 1, ScalarType::kFloat32, 0, random);
    double squares = 0;
    constexpr int kTrials = 300;
    for (int i = 0; i < kTrials; ++i) {  // too few entries for their errors to average out in the norm
      Images x({1, 1, 10, 20}, ScalarType::kFloat32, testing::Layout::kPlanes);
      x.fill_normal(random, 0);
      cpu::covariance(x.view(), false, {1, 0}, out.view(), run, {});
      const double exact = reference::covariance(x.view(), 1, false)[0];
      squares += std::pow(out.at(0, 0, 0) / exact - 1, 2);
    }
    CHECK(std::sqrt(squares / kTrials) < 6.8e-8,
          std::string(set->name) + " " + std::to_string(std::sqrt(squares / kTrials) * 1e8) + "e-8");

    Images same({1, 1, 100, 400}, ScalarType::kFloat32, testing::Layout::kPlanes);  // every rounding has the same sign
    for (std::int64_t p = 0; p < 40000; ++p) same.set(0, 0, p / 400, p % 400, 0.3);
    cpu::covariance(same.view(), false, {1, 0}, out.view(), run, {});
    const double error = std::fabs(out.at(0, 0, 0) / reference::covariance(same.view(), 1, false)[0] - 1);
    CHECK(error < 3e-7, std::string(set->name) + " " + std::to_string(error * 1e6) + "e-6");
  }
}

TEST(double_sums_are_accurate_to_rounding) {
  const ConvGeometry geometry{{3, 2, 1, 1, 8}, {3, 1, 0, 2, 11}};
  const ParallelFor parallel_for = testing::threads(1);
  Random random(2);
  Images x({6, 5, 15, 15}, ScalarType::kFloat64, testing::Layout::kChannelsLast);
  x.fill_normal(random, 0.0);
  const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, true);
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    Output out(1, 46, ScalarType::kFloat64, 0, random);
    cpu::patch_covariance(x.view(), geometry, true, {1, 0}, out.view(), {&parallel_for}, {});
    const double error = distance(out.values(), exact) / norm(exact);
    CHECK(error < 1e-15, std::string(set->name) + " " + std::to_string(error * 1e15) + "e-15");
  }
}

int main() { return check::run_tests(); }
