#include "spectral.h"

#include <algorithm>

#include "lags.h"

namespace eigendamage {
namespace {

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

/// The longest segment of a lag.
std::int64_t core(const AxisGroup& group) {
  const auto shorter = [](const Segment& a, const Segment& b) { return a.count < b.count; };
  return std::max_element(group.segments.begin(), group.segments.end(), shorter) - group.segments.begin();
}

bool inside(const OffsetPair& pair, std::int64_t segment) { return pair.begin <= segment && segment < pair.end; }

/// Of one axis, sums over its lags (positions, those of the core) and its pairs of offsets that meet (segments of their lag,
/// segments of their window).
struct AxisWork {
  double lags, positions, core, pairs, segments, covered;
};

std::optional<AxisWork> axis_work(const ConvAxis& axis, std::int64_t size) {
  if (axis.stride != 1 || axis.dilation * (axis.kernel - 1) >= size) return {};
  AxisWork work{};
  for (const AxisGroup& group : whole_axis_groups(axis, size)) {
    work.lags += 1;
    for (const Segment& segment : group.segments) work.positions += static_cast<double>(segment.count);
    work.core += static_cast<double>(group.segments[static_cast<std::size_t>(core(group))].count);
    for (const OffsetPair& pair : group.pairs) {
      if (pair.begin == pair.end) continue;
      if (!inside(pair, core(group))) return {};
      work.pairs += 1;
      work.segments += static_cast<double>(group.segments.size());
      work.covered += static_cast<double>(pair.end - pair.begin);
    }
  }
  return work;
}

class Planner {
 public:
  Planner(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) : geometry_(geometry) {
    Plan& plan = spectral_.plan;
    plan = empty_plan(geometry, height, width, geometry.vertical.kernel * geometry.horizontal.kernel);
    spectral_.rows = height + plan.reach_down;
    spectral_.columns = width + plan.reach_right;
  }

  SpectralPlan make() {
    const std::vector<AxisGroup> vertical = whole_axis_groups(geometry_.vertical, spectral_.plan.height);
    const std::vector<AxisGroup> horizontal = whole_axis_groups(geometry_.horizontal, spectral_.plan.width);
    spectral_.lines_across = border_lines(vertical);
    spectral_.lines_down = border_lines(horizontal);
    for (std::int64_t g = 0; g < count(vertical) * count(horizontal); ++g) add_slot({});
    add_lags(spectral_.plan, vertical, horizontal, [&](const AxisGroup& v, const AxisGroup& h) { add_group(v, h); });
    return std::move(spectral_);
  }

 private:
  /// All that a segment outside the core and its lag touch.
  static std::vector<std::int64_t> border_lines(const std::vector<AxisGroup>& groups) {
    std::vector<std::int64_t> lines;
    for (const AxisGroup& group : groups) {
      for (std::int64_t s = 0; s < count(group.segments); ++s) {
        if (s == core(group)) continue;
        const Segment& segment = group.segments[static_cast<std::size_t>(s)];
        for (std::int64_t line = segment.first; line < segment.first + segment.count; ++line) {
          lines.push_back(line);
          lines.push_back(line + group.lag);
        }
      }
    }
    std::sort(lines.begin(), lines.end());
    lines.erase(std::unique(lines.begin(), lines.end()), lines.end());
    return lines;
  }

  static std::int64_t place(const std::vector<std::int64_t>& lines, std::int64_t line) {
    return std::lower_bound(lines.begin(), lines.end(), line) - lines.begin();
  }

  std::int64_t across(std::int64_t row, std::int64_t column) const {
    return place(spectral_.lines_across, row) * spectral_.plan.width + column;
  }

  std::int64_t down(std::int64_t row, std::int64_t column) const {
    return count(spectral_.lines_across) * spectral_.plan.width +
           place(spectral_.lines_down, column) * spectral_.plan.height + row;
  }

  std::vector<BorderRun> runs(const AxisGroup& v, std::int64_t sv, const AxisGroup& h, std::int64_t sh) const {
    const Segment &rows = v.segments[static_cast<std::size_t>(sv)], &columns = h.segments[static_cast<std::size_t>(sh)];
    std::vector<BorderRun> list;
    if (sv != core(v)) {
      for (std::int64_t row = rows.first; row < rows.first + rows.count; ++row) {
        list.push_back({across(row, columns.first), across(row + v.lag, columns.first + h.lag), columns.count});
      }
    } else {
      for (std::int64_t column = columns.first; column < columns.first + columns.count; ++column) {
        list.push_back({down(rows.first, column), down(rows.first + v.lag, column + h.lag), rows.count});
      }
    }
    return list;
  }

  std::int64_t add_slot(std::vector<BorderRun> runs) {
    spectral_.plan.slots.push_back({{0, 0}});
    spectral_.runs.push_back(std::move(runs));
    return count(spectral_.plan.slots) - 1;
  }

  void add_group(const AxisGroup& v, const AxisGroup& h) {
    Plan& plan = spectral_.plan;
    const std::int64_t all = count(plan.groups), first = count(plan.slots), across = count(h.segments);
    std::vector<std::int64_t> slot(static_cast<std::size_t>(count(v.segments) * across), -1);
    for (std::int64_t s = 0; s < count(slot); ++s) {
      if (s / across == core(v) && s % across == core(h)) continue;
      slot[static_cast<std::size_t>(s)] = add_slot(runs(v, s / across, h, s % across));
    }
    for (const OffsetPair& pv : v.pairs) {
      for (const OffsetPair& ph : h.pairs) {
        Range& block = plan.blocks[static_cast<std::size_t>((pv.i * geometry_.horizontal.kernel + ph.i) * plan.offsets +
                                                            pv.j * geometry_.horizontal.kernel + ph.j)];
        block.begin = count(plan.terms);
        if (pv.begin < pv.end && ph.begin < ph.end) {
          plan.terms.push_back(all);
          for (std::int64_t s = 0; s < count(slot); ++s) {
            if (inside(pv, s / across) && inside(ph, s % across)) continue;
            plan.terms.push_back(slot[static_cast<std::size_t>(s)]);
          }
        }
        block.end = count(plan.terms);
      }
    }
    plan.groups.push_back({v.lag, h.lag, {first, count(plan.slots)}});
  }

  const ConvGeometry geometry_;
  SpectralPlan spectral_{};
};

}  // namespace

std::int64_t SpectralPlan::border_positions() const {
  return count(lines_across) * plan.width + count(lines_down) * plan.height;
}

std::optional<SpectralWork> spectral_work(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) {
  const std::optional<AxisWork> v = axis_work(geometry.vertical, height), h = axis_work(geometry.horizontal, width);
  if (!v || !h) return {};
  return SpectralWork{v->positions * h->positions - v->core * h->core,
                      v->pairs * h->pairs + v->segments * h->segments - v->covered * h->covered, v->lags * h->lags};
}

SpectralPlan spectral_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) {
  return Planner(geometry, height, width).make();
}

}  // namespace eigendamage
