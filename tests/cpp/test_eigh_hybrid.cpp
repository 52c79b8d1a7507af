#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "cpu/panels.h"
#include "cpu/simd.h"
#include "decomposition.h"
#include "images.h"

using namespace eigendamage;
using testing::pick;
using testing::Random;

namespace {

using Numbers = std::vector<double>;

double normal(Random& random) { return std::normal_distribution<double>()(random); }

/// A symmetric matrix and, where a formula gives them, its eigenvalues.
struct Matrix {
  std::int64_t n;
  Numbers entries, spectrum;

  explicit Matrix(std::int64_t size) : n(size), entries(static_cast<std::size_t>(size * size)) {}
  double& at(std::int64_t r, std::int64_t c) { return entries[static_cast<std::size_t>(r * n + c)]; }
  void set(std::int64_t r, std::int64_t c, double value) { at(r, c) = at(c, r) = value; }
};

Matrix diagonal(const Numbers& values) {
  Matrix a(static_cast<std::int64_t>(values.size()));
  for (std::int64_t i = 0; i < a.n; ++i) a.set(i, i, values[static_cast<std::size_t>(i)]);
  a.spectrum = values;
  return a;
}

template <class Value>
Numbers list(std::int64_t n, const Value& value) {
  Numbers numbers;
  for (std::int64_t i = 0; i < n; ++i) numbers.push_back(value(static_cast<double>(i)));
  return numbers;
}

/// diagonal(values) between random reflections.
Matrix with_spectrum(const Numbers& values, Random& random) {
  Matrix a = diagonal(values);
  for (int repeat = 0; repeat < 4; ++repeat) {
    Numbers v = list(a.n, [&](double) { return normal(random); });
    const double norm = std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0));
    for (double& x : v) x /= norm;
    for (int side = 0; side < 2; ++side) {
      for (std::int64_t r = 0; r < a.n; ++r) {
        double* row = &a.at(r, 0);
        const double dot = std::inner_product(v.begin(), v.end(), row, 0.0);
        for (const double x : v) *row++ -= 2 * dot * x;
      }
      for (std::int64_t r = 0; r < a.n; ++r) {
        for (std::int64_t c = 0; c < r; ++c) std::swap(a.at(r, c), a.at(c, r));
      }
    }
  }
  return a;
}

/// XᵀX of `rank` rows whose scales fall to 1/1000.
Matrix covariance(std::int64_t n, std::int64_t rank, Random& random) {
  Matrix a(n);
  for (std::int64_t k = 0; k < rank; ++k) {
    const double scale = std::pow(1e-3, static_cast<double>(k) / static_cast<double>(rank));
    const Numbers x = list(n, [&](double) { return scale * normal(random); });
    for (std::int64_t r = 0; r < n; ++r) {
      for (std::int64_t c = 0; c < n; ++c) {
        a.at(r, c) += x[static_cast<std::size_t>(r)] * x[static_cast<std::size_t>(c)];
      }
    }
  }
  return a;
}

Matrix tridiagonal(const Numbers& values, double beside) {
  Matrix a = diagonal(values);
  a.spectrum.clear();
  for (std::int64_t i = 1; i < a.n; ++i) a.set(i, i - 1, beside);
  return a;
}

Matrix wilkinson(std::int64_t n, double glue) {
  const auto distance = [](double i) { return std::abs(std::fmod(i, 21) - 10); };
  Matrix a = tridiagonal(list(n, distance), 1);
  for (std::int64_t i = 21; i < n; i += 21) a.set(i, i - 1, glue);
  return a;
}

std::vector<Matrix> hard_matrices(std::int64_t n, Random& random) {
  const auto size = static_cast<double>(n);
  std::vector<Matrix> all;
  all.push_back(diagonal(Numbers(static_cast<std::size_t>(n), 0.0)));
  all.push_back(diagonal(Numbers(static_cast<std::size_t>(n), 0.7)));
  all.push_back(diagonal(list(n, [&](double i) { return i; })));
  all.push_back(diagonal(list(n, [&](double i) { return size - i; })));
  all.push_back(diagonal(list(n, [&](double i) { return std::fmod(7 * i, 5) - 2; })));
  all.push_back(Matrix(n));
  std::fill(all.back().entries.begin(), all.back().entries.end(), 1.0);
  all.back().spectrum = list(n, [&](double i) { return i == 0 ? size : 0; });
  all.push_back(covariance(n, 1, random));
  all.push_back(covariance(n, n / 4 + 1, random));
  all.push_back(Matrix(n));  // integers with ties
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) all.back().set(r, c, static_cast<double>(pick(random, -2, 2)));
  }
  all.push_back(with_spectrum(list(n, [&](double i) { return std::floor(i / 4); }), random));
  all.push_back(with_spectrum(list(n, [&](double i) { return std::fmod(i, 2) == 0 ? 1 : -1; }), random));
  all.push_back(with_spectrum(list(n, [&](double i) { return 1 + 1e-6 * i / size; }), random));
  all.push_back(with_spectrum(list(n, [&](double i) { return std::pow(10, -14 * i / size); }), random));
  all.push_back(Matrix(n));  // Hilbert's
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) all.back().set(r, c, 1 / static_cast<double>(r + c + 1));
  }
  all.push_back(wilkinson(n, 1));
  all.push_back(wilkinson(n, 1e-7));
  all.push_back(tridiagonal(Numbers(static_cast<std::size_t>(n), 2.0), -1));
  all.back().spectrum = list(n, [&](double i) { return 2 - 2 * std::cos((i + 1) * M_PI / (size + 1)); });
  all.push_back(diagonal(list(n, [&](double i) { return i + 1; })));  // an arrow
  all.back().spectrum.clear();
  for (std::int64_t c = 0; c + 1 < n; ++c) all.back().set(n - 1, c, 1);
  all.push_back(covariance(n, 2 * n, random));  // two blocks
  for (std::int64_t r = n / 2; r < n; ++r) {
    for (std::int64_t c = 0; c < n / 2; ++c) all.back().set(r, c, 0);
  }
  all.push_back(covariance(n, n, random));  // small beside large
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c <= r; ++c)
      all.back().set(r, c, all.back().at(r, c) * std::pow(10, -4.0 * static_cast<double>(r % 10)));
  }
  all.push_back(all.back());  // tiny entries beside one of order 1
  for (double& x : all.back().entries) x *= 1e-25;
  all.back().set(n - 1, n - 1, 1);
  return all;
}

