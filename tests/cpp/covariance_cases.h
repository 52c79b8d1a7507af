#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "images.h"

/// Random covariances, and how their outputs are checked.
namespace testing {

template <class Item, std::size_t Size>
Item choose(Random& random, const Item (&items)[Size]) {
  return items[pick(random, 0, static_cast<std::int64_t>(Size) - 1)];
}

eigendamage::Update random_update(Random& random);

struct Problem {
  Shape shape;
  std::int64_t groups;
  eigendamage::ConvGeometry geometry;
};

Problem random_problem(Random& random);

/// Checks out = beta·before + alpha·sum exactly: all numbers are small integers (alpha and beta too, or halves).
void check_output(const Output& out, const std::vector<double>& before, const std::vector<double>& sum,
                  const eigendamage::Update& update, const std::string& message);

double norm(const std::vector<double>& a);
double distance(std::vector<double> a, const std::vector<double>& b);

}  // namespace testing
