// A block of gram_kernel owns a pair of tiles of 64 rows and a part of the positions of one lag; of combine_kernel, some
// rows of one block of the output. A thread owns a 32nd of a warp's 32 × 32 sums; of combine_kernel, one entry.
// Bound by the matrix units where there are many lags or rows, else by reading x, once for each pair of tiles.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "combine.cuh"
#include "gram.cuh"
#include "gram.h"
#include "table.cuh"

namespace eigendamage::cuda {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

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
  }

  std::vector<Walk> walks;
  std::vector<Part> parts;
  std::vector<BlockTerms> blocks;
  std::vector<std::int32_t> terms;

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
      for (std::int64_t k2 = tiling.tiles > 1 ? 0 : k1; k2 < kernel; ++k2) {
        const Range& block = p.plan.blocks[static_cast<std::size_t>(k1 * kernel + k2)];
        const std::int64_t slot = block.size() > 0 ? p.plan.terms[static_cast<std::size_t>(block.begin)] : -1;
        if (slot < 0 ? !first : slot < slots_.begin || slot >= slots_.end) continue;
        BlockTerms list{static_cast<std::int32_t>(k1), static_cast<std::int32_t>(k2),
                        static_cast<std::int32_t>(terms.size()), 0};
        for (std::int64_t t = block.begin; t < block.end; ++t) {
          terms.push_back(static_cast<std::int32_t>(p.plan.terms[static_cast<std::size_t>(t)] - slots_.begin));
        }
        list.end = static_cast<std::int32_t>(terms.size());
        blocks.push_back(list);
      }
    }
  }

  Range slots_;
};

/// The kernel for the factors of products that x makes.
template <class Element>
auto kernel_for(const GramProblem& p, const Execution& run) {
  using enum Factor;
  constexpr bool whole = std::is_same_v<Element, float>;
  const auto choose = [&]<Factor a, Factor b>() {
    return std::pair{p.patches ? gram_kernel<Element, true, a, b> : gram_kernel<Element, false, a, b>,
                     p.patches ? sizeof(typename GramBlock<Element, true, a, b>::Shared)
                               : sizeof(typename GramBlock<Element, false, a, b>::Shared)};
  };
  if constexpr (whole) {
    return run.tf32 ? choose.template operator()<kRounded, kRounded>() : choose.template operator()<kSplit, kSplit>();
  } else if constexpr (std::is_same_v<Element, double>) {
    return choose.template operator()<kExact, kExact>();
  } else {
    using Kernel = void (*)(Gram);
    if (p.row_weights.empty()) return choose.template operator()<kExact, kExact>();
    return std::pair{Kernel{gram_kernel<Element, false, kSplit, kExact>},
                     sizeof(typename GramBlock<Element, false, kSplit, kExact>::Shared)};
  }
}

/// Where neighbours lie closer in memory: rows, or positions.
bool rows_first(const GramProblem& p) {
  const ImageView& x = p.x;
  const std::int64_t along_positions = x.width > 1 ? x.width_stride : x.height > 1 ? x.height_stride : x.batch_stride;
  return !p.patches && x.channel_stride < along_positions;
}

