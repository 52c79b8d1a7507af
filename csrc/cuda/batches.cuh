#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "combine.cuh"
#include "gram.h"
#include "gram_operands.cuh"

namespace eigendamage::cuda {

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class Item>
std::int64_t count(const std::vector<Item>& list) {
  return static_cast<std::int64_t>(list.size());
}

constexpr std::int64_t kLeastStages = 8;  ///< of a part: fewer take less time than writing the part down
constexpr std::int64_t kWaves = 4;        ///< of blocks, where they are of different lengths

/// The slots of some groups of a plan, and the parts their sums are split into.
class Batch {
 public:
  Batch(const GramProblem& p, const RowTiling& tiling, const Range& groups, bool first, std::int64_t blocks_at_a_time,
        std::int64_t most_parts)
      : slots_{p.plan.groups[static_cast<std::size_t>(groups.begin)].slots.begin,
               p.plan.groups[static_cast<std::size_t>(groups.end - 1)].slots.end} {
    for (std::int64_t g = groups.begin; g < groups.end; ++g) {
      const LagGroup& group = p.plan.groups[static_cast<std::size_t>(g)];
      for (std::int64_t s = group.slots.begin; s < group.slots.end; ++s) {
        walks.push_back(walk(p, group, p.plan.slots[static_cast<std::size_t>(s)]));
      }
    }
    split(p.x.batch, tiling.pairs, blocks_at_a_time, most_parts);
    list_blocks(p, tiling, first);
    pairs_at_a_time = std::clamp<std::int64_t>(most_parts / std::max<std::int64_t>(1, count(parts)), 1, tiling.pairs);
  }

  std::vector<Walk> walks;
  std::vector<Part> parts;
  std::vector<BlockTerms> blocks;  ///< of every k1 and k2
  std::vector<std::int32_t> terms;
  bool any_block = false;        ///< of this batch
  std::int64_t pairs_at_a_time;  ///< whose parts are most_parts at most

 private:
  static Walk walk(const GramProblem& p, const LagGroup& group, const Slot& slot) {
    const Rectangle& r = p.plan.rectangles[static_cast<std::size_t>(slot.rectangles.begin)];
    Walk walk{r.row, r.rows, r.row_step, r.column, r.columns, r.column_step, group.down, group.right, 0, 0};
    if (p.patches) {
      const ConvAxis &v = p.patches->vertical, &h = p.patches->horizontal;
      walk.row = r.row * v.stride - v.pad, walk.row_step = r.row_step * v.stride;
      walk.column = r.column * h.stride - h.pad, walk.column_step = r.column_step * h.stride;
    }
    return walk;
  }

  /// Parts of equal length, as far as they are not remainders: of one slot as many as run at a time, so that they end
  /// together. Parts of the same images follow one another, whose pixels are then in the cache.
  void split(std::int64_t images, std::int64_t pairs, std::int64_t blocks_at_a_time, std::int64_t most_parts) {
    std::vector<std::int64_t> stages;
    std::int64_t all = 0;
    for (const Walk& walk : walks) {
      stages.push_back(ceil_div(images * walk.rows * walk.columns, kDepth));
      all += stages.back();
    }
    const std::int64_t wanted = blocks_at_a_time * (count(walks) == 1 ? 1 : kWaves);
    const std::int64_t fair = ceil_div(all, std::max<std::int64_t>(1, wanted / std::max<std::int64_t>(1, pairs)));
    // Of `longest` or more, slots that are rounded up take no more than most_parts together.
    const std::int64_t spare = std::max<std::int64_t>(1, most_parts - count(walks));
    const std::int64_t longest = std::max({kLeastStages, fair, ceil_div(all, spare)});
    std::int32_t first = 0;
    for (std::size_t i = 0; i < walks.size(); ++i) {
      walks[i].splits = static_cast<std::int32_t>(std::max<std::int64_t>(1, ceil_div(stages[i], longest)));
      walks[i].first_partial = first;
      first += walks[i].splits;
      for (std::int32_t s = 0; s < walks[i].splits; ++s) parts.push_back({static_cast<std::int32_t>(i), s});
    }
    std::stable_sort(parts.begin(), parts.end(), [this](const Part& a, const Part& b) {
      const auto ends = [this](const Part& part) { return walks[static_cast<std::size_t>(part.walk)].splits; };
      return (2 * a.split + 1LL) * ends(b) < (2 * b.split + 1LL) * ends(a);
    });
  }

  /// The blocks that the slots add up to; those of none are the first batch's.
  void list_blocks(const GramProblem& p, const RowTiling& tiling, bool first) {
    const std::int64_t kernel = p.plan.offsets;
    for (std::int64_t k1 = 0; k1 < kernel; ++k1) {
      for (std::int64_t k2 = 0; k2 < kernel; ++k2) {
        const Range& block = p.plan.blocks[static_cast<std::size_t>(k1 * kernel + k2)];
        const std::int64_t slot = block.size() > 0 ? p.plan.terms[static_cast<std::size_t>(block.begin)] : -1;
        const bool mirrored = tiling.tiles == 1 && k2 < k1;
        if (mirrored || (slot < 0 ? !first : slot < slots_.begin || slot >= slots_.end)) {
          blocks.push_back({0, -1});
          continue;
        }
        BlockTerms list{static_cast<std::int32_t>(terms.size()), 0};
        for (std::int64_t t = block.begin; t < block.end; ++t) {
          terms.push_back(static_cast<std::int32_t>(p.plan.terms[static_cast<std::size_t>(t)] - slots_.begin));
        }
        list.end = static_cast<std::int32_t>(terms.size());
        blocks.push_back(list);
        any_block = true;
      }
    }
  }

  Range slots_;
};

/// All slots that some pair of tiles needs, as many groups of lags at a time as have most_parts parts.
inline std::vector<Batch> make_batches(const GramProblem& p, const RowTiling& tiling, std::int64_t blocks_at_a_time,
                                       std::int64_t most_parts) {
  const auto slots = [&](std::int64_t g) { return p.plan.groups[static_cast<std::size_t>(g)].slots; };
  const std::int64_t groups = count(p.plan.groups), begin = tiling.tiles > 1 ? 0 : p.plan.zero_lag.begin;
  std::vector<Batch> batches;
  for (std::int64_t first = begin, end = begin; first < groups; first = end) {
    do ++end;
    while (end < groups && slots(end).end - slots(first).begin <= most_parts);
    batches.emplace_back(p, tiling, Range{first, end}, first == begin, blocks_at_a_time, most_parts);
  }
  return batches;
}

}  // namespace eigendamage::cuda
