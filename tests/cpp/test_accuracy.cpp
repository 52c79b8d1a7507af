#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/covariances.h"
#include "cpu/simd.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::Images;
using testing::Output;
using testing::Random;

namespace {

double norm(const std::vector<double>& a) {
  double squares = 0;
  for (const double value : a) squares += value * value;
  return std::sqrt(squares);
}

double distance(std::vector<double> a, const std::vector<double>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return norm(a);
}

}  // namespace

TEST(float_sums_are_as_accurate_as_a_float_matrix_product) {
  const ConvGeometry geometry{{3, 1, 1, 1, 24}, {3, 1, 1, 1, 20}};
  const ParallelFor parallel_for = testing::threads(1);
  const Execution run{&parallel_for, nullptr};
  for (const double mean : {0.0, 2.0}) {
    Random random(1);
    Images x({16, 5, 24, 20}, ScalarType::kFloat32, testing::Layout::kPlanes);
    x.fill_normal(random, mean);
    const std::vector<double> exact = reference::patch_covariance(x.view(), geometry, 1, false);
    const double plain = distance(reference::patch_covariance_in_float(x.view(), geometry), exact);
    const double bound = 2 * plain + static_cast<double>(std::numeric_limits<float>::epsilon()) * norm(exact);
    for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
      cpu::force_instruction_set(*set);
      for (const cpu::PatchForm form : {cpu::PatchForm::kLags, cpu::PatchForm::kDirect}) {
        for (const std::int64_t kept : {1 << 20, 0}) {
          Output out(1, 45, ScalarType::kFloat32, 0, random);
          cpu::patch_covariance(x.view(), geometry, false, {1, 0}, out.view(), run, {form, {.kept = kept}});
          const double error = distance(out.values(), exact);
          CHECK(!(error > bound) && std::isfinite(error),
                std::string(set->name) + " error " + std::to_string(error / norm(exact) * 1e7) + "e-7, plain " +
                    std::to_string(plain / norm(exact) * 1e7) + "e-7");
        }
      }
    }
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
    cpu::patch_covariance(x.view(), geometry, true, {1, 0}, out.view(), {&parallel_for, nullptr}, {});
    const double error = distance(out.values(), exact) / norm(exact);
    CHECK(error < 1e-15, std::string(set->name) + " " + std::to_string(error * 1e15) + "e-15");
  }
}

int main() { return check::run_tests(); }