template <class Element>
void sum_grams_of(const GramProblem& p, const Execution& run, const Schedule& schedule) {
  using T = Sum<Element>;
  const std::int64_t rows = p.patches ? p.out.size - p.bias : p.x.channels / p.out.groups;
  const RowTiling tiling(p.out.groups, rows);
  const std::int64_t multiprocessors =
      schedule.multiprocessors > 0 ? schedule.multiprocessors : device_attribute(cudaDevAttrMultiProcessorCount);
  constexpr std::int64_t kPartialBytes = kTile * kTile * sizeof(T);
  const std::int64_t most = std::max<std::int64_t>(1, schedule.partial_bytes / kPartialBytes);
  const auto [kernel, shared_bytes] = kernel_for<Element>(p, run);
  void* partials = nullptr;
  std::int64_t partials_held = 0;

  const auto slots = [&](std::int64_t g) { return p.plan.groups[static_cast<std::size_t>(g)].slots; };
  const std::int64_t groups = count(p.plan.groups), begin = tiling.tiles > 1 ? 0 : p.plan.zero_lag.begin;
  for (std::int64_t first = begin, end = begin; first < groups; first = end) {
    do ++end;
    while (end < groups && slots(end).end - slots(first).begin <= most);
    const Batch batch(p, tiling, {first, end}, first == begin, multiprocessors * kGramBlocks<T>, most);
    const std::int64_t parts = count(batch.parts);
    const std::int64_t pairs_at_a_time =
        std::clamp<std::int64_t>(most / std::max<std::int64_t>(1, parts), 1, tiling.pairs);

    Table table;
    const std::int64_t walks = table.add(batch.walks), part_list = table.add(batch.parts),
                       blocks = table.add(batch.blocks), terms = table.add(batch.terms),
                       row_weights = table.add(p.row_weights), column_weights = table.add(p.column_weights);
    auto* const sent = static_cast<unsigned char*>((*run.scratch)(std::max<std::int64_t>(1, table.bytes())));
    table.send(sent, run);
    if (parts * pairs_at_a_time > partials_held) {
      partials_held = parts * pairs_at_a_time;
      partials = (*run.scratch)(partials_held * kPartialBytes);
    }

    Gram gram{p.x, tiling, 0, 0, static_cast<std::uint32_t>(parts)};
    gram.walks = reinterpret_cast<const Walk*>(sent + walks);
    gram.part_list = reinterpret_cast<const Part*>(sent + part_list);
    if (!p.row_weights.empty()) {
      gram.row_weights = reinterpret_cast<const float*>(sent + row_weights);
      gram.column_weights = reinterpret_cast<const float*>(sent + column_weights);
    }
    if (p.patches) {
      const ConvAxis &v = p.patches->vertical, &h = p.patches->horizontal;
      gram.kernel_height = v.kernel, gram.kernel_width = h.kernel;
      gram.row_dilation = v.dilation, gram.column_dilation = h.dilation;
    }
    gram.bias = p.bias;
    gram.rows_first = rows_first(p);
    gram.partials = partials;

    Combine<T> combine{tiling, 0, 0, gram.parts, gram.walks};
    combine.blocks = reinterpret_cast<const BlockTerms*>(sent + blocks);
    combine.terms = reinterpret_cast<const std::int32_t*>(sent + terms);
    combine.block_count = static_cast<std::uint32_t>(count(batch.blocks));
    combine.offsets = p.plan.offsets;
    combine.partials = static_cast<const T*>(partials);
    combine.out = p.out;
    combine.update = p.update;
    combine.bias = p.bias;
    combine.count = static_cast<double>(p.x.batch * p.plan.outputs);
    combine.split_lanes = parts >= 8 * count(batch.walks) ? kCombineWarps : 1;
    const std::int64_t row_steps = ceil_div(Combiner<T>::kRows * combine.split_lanes, kCombineWarps);

    for (std::int64_t pair = 0; pair < tiling.pairs; pair += pairs_at_a_time) {
      gram.first_pair = combine.first_pair = pair;
      gram.pairs = combine.pairs = static_cast<std::uint32_t>(std::min(pairs_at_a_time, tiling.pairs - pair));
      if (parts > 0) {
        launch(kernel, {gram.pairs * gram.parts, kGramThreads, shared_bytes}, run, gram);
      }
      if (combine.block_count > 0) {
        const std::int64_t combine_blocks = gram.pairs * combine.block_count * row_steps * 2;
        launch(combine_kernel<T>,
               {static_cast<unsigned>(combine_blocks), 32 * kCombineWarps, 32 * kCombineWarps * sizeof(double)}, run,
               combine);
      }
    }
  }
}

}  // namespace

void sum_grams(const GramProblem& problem, const Execution& run, const Schedule& schedule) {
  dispatch(problem.x.type, [&](auto element) { sum_grams_of<decltype(element)>(problem, run, schedule); });
}

}  // namespace eigendamage::cuda
