// A block of gram_kernel owns a pair of tiles of 64 rows and a part of the positions of one lag; of combine_kernel, some
// rows of one block of the output. A thread owns a 32nd of a warp's 32 × 32 sums; of combine_kernel, one entry.
// Bound by the matrix units where there are many lags or rows, else by reading x, once for each pair of tiles.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "batches.cuh"
#include "gram.cuh"
#include "gram.h"
#include "gram_dense.cuh"
#include "table.cuh"

namespace eigendamage::cuda {
namespace {

/// Whether the device has units that four warps use together, and the build code for them.
bool has_warpgroup_units() {
#if defined(__CUDACC__) && !defined(EIGENDAMAGE_SM90A)
  return false;
#else
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
#endif
}

/// The one walk over all pixels of all images, and none other.
bool is_of_whole_images(const GramProblem& p) {
  return !p.patches && p.plan.slots.size() == 1 && p.plan.offsets == 1 && p.plan.rectangles[0].rows == p.x.height &&
         p.plan.rectangles[0].columns == p.x.width;
}

template <class Element>
struct Choice {
  void (*kernel)(Gram);
  std::size_t shared_bytes;

  template <bool patches, Factor a, Factor b>
  static Choice warps() {
    return {gram_kernel<Element, patches, a, b>, sizeof(typename GramBlock<Element, patches, a, b>::Shared)};
  }
  template <Factor factor, bool weighted>
  static Choice dense() {
    return {dense_gram_kernel<Element, factor, weighted>,
            sizeof(typename DenseGramBlock<Element, factor, weighted>::Shared)};
  }
  template <Factor factor>
  static Choice dense(bool weighted) {
    return weighted ? dense<factor, true>() : dense<factor, false>();
  }
};

/// The kernel for the factors of products that x makes. Halves times m have more bits than the units heed.
template <class Element, bool patches>
Choice<Element> kernel_for(bool dense, bool weighted, bool tf32) {
  using enum Factor;
  using Choose = Choice<Element>;
  if constexpr (std::is_same_v<Element, double>) {
    return Choose::template warps<patches, kExact, kExact>();
  } else if constexpr (std::is_same_v<Element, float>) {
    if (dense) return tf32 ? Choose::template dense<kRounded>(weighted) : Choose::template dense<kSplit>(weighted);
    return tf32 ? Choose::template warps<patches, kRounded, kRounded>()
                : Choose::template warps<patches, kSplit, kSplit>();
  } else {
    if (dense && !weighted) return Choose::template dense<kExact, false>();  // split, they take too many registers
    return weighted ? Choose::template warps<false, kSplit, kExact>()
                    : Choose::template warps<patches, kExact, kExact>();
  }
}

template <class Element>
Choice<Element> kernel_for(const GramProblem& p, const Execution& run) {
  const bool weighted = !p.row_weights.empty();
  if (p.patches) return kernel_for<Element, true>(false, weighted, run.tf32);
  const bool dense = is_of_whole_images(p) && is_dense(p.x, sizeof(Element), weighted) && has_warpgroup_units();
  return kernel_for<Element, false>(dense, weighted, run.tf32);
}

/// Where neighbours lie closer in memory: rows, or positions.
bool rows_first(const GramProblem& p) {
  const ImageView& x = p.x;
  const std::int64_t along_positions = x.width > 1 ? x.width_stride : x.height > 1 ? x.height_stride : x.batch_stride;
  return !p.patches && x.channel_stride < along_positions;
}

Gram describe(const GramProblem& p, const RowTiling& tiling) {
  Gram gram{p.x, tiling};
  if (p.patches) {
    const ConvAxis &v = p.patches->vertical, &h = p.patches->horizontal;
    gram.kernel_height = v.kernel, gram.kernel_width = h.kernel;
    gram.row_dilation = v.dilation, gram.column_dilation = h.dilation;
  }
  gram.bias = p.bias;
  gram.rows_first = rows_first(p);
  return gram;
}

/// Blocks as large as half of the shared memory that every kernel may have allows, or smaller if there were few.
template <class T>
void launch_combine(Combine<T> c, std::int64_t multiprocessors, const Execution& run) {
  constexpr std::int64_t kTileBytes = 24 << 10;
  const auto tile_bytes = [&] { return std::int64_t{c.rows} * c.kernel_rows * c.stride() * sizeof(T); };
  const auto blocks = [&] { return 2 * std::int64_t{c.pairs} * (c.row_steps() + (c.bias ? 1 : 0)) * c.kernel_steps(); };
  c.rows = 8, c.kernel_rows = c.offsets;
  while ((tile_bytes() > kTileBytes || blocks() < 8 * multiprocessors) && (c.rows > 1 || c.kernel_rows > 1)) {
    if (c.rows > 1) {
      c.rows /= 2;
    } else {
      c.kernel_rows = (c.kernel_rows + 1) / 2;
    }
  }
  const auto bytes = sizeof(typename Combiner<T>::Shared) + static_cast<std::size_t>(tile_bytes());
  launch(combine_kernel<T>, {static_cast<unsigned>(blocks()), 32 * kCombineWarps, bytes}, run, c);
}

template <class Element>
void launch_batch(const GramProblem& p, const Batch& batch, Gram gram, Combine<Sum<Element>> combine,
                  std::int64_t multiprocessors, const Execution& run) {
  const auto [kernel, shared_bytes] = kernel_for<Element>(p, run);
  gram.parts = combine.parts = static_cast<std::uint32_t>(count(batch.parts));
  combine.split_lanes = gram.parts >= kCombineWarps * batch.walks.size() ? kCombineWarps : 1;
  for (std::int64_t pair = 0; pair < gram.tiling.pairs; pair += batch.pairs_at_a_time) {
    gram.first_pair = combine.first_pair = pair;
    gram.pairs = combine.pairs = static_cast<std::uint32_t>(std::min(batch.pairs_at_a_time, gram.tiling.pairs - pair));
    if (gram.parts > 0) launch(kernel, {gram.pairs * gram.parts, kGramThreads, shared_bytes}, run, gram);
    if (batch.any_block) launch_combine(combine, multiprocessors, run);
  }
}

template <class Element>
void sum_grams_of(const GramProblem& p, const Execution& run, const Schedule& schedule) {
  using T = Sum<Element>;
  constexpr std::int64_t kPartialBytes = kTile * kTile * sizeof(T);
  const std::int64_t rows = p.patches ? p.out.size - p.bias : p.x.channels / p.out.groups;
  const RowTiling tiling(p.out.groups, rows);
  const std::int64_t multiprocessors =
      schedule.multiprocessors > 0 ? schedule.multiprocessors : device_attribute(cudaDevAttrMultiProcessorCount);
  const std::int64_t most_parts = std::max<std::int64_t>(1, schedule.partial_bytes / kPartialBytes);
  const std::vector<Batch> batches = make_batches(p, tiling, multiprocessors * kGramBlocks<T>, most_parts);

  Table table;
  const std::int64_t row_weights = table.add(p.row_weights), column_weights = table.add(p.column_weights);
  std::vector<std::int64_t> begins;
  std::int64_t partials = 0;
  for (const Batch& batch : batches) {
    for (const std::int64_t begin :
         {table.add(batch.walks), table.add(batch.parts), table.add(batch.blocks), table.add(batch.terms)}) {
      begins.push_back(begin);
    }
    partials = std::max(partials, count(batch.parts) * batch.pairs_at_a_time);
  }
  auto* const lists = static_cast<unsigned char*>((*run.scratch)(table.bytes()));
  table.send(lists, run);

  Gram gram = describe(p, tiling);
  gram.partials = partials > 0 ? (*run.scratch)(partials * kPartialBytes) : nullptr;
  if (!p.row_weights.empty()) {
    gram.row_weights = reinterpret_cast<const float*>(lists + row_weights);
    gram.column_weights = reinterpret_cast<const float*>(lists + column_weights);
  }
  Combine<T> combine{tiling};
  combine.offsets = static_cast<int>(p.plan.offsets);
  combine.partials = static_cast<const T*>(gram.partials);
  combine.out = p.out;
  combine.update = p.update;
  combine.bias = p.bias;
  combine.count = static_cast<double>(p.x.batch * p.plan.outputs);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    gram.walks = combine.walks = reinterpret_cast<const Walk*>(lists + begins[4 * i]);
    gram.part_list = reinterpret_cast<const Part*>(lists + begins[4 * i + 1]);
    combine.blocks = reinterpret_cast<const BlockTerms*>(lists + begins[4 * i + 2]);
    combine.terms = reinterpret_cast<const std::int32_t*>(lists + begins[4 * i + 3]);
    launch_batch<Element>(p, batches[i], gram, combine, multiprocessors, run);
  }
}

}  // namespace

void sum_grams(const GramProblem& problem, const Execution& run, const Schedule& schedule) {
  dispatch(problem.x.type, [&](auto element) { sum_grams_of<decltype(element)>(problem, run, schedule); });
}

}  // namespace eigendamage::cuda