/// Scales `matrix`, solves it, and checks the gates of LAPACK's accuracy in double precision.
template <class T>
void check_matrix(const cpu::EighKernels<T>& kernels, Matrix matrix, const std::string& name) {
  const std::int64_t n = matrix.n, stride = cpu::eigh_stride(n);
  const auto size = static_cast<std::size_t>(n * stride);
  double largest = 0;
  for (const double x : matrix.entries) largest = std::max(largest, std::abs(x));
  const int exponent = largest > 0 ? std::ilogb(static_cast<T>(largest)) + 1 : 0;
  const auto a = cpu::make_buffer<T>(n * stride), values = cpu::make_buffer<T>(n),
             rows = cpu::make_buffer<T>(n * stride);
  const auto workspace = cpu::make_buffer<T>(cpu::eigh_hybrid_workspace(n));
  std::fill_n(a.get(), size, std::numeric_limits<T>::quiet_NaN());
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < n; ++c) {
      const T entry = std::ldexp(static_cast<T>(matrix.at(r, c)), -exponent);
      matrix.at(r, c) = static_cast<double>(entry);
      if (c <= r) a[static_cast<std::size_t>(r * stride + c)] = entry;
    }
  }
  const auto solve = [&] { return kernels.hybrid(n, a.get(), values.get(), rows.get(), workspace.get()); };
  CHECK(solve() == 0, name);

  const double tolerance = static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon());
  const Numbers found(values.get(), values.get() + n);
  Numbers vectors;
  for (std::int64_t k = 0; k < n; ++k) vectors.insert(vectors.end(), &rows[k * stride], &rows[k * stride] + n);
  CHECK(std::is_sorted(found.begin(), found.end()), name + ": order");
  const auto [norm, residual, skew] = testing::misfit(n, matrix.entries, found, vectors);
  double error = 0;
  std::sort(matrix.spectrum.begin(), matrix.spectrum.end());
  for (std::size_t k = 0; k < matrix.spectrum.size(); ++k) {
    error += std::pow(std::ldexp(matrix.spectrum[k], -exponent) - found[k], 2);
  }
  error = std::sqrt(error);
  const auto ratio = [](double x, double scale) { return ": " + std::to_string(x / scale); };
  CHECK(residual <= 8 * tolerance * norm, name + ": residual" + ratio(residual, tolerance * norm));
  CHECK(skew <= 8 * tolerance, name + ": orthogonality" + ratio(skew, tolerance));
  CHECK(error <= 4 * tolerance * norm, name + ": eigenvalues" + ratio(error, tolerance * norm));
}

/// body(kernels, name) for both types and every instruction set of this CPU.
template <class Body>
void for_every_set(const Body& body) {
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    body(set->single_eigh, std::string(set->name) + " float ");
    body(set->double_eigh, std::string(set->name) + " double ");
  }
}

}  // namespace

TEST(covariances_of_all_sizes_are_decomposed) {
  Random random(1);
  for (const std::int64_t n : {2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 40, 63, 64, 65, 127, 128, 129, 144}) {
    const Matrix matrix = covariance(n, 2 * n, random);
    for_every_set(
        [&](const auto& kernels, const std::string& name) { check_matrix(kernels, matrix, name + std::to_string(n)); });
  }
}

TEST(hard_matrices_are_decomposed) {
  Random random(2);
  for (const std::int64_t n : {2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 34, 40, 64, 65}) {
    std::size_t family = 0;
    for (const Matrix& matrix : hard_matrices(n, random)) {
      for_every_set([&](const auto& kernels, const std::string& name) {
        check_matrix(kernels, matrix, name + std::to_string(n) + " family " + std::to_string(family));
      });
      ++family;
    }
  }
}

TEST(large_hard_matrices_are_decomposed) {
  Random random(3);
  std::size_t family = 0;
  for (const std::int64_t n : {127, 128, 255, 256, 257}) {
    const std::vector<Matrix> matrices = hard_matrices(n, random);
    for (int repeat = 0; repeat < (n < 200 ? 12 : 3); ++repeat, family += 5) {
      const std::size_t chosen = family % matrices.size();
      for_every_set([&](const auto& kernels, const std::string& name) {
        check_matrix(kernels, matrices[chosen], name + std::to_string(n) + " family " + std::to_string(chosen));
      });
    }
  }
}

int main() { return check::run_tests(); }
