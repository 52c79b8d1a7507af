#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "images.h"

/// Random second moments, and where their outputs go.
namespace testing {

/// A weight (outputs, inputs, kernel height, kernel width) in any order of strides with gaps, of integers at first.
class Weight {
 public:
  Weight(std::int64_t outputs, std::int64_t inputs, const eigendamage::ConvGeometry& geometry,
         eigendamage::ScalarType input_type, Random& random)
      : sizes_{outputs, inputs, geometry.vertical.kernel, geometry.horizontal.kernel},
        twice_(input_type == eigendamage::ScalarType::kFloat64) {
    std::int64_t order[] = {0, 1, 2, 3}, stride = pick(random, 1, 2);
    std::shuffle(order, order + 4, random);
    for (const std::int64_t dim : order) {
      strides_[dim] = stride;
      stride *= sizes_[dim] + pick(random, 0, 1);
    }
    single_.resize(static_cast<std::size_t>(stride), kGap);
    double_.resize(static_cast<std::size_t>(stride), kGap);
    fill([&] { return static_cast<double>(pick(random, -9, 9)); });
  }

  eigendamage::WeightView view() {
    return {twice_ ? static_cast<void*>(double_.data()) : single_.data(),
            twice_ ? eigendamage::ScalarType::kFloat64 : eigendamage::ScalarType::kFloat32,
            sizes_[0],
            sizes_[1],
            strides_[0],
            strides_[1],
            strides_[2],
            strides_[3]};
  }

  std::vector<double> values() const {
    std::vector<double> all;
    for (const std::size_t i : places()) all.push_back(twice_ ? double_[i] : static_cast<double>(single_[i]));
    return all;
  }

  template <class Number>
  void fill(const Number& number) {
    for (const std::size_t i : places()) {
      double_[i] = number();
      single_[i] = static_cast<float>(double_[i]);
    }
  }

  bool gaps_untouched() {
    fill([] { return kGap; });
    bool untouched = true;
    for (const double value : double_) untouched &= value == kGap;
    for (const float value : single_) untouched &= static_cast<double>(value) == kGap;
    return untouched;
  }

 private:
  static constexpr double kGap = 12345;

  std::vector<std::size_t> places() const {
    std::vector<std::size_t> all;
    for (std::int64_t o = 0; o < sizes_[0]; ++o) {
      for (std::int64_t c = 0; c < sizes_[1]; ++c) {
        for (std::int64_t i = 0; i < sizes_[2]; ++i) {
          for (std::int64_t j = 0; j < sizes_[3]; ++j) {
            all.push_back(
                static_cast<std::size_t>(o * strides_[0] + c * strides_[1] + i * strides_[2] + j * strides_[3]));
          }
        }
      }
    }
    return all;
  }

  std::int64_t sizes_[4], strides_[4];
  bool twice_;
  std::vector<float> single_;
  std::vector<double> double_;
};

struct MomentProblem {
  Shape x, g;
  std::int64_t groups;
  eigendamage::ConvGeometry geometry;
};

/// At most 6 examples of at most 12 × 12 pixels, or up to 300 of one.
MomentProblem random_moment(Random& random);

/// Checks out = beta·before + alpha·sum exactly.
void check_moment(Weight& out, const std::vector<double>& before, const std::vector<double>& sum,
                  const eigendamage::Update& update, const std::string& message);

}  // namespace testing
