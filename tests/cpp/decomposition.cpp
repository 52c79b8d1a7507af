#include "decomposition.h"

#include <cmath>

namespace testing {
namespace {

/// The norm of left·right − expected, all (n, n).
template <class Expected>
double distance(std::size_t n, const double* left, const double* right, const Expected& expected) {
  double square = 0;
  std::vector<double> row(n);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) row[j] = -expected(i, j);
    for (std::size_t k = 0; k < n; ++k) {
      const double factor = left[i * n + k], *const terms = right + k * n;
      for (std::size_t j = 0; j < n; ++j) row[j] += factor * terms[j];
    }
    for (const double x : row) square += x * x;
  }
  return std::sqrt(square);
}

}  // namespace

Misfit misfit(std::int64_t size, const std::vector<double>& matrix, const std::vector<double>& values,
              const std::vector<double>& vectors) {
  const auto n = static_cast<std::size_t>(size);
  std::vector<double> columns(n * n);
  for (std::size_t i = 0; i < n * n; ++i) columns[i % n * n + i / n] = vectors[i];
  double square = 0;
  for (const double x : matrix) square += x * x;
  return {std::sqrt(square),
          distance(n, vectors.data(), matrix.data(),
                   [&](std::size_t i, std::size_t j) { return values[i] * vectors[i * n + j]; }),
          distance(n, vectors.data(), columns.data(), [](std::size_t i, std::size_t j) { return i == j ? 1.0 : 0.0; })};
}

}  // namespace testing
