#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

/// Inputs and outputs of the kernels, for tests.
namespace testing {

using Random = std::mt19937;

std::int64_t pick(Random& random, std::int64_t low, std::int64_t high);  ///< low ≤ result ≤ high

struct Shape {
  std::int64_t batch, channels, height, width;
};

enum class Layout { kPlanes, kChannelsLast, kSliced, kTransposed, kExpanded };
inline constexpr Layout kLayouts[] = {Layout::kPlanes, Layout::kChannelsLast, Layout::kSliced, Layout::kTransposed,
                                      Layout::kExpanded};
inline constexpr eigendamage::ScalarType kTypes[] = {
    eigendamage::ScalarType::kFloat32, eigendamage::ScalarType::kFloat64, eigendamage::ScalarType::kBFloat16,
    eigendamage::ScalarType::kFloat16};

/// Owns exactly the elements that its view reaches, so that a sanitizer sees every read beside them.
class Images {
 public:
  Images(const Shape& shape, eigendamage::ScalarType type, Layout layout);
  Images(const Images&) = delete;

  const eigendamage::ImageView& view() const { return view_; }
  /// Integers from −4 to 4: every type holds them, and sums of their products are exact.
  void fill_integers(Random& random);
  /// Standard normal numbers plus `mean`.
  void fill_normal(Random& random, double mean);
  /// x[n, c, h, w] = value, rounded towards zero.
  void set(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, double value);

 private:
  void store(std::size_t index, double value);

  std::vector<std::byte> storage_;
  eigendamage::ImageView view_;
};

/// out (groups, size, size) with gaps between the rows and the groups; symmetric integers at first.
class Output {
 public:
  Output(std::int64_t groups, std::int64_t size, eigendamage::ScalarType input_type, std::int64_t gap, Random& random);

  eigendamage::FactorView view();
  double at(std::int64_t group, std::int64_t row, std::int64_t column) const;
  std::vector<double> values() const;  ///< without the gaps
  void fill(double value);
  bool gaps_untouched() const;
  bool symmetric() const;  ///< bit for bit; NaN equals NaN

 private:
  std::int64_t index(std::int64_t group, std::int64_t row, std::int64_t column) const;
  double number(std::int64_t index) const;
  void set(std::int64_t index, double value);

  std::int64_t groups_, size_, row_stride_, group_stride_;
  bool twice_;
  std::vector<float> single_;
  std::vector<double> double_;
};

/// Splits every call among that many std::threads; 1 is the caller's own.
eigendamage::ParallelFor threads(std::int64_t count);

/// A convolution axis with some kernel, stride, dilation and padding up to what `largest` allows, and at most as many
/// outputs as fit with that padding on both sides; now and then none.
eigendamage::ConvAxis random_axis(Random& random, std::int64_t size, std::int64_t largest);

std::string describe(const eigendamage::ImageView& x, const eigendamage::ConvGeometry& geometry);

}  // namespace testing
