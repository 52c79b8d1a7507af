#pragma once

#include <cstdint>
#include <vector>

#include "../views.h"

namespace eigendamage {

/// The lines first + step·u, 0 ≤ u < count, of one image axis.
struct Segment {
  std::int64_t first, step, count;
};

/// Kernel offsets i and j. Over all outputs t at which both read inside the image, offset i reads exactly the lines of the
/// segments [begin, end) of its group, each once.
struct OffsetPair {
  std::int64_t i, j;
  std::int64_t begin, end;
};

/// The offset pairs of one axis that read the same pairs of lines: `lag` = dilation·(j − i) apart and in the same residue
/// class modulo the stride. They differ only in how far their windows reach, so the windows' ends cut the class into
/// disjoint segments, in ascending order, of which every window is a run.
struct AxisGroup {
  std::int64_t lag;
  std::vector<Segment> segments;
  std::vector<OffsetPair> pairs;
};

/// All kernel² ordered offset pairs of an axis over an image of `size` lines; pairs that never meet have begin = end.
std::vector<AxisGroup> axis_groups(const ConvAxis& axis, std::int64_t size);

/// The same of a stride of 1, but that the segments of a lag are all lines from which it stays inside the image, whether a
/// window reaches them or not.
std::vector<AxisGroup> whole_axis_groups(const ConvAxis& axis, std::int64_t size);

}  // namespace eigendamage
