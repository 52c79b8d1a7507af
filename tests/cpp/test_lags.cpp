#include <map>
#include <set>
#include <utility>

#include "check.h"
#include "images.h"
#include "lag_form/lags.h"

using namespace eigendamage;

namespace {

/// The lines that offset i reads at outputs where offset j, too, reads inside the image.
std::set<std::int64_t> lines_read(const ConvAxis& axis, std::int64_t size, std::int64_t i, std::int64_t j) {
  std::set<std::int64_t> lines;
  for (std::int64_t t = 0; t < axis.output; ++t) {
    const std::int64_t a = axis.stride * t + axis.dilation * i - axis.pad;
    const std::int64_t b = axis.stride * t + axis.dilation * j - axis.pad;
    if (0 <= a && a < size && 0 <= b && b < size) lines.insert(a);
  }
  return lines;
}

template <class Visit>
void for_every_axis(const Visit& visit) {
  for (std::int64_t kernel = 1; kernel <= 7; ++kernel)
    for (std::int64_t stride = 1; stride <= 3; ++stride)
      for (std::int64_t dilation = 1; dilation <= 2; ++dilation)
        for (std::int64_t pad = 0; pad <= 3; ++pad)
          for (std::int64_t size = 0; size <= 9; ++size)
            for (std::int64_t output : {0, 1, 2, 4, 9, 11})
              visit(ConvAxis{kernel, stride, pad, dilation, output}, size);
}

std::string describe(const ConvAxis& axis, std::int64_t size) {
  ImageView x{};
  x.width = size;
  return testing::describe(x, {axis, axis});
}

}  // namespace

TEST(every_window_is_the_disjoint_union_of_its_segments) {
  for_every_axis([](const ConvAxis& axis, std::int64_t size) {
    std::set<std::pair<std::int64_t, std::int64_t>> seen;
    for (const AxisGroup& group : axis_groups(axis, size)) {
      for (const OffsetPair& pair : group.pairs) {
        CHECK(seen.insert({pair.i, pair.j}).second, describe(axis, size));
        CHECK(group.lag == axis.dilation * (pair.j - pair.i), describe(axis, size));
        std::multiset<std::int64_t> lines;
        for (std::int64_t s = pair.begin; s < pair.end; ++s) {
          const Segment& segment = group.segments[static_cast<std::size_t>(s)];
          for (std::int64_t u = 0; u < segment.count; ++u) lines.insert(segment.first + segment.step * u);
        }
        const std::set<std::int64_t> expected = lines_read(axis, size, pair.i, pair.j);
        CHECK((lines == std::multiset<std::int64_t>(expected.begin(), expected.end())), describe(axis, size));
      }
    }
    CHECK(static_cast<std::int64_t>(seen.size()) == axis.kernel * axis.kernel, describe(axis, size));
  });
}

TEST(segments_of_a_group_share_no_line_and_none_is_useless) {
  for_every_axis([](const ConvAxis& axis, std::int64_t size) {
    for (const AxisGroup& group : axis_groups(axis, size)) {
      std::set<std::int64_t> lines, used;
      std::size_t total = 0;
      for (const Segment& segment : group.segments) {
        CHECK(segment.count > 0, describe(axis, size));
        CHECK(lines.empty() || segment.first > *lines.rbegin(), describe(axis, size));
        for (std::int64_t u = 0; u < segment.count; ++u) lines.insert(segment.first + segment.step * u);
        total += static_cast<std::size_t>(segment.count);
      }
      CHECK(lines.size() == total, describe(axis, size));
      for (const OffsetPair& pair : group.pairs) {
        for (std::int64_t s = pair.begin; s < pair.end; ++s) used.insert(s);
      }
      CHECK(used.size() == group.segments.size(), describe(axis, size));
    }
  });
}

TEST(pairs_share_a_group_exactly_when_lag_and_residue_agree) {
  for_every_axis([](const ConvAxis& axis, std::int64_t size) {
    std::map<std::pair<std::int64_t, std::int64_t>, int> groups;
    int index = 0;
    for (const AxisGroup& group : axis_groups(axis, size)) {
      for (const OffsetPair& pair : group.pairs) {
        const std::int64_t start = axis.dilation * pair.i - axis.pad + 100 * axis.stride;
        const auto [entry, added] = groups.insert({{group.lag, start % axis.stride}, index});
        CHECK(entry->second == index, describe(axis, size));
      }
      ++index;
    }
    CHECK(static_cast<int>(groups.size()) == index, describe(axis, size));
  });
}

int main() { return check::run_tests(); }
