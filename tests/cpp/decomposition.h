#pragma once

#include <cstdint>
#include <vector>

/// How far eigenvalues and eigenvectors are from those of a matrix.
namespace testing {

struct Misfit {
  double norm;      ///< of the matrix
  double residual;  ///< norm of A·Vᵀ − Vᵀ·diag(λ), the eigenvectors the rows of V
  double skew;      ///< norm of V·Vᵀ − 1
};

/// `matrix` (n, n) symmetric, `values` (n), `vectors` (n, n) with an eigenvector in each row.
Misfit misfit(std::int64_t n, const std::vector<double>& matrix, const std::vector<double>& values,
              const std::vector<double>& vectors);

}  // namespace testing
