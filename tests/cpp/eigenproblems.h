#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "decomposition.h"
#include "images.h"
#include "views.h"

/// Symmetric matrices of many kinds, and whether an eigendecomposition of one is right.
namespace testing {

using namespace eigendamage;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

enum class Kind { kNormal, kCovariance, kRankOne, kDiagonal, kBlocks, kOnes, kZero, kWilkinson, kClustered };
constexpr Kind kKinds[] = {Kind::kNormal, Kind::kCovariance, Kind::kRankOne,   Kind::kDiagonal, Kind::kBlocks,
                           Kind::kOnes,   Kind::kZero,       Kind::kWilkinson, Kind::kClustered};

inline double entry(Kind kind, std::int64_t i, std::int64_t j, const std::vector<double>& x, Random& random) {
  const double drawn = std::normal_distribution<double>()(random);
  switch (kind) {
    case Kind::kNormal: return drawn;
    case Kind::kCovariance: return x[at(i)] * x[at(j)] + (i == j ? 1e-3 * static_cast<double>(i) : 0);
    case Kind::kRankOne: return x[at(i)] * x[at(j)];
    case Kind::kDiagonal: return i == j ? drawn : 0;
    case Kind::kBlocks: return i / 3 == j / 3 ? drawn : 0;
    case Kind::kOnes: return 1;
    case Kind::kZero: return 0;
    case Kind::kWilkinson: return i == j ? std::fabs(static_cast<double>(i) - 7) : i == j + 1 ? 1 : 0;
    case Kind::kClustered: return (i == j ? 1 : 0) + 1e-6 * drawn;
  }
  return 0;
}

/// A symmetric matrix with gaps between its rows and columns and infinity above its diagonal, and what becomes of it.
template <class T>
class Problem {
 public:
  Problem(std::int64_t n, Kind kind, double scale, std::int64_t step, Random& random)
      : n_(n), step_(step), matrix_(at(n * n * step), T(kInfinity)), values_(at(n)), vectors_(at(n * n)) {
    std::vector<double> x;
    for (std::int64_t i = 0; i < n; ++i) x.push_back(std::normal_distribution<double>()(random));
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) set(i, j, scale * entry(kind, i, j, x, random));
    }
  }

  void set(std::int64_t i, std::int64_t j, double value) { matrix_[at((i * n_ + j) * step_)] = static_cast<T>(value); }
  double get(std::int64_t i, std::int64_t j) const {
    return static_cast<double>(matrix_[at((std::max(i, j) * n_ + std::min(i, j)) * step_)]);
  }
  void scale(int exponent) {
    for (T& x : matrix_) x = std::ldexp(x, exponent);
    for (T& x : values_) x = std::ldexp(x, exponent);
  }

  EighProblem view() {
    const ScalarType type = sizeof(T) == 4 ? ScalarType::kFloat32 : ScalarType::kFloat64;
    return {matrix_.data(), type, n_, n_ * step_, step_, values_.data(), vectors_.data(), &code_};
  }

  std::size_t matrix_bytes() const { return matrix_.size() * sizeof(T); }
  double value(std::int64_t k) const { return static_cast<double>(values_[at(k)]); }
  std::int32_t code() const { return code_; }
  std::int64_t size() const { return n_; }
  bool failed_with(EighCode code) const {
    const auto nan = [](T x) { return std::isnan(x); };
    return code_ == code && std::all_of(values_.begin(), values_.end(), nan) &&
           std::all_of(vectors_.begin(), vectors_.end(), nan);
  }
  bool same_bits(const Problem& other) const {
    return code_ == other.code_ && std::memcmp(values_.data(), other.values_.data(), values_.size() * sizeof(T)) == 0 &&
           std::memcmp(vectors_.data(), other.vectors_.data(), vectors_.size() * sizeof(T)) == 0;
  }

  /// "" where order, signs, residual and orthogonality are right.
  std::string fault() const {
    if (code_ != kSolved) return "code " + std::to_string(code_);
    double largest = std::numeric_limits<double>::min();
    for (std::int64_t i = 0; i < n_; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) largest = std::max(largest, std::fabs(get(i, j)));
    }
    std::vector<double> matrix, values;
    for (std::int64_t i = 0; i < n_ * n_; ++i) matrix.push_back(get(i / n_, i % n_) / largest);
    for (const T value : values_) values.push_back(static_cast<double>(value) / largest);
    const std::vector<double> vectors(vectors_.begin(), vectors_.end());
    for (std::int64_t k = 0; k < n_; ++k) {
      if (k > 0 && values_[at(k)] < values_[at(k - 1)]) return "values out of order";
      const double* const vector = &vectors[at(k * n_)];
      const auto smaller = [](double x, double y) { return std::fabs(x) < std::fabs(y); };
      if (!(*std::max_element(vector, vector + n_, smaller) > 0)) return "wrong sign";
    }
    const auto [norm, residual, skew] = misfit(n_, matrix, values, vectors);
    const double gate = 8 * static_cast<double>(n_) * static_cast<double>(std::numeric_limits<T>::epsilon());
    const double least = static_cast<double>(n_) * static_cast<double>(std::numeric_limits<T>::denorm_min()) / largest;
    if (!(residual <= gate * norm + least)) return "residual " + std::to_string(residual / norm);
    if (!(skew <= gate)) return "orthogonality " + std::to_string(skew);
    return "";
  }

 private:
  std::int64_t n_, step_;
  std::vector<T> matrix_, values_, vectors_;
  std::int32_t code_ = -1;
};

/// Of sizes up to `largest`, kinds and scales drawn.
template <class T>
std::vector<Problem<T>> mixed(Random& random, std::int64_t count, std::int64_t largest) {
  std::vector<Problem<T>> problems;
  for (std::int64_t i = 0; i < count; ++i) {
    const Kind kind = kKinds[pick(random, 0, std::size(kKinds) - 1)];
    problems.emplace_back(pick(random, 1, largest), kind, std::pow(10.0, static_cast<double>(pick(random, -30, 30))),
                          pick(random, 1, 2), random);
  }
  return problems;
}

}  // namespace testing
