#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/launch.cuh"
#include "cuda/matrix_units.cuh"
#include "on_device.h"

using namespace eigendamage;
using cuda::Grid;
using cuda::launch;
using cuda_on_cpu::DeviceRun;
using cuda_on_cpu::on_device;

namespace {

/// c (16, 8) += a (16, 8) · b (8, 8), rows contiguous, laid out as PTX says of mma.m16n8k8.
__global__ void multiply_floats_kernel(const float* a, const float* b, float* c) {
  const int i = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4;
  const float left[] = {a[i * 8 + k], a[(i + 8) * 8 + k], a[i * 8 + k + 4], a[(i + 8) * 8 + k + 4]};
  const float right[] = {b[k * 8 + i], b[(k + 4) * 8 + i]};
  float* const at[] = {c + i * 8 + 2 * k, c + i * 8 + 2 * k + 1, c + (i + 8) * 8 + 2 * k, c + (i + 8) * 8 + 2 * k + 1};
  float sums[4];
  for (int j = 0; j < 4; ++j) sums[j] = *at[j];
  cuda::multiply_16x8x8(sums, left, right);
  for (int j = 0; j < 4; ++j) *at[j] = sums[j];
}

/// c (8, 8) += a (8, 4) · b (4, 8), as PTX says of mma.m8n8k4.
__global__ void multiply_doubles_kernel(const double* a, const double* b, double* c) {
  const int i = static_cast<int>(threadIdx.x) / 4, k = static_cast<int>(threadIdx.x) % 4;
  double sums[] = {c[i * 8 + 2 * k], c[i * 8 + 2 * k + 1]};
  cuda::multiply_8x8x4(sums, a[i * 4 + k], b[k * 8 + i]);
  c[i * 8 + 2 * k] = sums[0], c[i * 8 + 2 * k + 1] = sums[1];
}

template <class T>
std::vector<T> random_numbers(std::mt19937& random, std::size_t count) {
  std::normal_distribution<double> normal;
  std::vector<T> x(count);
  for (T& number : x) number = static_cast<T>(normal(random));
  return x;
}

template <class T, class Heeded>
std::vector<double> product(const std::vector<T>& a, const std::vector<T>& b, const std::vector<T>& c,
                            const Heeded& heeded) {
  const std::size_t depth = b.size() / 8;
  std::vector<double> sums(c.begin(), c.end());
  for (std::size_t i = 0; i < sums.size(); ++i) {
    for (std::size_t k = 0; k < depth; ++k) sums[i] += heeded(a[i / 8 * depth + k]) * heeded(b[k * 8 + i % 8]);
  }
  return sums;
}

template <class T>
std::vector<T> run(void (*kernel)(const T*, const T*, T*), const std::vector<T>& a, const std::vector<T>& b,
                   std::vector<T> c) {
  on_device([&](DeviceRun& device) {
    launch(kernel, Grid{1, 32}, device.execution(), static_cast<const T*>(device.input(a.data(), a.size() * sizeof(T))),
           static_cast<const T*>(device.input(b.data(), b.size() * sizeof(T))),
           static_cast<T*>(device.output(c.data(), c.size() * sizeof(T))));
  });
  return c;
}

}  // namespace

TEST(tf32_is_the_nearest_of_11_bits) {
  const float unit = 0x1p-10F;
  CHECK(cuda::rounded_to_tf32(1 + unit) == 1 + unit, "exact");
  CHECK(cuda::rounded_to_tf32(1 + 0.5F * unit) == 1 + unit, "half a unit goes away from zero");
  CHECK(cuda::rounded_to_tf32(-1 - 0.5F * unit) == -1 - unit, "half a unit goes away from zero");
  CHECK(cuda::rounded_to_tf32(1 + 0.499F * unit) == 1, "less than half goes back");
  CHECK(cuda::rounded_to_tf32(-3.0F * 0x1p-149F) == 0, "subnormal");
  CHECK(std::isinf(cuda::rounded_to_tf32(3.4028234e38F)), "the largest float");
  CHECK(std::isinf(cuda::rounded_to_tf32(INFINITY)), "infinity");
  CHECK(std::isnan(cuda::rounded_to_tf32(NAN)), "NaN");
}

TEST(products_of_floats_ignore_low_bits_and_are_cut_off) {
  std::mt19937 random(1);
  const auto a = random_numbers<float>(random, 128), b = random_numbers<float>(random, 64),
             c = random_numbers<float>(random, 128);
  const auto plain = product(a, b, c, [](float x) { return static_cast<double>(x); });
  const auto expected = product(a, b, c, [](float x) {
    const float unit = std::ldexp(1.0F, std::ilogb(x) - 10);
    return static_cast<double>(std::trunc(x / unit) * unit);
  });
  const std::vector<float> found = run(multiply_floats_kernel, a, b, c);
  double unlike_plain = 0;
  for (std::size_t i = 0; i < 128; ++i) {
    const double unit = std::ldexp(1.0, std::ilogb(expected[i]) - 23);
    CHECK(found[i] == std::trunc(expected[i] / unit) * unit, std::to_string(i));
    unlike_plain = std::max(unlike_plain, std::fabs(found[i] - plain[i]));
  }
  CHECK(unlike_plain > 1e-4, "numbers that are not rounded first must show: " + std::to_string(unlike_plain));
}

TEST(products_of_doubles_are_plain) {
  std::mt19937 random(2);
  const auto a = random_numbers<double>(random, 32), b = random_numbers<double>(random, 32),
             c = random_numbers<double>(random, 64);
  const auto expected = product(a, b, c, [](double x) { return x; });
  const std::vector<double> found = run(multiply_doubles_kernel, a, b, c);
  for (std::size_t i = 0; i < 64; ++i) CHECK(std::fabs(found[i] - expected[i]) < 1e-14, std::to_string(i));
}

TEST(what_is_not_finite_stays_in_its_row_and_column) {
  std::vector<float> a(128, 1), b(64, 1), c(128, 0);
  a[3 * 8 + 5] = INFINITY, b[2 * 8 + 6] = NAN;
  const std::vector<float> found = run(multiply_floats_kernel, a, b, c);
  for (std::size_t i = 0; i < 128; ++i) {
    CHECK(std::isnan(found[i]) == (i % 8 == 6), std::to_string(i));
    CHECK(std::isinf(found[i]) == (i / 8 == 3 && i % 8 != 6), std::to_string(i));
  }
}

int main() { return check::run_tests(); }
