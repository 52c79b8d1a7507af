#include "covariance_cases.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace testing {

using eigendamage::Update;

Update random_update(Random& random) {
  constexpr Update updates[] = {{1, 0}, {1, 1}, {0.5, 2}, {2, -0.5}};
  return choose(random, updates);
}

Problem random_problem(Random& random) {
  constexpr std::int64_t channels[] = {1, 1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 40};
  Problem p{};
  p.groups = pick(random, 0, 2) ? 1 : pick(random, 2, 20);
  std::int64_t per_group = choose(random, channels);
  if (p.groups > 1) per_group = std::min<std::int64_t>(per_group, pick(random, 1, 9));
  p.shape = {pick(random, 1, 4), per_group * p.groups, pick(random, 1, 8), pick(random, 1, 8)};
  const std::int64_t largest = per_group > 16 ? 2 : per_group > 6 ? 3 : per_group > 3 ? 5 : 7;
  p.geometry = {random_axis(random, p.shape.height, largest), random_axis(random, p.shape.width, largest)};
  return p;
}

void check_output(const Output& out, const std::vector<double>& before, const std::vector<double>& sum,
                  const Update& update, const std::string& message) {
  const std::vector<double> after = out.values();
  CHECK(after.size() == sum.size(), message);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < after.size(); ++i) {
    const double expected = update.alpha * sum[i] + (update.beta == 0 ? 0 : update.beta * before[i]);
    wrong += !(after[i] == expected);
  }
  CHECK(wrong == 0, message + ": " + std::to_string(wrong) + " of " + std::to_string(after.size()) + " entries");
  CHECK(out.gaps_untouched(), message);
  CHECK(out.symmetric(), message);
}

double norm(const std::vector<double>& a) {
  double squares = 0;
  for (const double value : a) squares += value * value;
  return std::sqrt(squares);
}

double distance(std::vector<double> a, const std::vector<double>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return norm(a);
}

}  // namespace testing
