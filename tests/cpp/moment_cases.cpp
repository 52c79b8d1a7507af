#include "moment_cases.h"

#include <algorithm>

#include "check.h"
#include "covariance_cases.h"

namespace testing {

MomentProblem random_moment(Random& random) {
  constexpr std::int64_t channels[] = {1, 1, 2, 3, 4, 7, 15, 16, 17, 31, 33, 40};
  MomentProblem p{};
  p.groups = pick(random, 0, 2) ? 1 : pick(random, 2, 20);
  const std::int64_t most = p.groups > 1 ? pick(random, 1, 9) : 40;
  const std::int64_t inputs = std::min(most, choose(random, channels));
  const std::int64_t outputs = std::min(most, choose(random, channels));
  const std::int64_t largest = inputs * outputs > 256 ? 2 : inputs * outputs > 40 ? 3 : 5;
  p.x = {pick(random, 0, 6), inputs * p.groups, pick(random, 1, 12), pick(random, 1, 12)};
  p.geometry = {random_axis(random, p.x.height, largest), random_axis(random, p.x.width, largest)};
  if (pick(random, 0, 5) == 0) {  // rows
    p.x = {pick(random, 0, 300), p.x.channels, 1, 1};
    p.geometry = {{1, 1, 0, 1, 1}, {1, 1, 0, 1, 1}};
  }
  p.g = {p.x.batch, outputs * p.groups, p.geometry.vertical.output, p.geometry.horizontal.output};
  return p;
}

void check_moment(Weight& out, const std::vector<double>& before, const std::vector<double>& sum,
                  const eigendamage::Update& update, const std::string& message) {
  const std::vector<double> after = out.values();
  CHECK(after.size() == sum.size(), message);
  std::size_t wrong = 0;
  for (std::size_t at = 0; at < sum.size(); ++at) {
    wrong += !(after[at] == update.alpha * sum[at] + (update.beta == 0 ? 0 : update.beta * before[at]));
  }
  CHECK(wrong == 0, message + ": " + std::to_string(wrong) + " of " + std::to_string(sum.size()) + " entries");
  CHECK(out.gaps_untouched(), message);
}

}  // namespace testing
