#pragma once

#include <algorithm>
#include <cstdint>

#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// The most positions that may be summed in registers at a time.
constexpr std::int64_t kMaxListed = 64;

/// The lines first + step·u of [first, first + step·count) that lie in `range`.
inline void clip(std::int64_t& first, std::int64_t& count, std::int64_t step, const Range& range) {
  const auto lines_before = [&](std::int64_t limit) {
    const std::int64_t lines = step == 1 ? limit - first : (limit - first + step - 1) / step;
    return std::clamp<std::int64_t>(lines, 0, count);
  };
  const std::int64_t skip = lines_before(range.begin);
  count = lines_before(range.end) - skip;
  first += step * skip;
}

/// Lists the positions of a slot inside a box, in panel order, as lists of runs of `listed` ≤ kMaxListed positions, the
/// last ones of each weight of fewer: emit(runs, run_count, weight).
template <class Emit>
void for_each_run_list(const Plan& plan, const Slot& slot, const Box& box, std::int64_t listed, const Emit& emit) {
  Run runs[kMaxListed];
  std::int64_t used = 0, held = 0, weight = 0;
  const auto emit_held = [&] {
    if (used > 0) emit(runs, used, weight);
    used = held = 0;
  };
  const auto add = [&](Run run) {
    for (std::int64_t left = run.count; left > 0; left -= run.count) {
      run.count = std::min(left, listed - held);
      runs[used++] = run;
      run.first += run.count * run.step;
      held += run.count;
      if (held == listed) emit_held();
    }
  };
  const std::int64_t images = box.images.size(), across = box.packed_columns.size();
  for (std::int64_t i = slot.rectangles.begin; i < slot.rectangles.end; ++i) {
    Rectangle r = plan.rectangles[static_cast<std::size_t>(i)];
    clip(r.row, r.rows, r.row_step, box.rows);
    clip(r.column, r.columns, r.column_step, box.columns);
    if (r.rows == 0 || r.columns == 0) continue;
    if (r.weight != weight) emit_held();
    weight = r.weight;
    const bool dense_row = r.column_step == 1, dense = dense_row && r.row_step == 1 && r.columns == across;
    const std::int64_t down = r.row_step * across * images, first_row = r.row - box.packed_rows.begin;
    const std::int64_t first_column = r.column - box.packed_columns.begin;
    if (!dense && r.rows > (dense_row ? r.columns * images : std::max(r.columns, images))) {  // down is longer
      for (std::int64_t u = 0; u < r.columns * images; ++u) {
        const std::int64_t column = first_column + u / images * r.column_step;
        add({(first_row * across + column) * images + u % images, r.rows, down});
      }
      continue;
    }
    for (std::int64_t v = 0; v < (dense ? 1 : r.rows); ++v) {
      const std::int64_t first = (first_row + v * r.row_step) * across + first_column;
      if (dense_row) {
        add({first * images, (dense ? r.rows : 1) * r.columns * images, 1});
      } else if (images == 1) {
        add({first, r.columns, r.column_step});
      } else {
        for (std::int64_t u = 0; u < r.columns; ++u) add({(first + u * r.column_step) * images, images, 1});
      }
    }
  }
  emit_held();
}

}  // namespace eigendamage::cpu
