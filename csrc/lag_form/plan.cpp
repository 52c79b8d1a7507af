#include "plan.h"

#include <algorithm>
#include <map>

namespace eigendamage {
namespace {

template <class Item>
std::int64_t count(const std::vector<Item>& items) {
  return static_cast<std::int64_t>(items.size());
}

Rectangle product(const Segment& vertical, const Segment& horizontal, std::int64_t weight) {
  return {vertical.first, vertical.count, vertical.step, horizontal.first, horizontal.count, horizontal.step, weight};
}

/// How many offset pairs of the group cover each of its segments.
std::vector<std::int64_t> multiplicities(const AxisGroup& group) {
  std::vector<std::int64_t> covers(group.segments.size(), 0);
  for (const OffsetPair& pair : group.pairs) {
    for (std::int64_t s = pair.begin; s < pair.end; ++s) ++covers[static_cast<std::size_t>(s)];
  }
  return covers;
}

/// The rectangles of a 2-D group, one slot each, and the blocks of its offset pairs.
void add_group(Plan& plan, const AxisGroup& v, const AxisGroup& h, std::int64_t kernel_width) {
  LagGroup group{v.lag, h.lag, {count(plan.slots), 0}};
  for (const Segment& sv : v.segments) {
    for (const Segment& sh : h.segments) {
      plan.slots.push_back({{count(plan.rectangles), count(plan.rectangles) + 1}});
      plan.rectangles.push_back(product(sv, sh, 1));
    }
  }
  const std::int64_t across = count(h.segments);
  for (const OffsetPair& pv : v.pairs) {
    for (const OffsetPair& ph : h.pairs) {
      Range& block = plan.blocks[static_cast<std::size_t>((pv.i * kernel_width + ph.i) * plan.offsets +
                                                          pv.j * kernel_width + ph.j)];
      block.begin = count(plan.terms);
      for (std::int64_t sv = pv.begin; sv < pv.end; ++sv) {
        for (std::int64_t sh = ph.begin; sh < ph.end; ++sh) {
          plan.terms.push_back(group.slots.begin + sv * across + sh);
        }
      }
      block.end = count(plan.terms);
    }
  }
  group.slots.end = count(plan.slots);
  plan.groups.push_back(group);
}

}  // namespace

Plan empty_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width, std::int64_t offsets) {
  Plan plan{};
  plan.height = height;
  plan.width = width;
  plan.offsets = offsets;
  plan.blocks.resize(static_cast<std::size_t>(offsets * offsets));
  plan.outputs = geometry.vertical.output * geometry.horizontal.output;
  if (offsets > 1) {
    plan.reach_down = geometry.vertical.dilation * (geometry.vertical.kernel - 1);
    plan.reach_right = geometry.horizontal.dilation * (geometry.horizontal.kernel - 1);
  }
  return plan;
}

Plan dense_plan(std::int64_t height, std::int64_t width) {
  return patch_plan({{1, 1, 0, 1, height}, {1, 1, 0, 1, width}}, height, width);
}

Plan channel_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) {
  std::map<std::int64_t, std::vector<Rectangle>> by_multiplicity;
  const std::vector<AxisGroup> horizontal = axis_groups(geometry.horizontal, width);
  for (const AxisGroup& v : axis_groups(geometry.vertical, height)) {
    if (v.lag != 0) continue;
    const std::vector<std::int64_t> down = multiplicities(v);
    for (const AxisGroup& h : horizontal) {
      if (h.lag != 0) continue;
      const std::vector<std::int64_t> right = multiplicities(h);
      for (std::size_t i = 0; i < down.size(); ++i) {
        for (std::size_t j = 0; j < right.size(); ++j) {
          const std::int64_t multiplicity = down[i] * right[j];
          by_multiplicity[multiplicity].push_back(product(v.segments[i], h.segments[j], multiplicity));
        }
      }
    }
  }
  Plan plan = empty_plan(geometry, height, width, 1);
  for (const auto& [multiplicity, rectangles] : by_multiplicity) {
    plan.rectangles.insert(plan.rectangles.end(), rectangles.begin(), rectangles.end());
  }
  plan.slots.push_back({{0, count(plan.rectangles)}});
  plan.terms.push_back(0);
  plan.blocks[0] = {0, 1};
  plan.groups.push_back({0, 0, {0, 1}});
  plan.zero_lag = {0, 1};
  return plan;
}

PixelLine line_up(const Plan& plan) {
  PixelLine line{plan, {}};
  line.plan.rectangles.clear();
  for (const Rectangle& r : plan.rectangles) {
    const std::int64_t first = count(line.pixels);
    for (std::int64_t v = 0; v < r.rows; ++v) {
      for (std::int64_t u = 0; u < r.columns; ++u)
        line.pixels.push_back((r.row + v * r.row_step) * plan.width + r.column + u * r.column_step);
    }
    if (!line.plan.rectangles.empty() && line.plan.rectangles.back().weight == r.weight) {
      line.plan.rectangles.back().columns += r.rows * r.columns;
    } else {
      line.plan.rectangles.push_back({0, 1, 1, first, r.rows * r.columns, 1, r.weight});
    }
  }
  line.plan.height = 1;
  line.plan.width = count(line.pixels);
  line.plan.slots.front().rectangles = {0, count(line.plan.rectangles)};
  return line;
}

Plan patch_plan(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) {
  Plan plan = empty_plan(geometry, height, width, geometry.vertical.kernel * geometry.horizontal.kernel);
  add_lags(plan, axis_groups(geometry.vertical, height), axis_groups(geometry.horizontal, width),
           [&](const AxisGroup& v, const AxisGroup& h) { add_group(plan, v, h, geometry.horizontal.kernel); });
  return plan;
}

LagWork lag_work(const ConvGeometry& geometry, std::int64_t height, std::int64_t width) {
  const auto axis_work = [](const ConvAxis& axis, std::int64_t size) {
    LagWork work{0, 0, 0};
    for (const AxisGroup& group : axis_groups(axis, size)) {
      for (const Segment& segment : group.segments) work.positions += static_cast<double>(segment.count);
      work.slots += static_cast<double>(group.segments.size());
      for (const OffsetPair& pair : group.pairs) work.terms += static_cast<double>(pair.end - pair.begin);
    }
    return work;
  };
  const LagWork v = axis_work(geometry.vertical, height), h = axis_work(geometry.horizontal, width);
  return {v.positions * h.positions, v.slots * h.slots, v.terms * h.terms};
}

ImageView reached_by(ImageView x, const ConvGeometry& geometry) {
  const auto end = [](const ConvAxis& axis, std::int64_t size) {
    return std::min(size, axis.stride * (axis.output - 1) + axis.dilation * (axis.kernel - 1) - axis.pad + 1);
  };
  if (geometry.vertical.output > 0) x.height = std::max<std::int64_t>(0, end(geometry.vertical, x.height));
  if (geometry.horizontal.output > 0) x.width = std::max<std::int64_t>(0, end(geometry.horizontal, x.width));
  return x;
}

ImageView read_by(ImageView x, ConvGeometry& geometry) {
  const auto keep = [](ConvAxis& axis, std::int64_t& size, std::int64_t& stride) {
    if (axis.kernel > 1 || axis.pad > 0 || axis.output - 1 > (size - 1) / axis.stride) return;
    size = axis.output;
    if (size > 1) stride *= axis.stride;
    axis = {1, 1, 0, 1, size};
  };
  keep(geometry.vertical, x.height, x.height_stride);
  keep(geometry.horizontal, x.width, x.width_stride);
  return x;
}

}  // namespace eigendamage
