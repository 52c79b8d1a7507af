#include "lags.h"

#include <algorithm>
#include <map>
#include <utility>

namespace eigendamage {
namespace {

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b < 0); }
std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return floor_div(a + b - 1, b); }

/// Lines of one residue class, residue + stride·u for lo ≤ u < hi.
struct Window {
  std::int64_t i, j, lo, hi;
};

Window window(const ConvAxis& axis, std::int64_t size, std::int64_t i, std::int64_t j) {
  const std::int64_t start = axis.dilation * i - axis.pad;  // the line that output 0 reads
  const std::int64_t origin = floor_div(start, axis.stride);
  const std::int64_t residue = start - origin * axis.stride;
  const std::int64_t lag = axis.dilation * (j - i);
  const std::int64_t first = std::max<std::int64_t>(0, -lag), last = std::min(size, size - lag);
  const std::int64_t lo = std::max(origin, ceil_div(first - residue, axis.stride));
  const std::int64_t hi = std::min(origin + axis.output, ceil_div(last - residue, axis.stride));
  return {i, j, lo, std::max(lo, hi)};
}

/// The segments cover the windows and `more`.
AxisGroup cut(std::int64_t lag, std::int64_t residue, std::int64_t stride, const std::vector<Window>& windows,
              const std::vector<Window>& more) {
  std::vector<Window> covered = windows;
  covered.insert(covered.end(), more.begin(), more.end());
  std::vector<std::int64_t> ends;
  for (const Window& w : covered) {
    if (w.lo == w.hi) continue;
    ends.push_back(w.lo);
    ends.push_back(w.hi);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());

  AxisGroup group{lag, {}, {}};
  std::map<std::int64_t, std::int64_t> segment_from, segment_to;  // by first line, by line after the last
  for (std::size_t e = 0; e + 1 < ends.size(); ++e) {
    const std::int64_t lo = ends[e], hi = ends[e + 1];
    const auto covers = [&](const Window& w) { return w.lo <= lo && hi <= w.hi; };
    if (std::none_of(covered.begin(), covered.end(), covers)) continue;
    const auto index = static_cast<std::int64_t>(group.segments.size());
    segment_from[lo] = index;
    segment_to[hi] = index + 1;
    group.segments.push_back({residue + stride * lo, stride, hi - lo});
  }
  for (const Window& w : windows) {
    const bool empty = w.lo == w.hi;
    group.pairs.push_back({w.i, w.j, empty ? 0 : segment_from[w.lo], empty ? 0 : segment_to[w.hi]});
  }
  return group;
}

std::vector<AxisGroup> groups_of(const ConvAxis& axis, std::int64_t size, bool whole) {
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<Window>> classes;
  for (std::int64_t i = 0; i < axis.kernel; ++i) {
    const std::int64_t start = axis.dilation * i - axis.pad;
    const std::int64_t residue = start - floor_div(start, axis.stride) * axis.stride;
    for (std::int64_t j = 0; j < axis.kernel; ++j) {
      classes[{axis.dilation * (j - i), residue}].push_back(window(axis, size, i, j));
    }
  }
  std::vector<AxisGroup> groups;
  for (const auto& [key, windows] : classes) {
    const auto [lag, residue] = key;
    std::vector<Window> all;
    if (whole) all.push_back({0, 0, std::max<std::int64_t>(0, -lag), std::min(size, size - lag)});
    groups.push_back(cut(lag, residue, axis.stride, windows, all));
  }
  return groups;
}

}  // namespace

std::vector<AxisGroup> axis_groups(const ConvAxis& axis, std::int64_t size) { return groups_of(axis, size, false); }

std::vector<AxisGroup> whole_axis_groups(const ConvAxis& axis, std::int64_t size) {
  return groups_of(axis, size, true);
}

}  // namespace eigendamage
