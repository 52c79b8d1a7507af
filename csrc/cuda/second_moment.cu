// Tiles: a block owns 64 × 64 weights and a split of the examples. A thread owns 4 × 8 of them: their gradient by one
// example, summed by matrix units, and the sum of its squares. Bound by matrix units, or by issuing what feeds them.
// Pairs: a warp owns the weights between an output and an input, a thread every 32nd position. Bound by the first cache.
// Weights: a thread owns one weight and a split of the examples, of any size. Bound by how long it takes.
#include <algorithm>
#include <cstdlib>

#include "moment_pairs.cuh"
#include "moment_tiles.cuh"
#include "second_moment.h"

namespace eigendamage::cuda {
namespace {

constexpr unsigned kWeightThreads = 128;
constexpr int kSumWidth = 32, kSumLanes = 16;  // threads of a block that adds up partial sums
constexpr std::int64_t kResident = 8;          // blocks of other kernels than tiles' that a multiprocessor has room for
constexpr std::int64_t kRowsInExample = 128;   // examples of one position that make an example of many

template <class Element>
__global__ void __launch_bounds__(kWeightThreads) moment_weights_kernel(const __grid_constant__ Moment m) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWeightThreads + threadIdx.x;
  const std::int64_t split = index / m.weights(), at = index % m.weights();
  if (split >= m.splits) return;
  const std::int64_t input = at % m.out.inputs, offset = at / m.out.inputs % m.offsets;
  const std::int64_t output = at / m.out.inputs / m.offsets;
  const std::int64_t first = m.first_example(split), last = m.first_example(split + 1);
  std::int64_t begin = first;
  do {
    const std::int64_t end = min(begin + m.examples_in_sum, last);
    enter(m, split, output, offset, input, plain_moment<Element>(m, output, offset, input, begin, end), begin > first);
    begin = end;
  } while (begin < last);
}

/// out from the partial sums: kSumLanes threads for each weight, each a share of the splits.
template <class T>
__global__ void __launch_bounds__(kSumWidth* kSumLanes) add_splits_kernel(const __grid_constant__ Moment m) {
  double* sums = shared_memory<double>();
  const int lane = static_cast<int>(threadIdx.x) / kSumWidth;
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kSumWidth + threadIdx.x % kSumWidth;
  double sum = 0;
  if (at < m.weights()) {
    const T* partials = static_cast<const T*>(m.partials) + at;
#pragma unroll 4
    for (std::int64_t split = lane; split < m.splits; split += kSumLanes) {
      sum += static_cast<double>(partials[split * m.weights()]);
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane > 0 || at >= m.weights()) return;
  for (int other = 1; other < kSumLanes; ++other) sum += sums[other * kSumWidth + static_cast<int>(threadIdx.x)];
  update_weight<T>(m, at / m.out.inputs / m.offsets, at / m.out.inputs % m.offsets, at % m.out.inputs, sum, false);
}

std::int64_t blocks_for(std::int64_t items, std::int64_t size) { return (items + size - 1) / size; }

dim3 grid_of(std::int64_t blocks) {
  constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
  if (blocks > kMost) throw std::invalid_argument("gradient_second_moment: too many weights for one launch");
  return dim3(static_cast<unsigned>(blocks));
}

/// Whether examples, weights, pixels and positions have 32-bit numbers, as tiles and pairs have them.
bool fits_ints(const Moment& m) {
  constexpr std::int64_t kMost = 1 << 28;
  bool fits = m.x.batch <= kMost && m.positions <= kMost && m.x.height <= kMost && m.x.width <= kMost &&
              m.out.outputs <= kMost && m.offsets * m.out.inputs <= kMost;
  for (const ConvAxis& axis : {m.geometry.vertical, m.geometry.horizontal}) {
    fits =
        fits && axis.pad <= kMost && axis.dilation * (axis.kernel - 1) <= kMost && axis.stride * axis.output <= kMost;
  }
  return fits;
}

/// Whether matrix units take less time on tiles of which only a part are weights than a warp for every pair of channels.
bool tiles_pay(const Moment& m, std::int64_t tiles) {
  constexpr std::int64_t kFaster = 8;
  return kFaster * m.outputs * m.offsets * m.out.inputs > tiles * (kTile * kTile);
}

bool in_fours(const ImageView& image, std::int64_t channels, std::size_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(image.data);
  return image.channel_stride == 1 && channels % 4 == 0 && image.batch_stride % 4 == 0 &&
         image.height_stride % 4 == 0 && image.width_stride % 4 == 0 && address % (bytes == 2 ? 8 : 16) == 0;
}

/// Examples of one position each, as a few examples of many positions.
ImageView in_rows(const ImageView& image) {
  ImageView rows = image;
  rows.batch = blocks_for(image.batch, kRowsInExample);
  rows.width = kRowsInExample;
  rows.width_stride = image.batch_stride;
  rows.batch_stride = kRowsInExample * image.batch_stride;
  return rows;
}

/// What a launch over `blocks` blocks for each split is split into.
std::int64_t choose_splits(const Moment& m, std::int64_t blocks, std::int64_t resident, std::int64_t most,
                           std::size_t bytes, const MomentTuning& tuning) {
  const std::int64_t wanted =
      tuning.splits > 0 ? tuning.splits : blocks_for(2 * resident, std::max<std::int64_t>(blocks, 1));
  const std::int64_t room = tuning.scratch / std::max<std::int64_t>(m.weights() * static_cast<std::int64_t>(bytes), 1);
  return std::max<std::int64_t>(1, std::min({wanted, most, room, m.x.batch}));
}

template <class Element, Order order, Factor factor>
void launch_tiles(const Moment& m, const Tiling& tiling, const Execution& run) {
  using Tile = MomentTile<Element, order, factor>;
  launch(moment_tiles_kernel<Element, order, factor>,
         {grid_of(tiling.column_tiles * tiling.row_tiles * m.groups * m.splits), kTileThreads, Tile::shared_bytes(m)},
         run, m, tiling);
}

template <class Element, Order order>
void launch_tiles(const Moment& m, const Tiling& tiling, const Execution& run) {
  constexpr bool is_float = std::is_same_v<Element, float>;
  if constexpr (is_float) {
    if (run.tf32) return launch_tiles<Element, order, Factor::kRounded>(m, tiling, run);
  } else if constexpr (sizeof(Element) == 8) {
    return launch_tiles<Element, order, Factor::kExact>(m, tiling, run);
  } else if (!m.one_by_one) {
    return launch_tiles<Element, order, Factor::kExact>(m, tiling, run);
  }
  if constexpr (sizeof(Element) < 8) launch_tiles<Element, order, Factor::kSplit>(m, tiling, run);
}

template <class Element>
void second_moment(Moment m, const Execution& run, const MomentTuning& tuning) {
  using T = Sum<Element>;
  const std::int64_t multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
  const auto make_room = [&] {
    if (m.splits > 1) m.partials = (*run.scratch)(m.splits * m.weights() * static_cast<std::int64_t>(sizeof(T)));
  };
  const std::int64_t row_tiles = blocks_for(m.outputs, kTile),
                     column_tiles = blocks_for(m.offsets * m.out.inputs, kTile);
  MomentForm form = tuning.form;
  if (form == MomentForm::kCheaper) {
    form = tiles_pay(m, row_tiles * column_tiles) ? MomentForm::kTiles : MomentForm::kPairs;
  }
  if (!fits_ints(m)) form = MomentForm::kWeights;
  if (form == MomentForm::kTiles) {
    const Tiling tiling{static_cast<int>(row_tiles), static_cast<int>(column_tiles),
                        in_fours(m.g, m.outputs, sizeof(Element))};
    constexpr std::int64_t kStagesInSplit = 16;
    const std::int64_t stages = m.x.batch * blocks_for(m.positions, WarpTile<T>::kDepthStep);
    m.splits = choose_splits(m, row_tiles * column_tiles * m.groups, kTileBlocks<T> * multiprocessors,
                             tuning.splits > 0 ? tuning.splits : stages / kStagesInSplit, sizeof(T), tuning);
    make_room();
    if (m.x.width_stride > 1 && in_fours(m.x, m.out.inputs, sizeof(Element))) {
      launch_tiles<Element, Order::kDepthOutside>(m, tiling, run);
    } else {
      launch_tiles<Element, Order::kDepthInside>(m, tiling, run);
    }
  } else if (form == MomentForm::kPairs) {
    PairLayout layout{blocks_for(m.offsets, kPairOffsets), 32};
    while (layout.lanes > 1 && layout.lanes / 2 >= m.positions) layout.lanes /= 2;
    m.splits = choose_splits(m, blocks_for(layout.warps(m), kPairThreads / 32), kResident * multiprocessors,
                             tuning.splits > 0 ? tuning.splits : m.x.batch * layout.lanes / 32, sizeof(T), tuning);
    make_room();
    launch(moment_pairs_kernel<Element>, {grid_of(blocks_for(layout.warps(m), kPairThreads / 32)), kPairThreads}, run,
           m, layout);
  } else {
    m.splits = choose_splits(m, blocks_for(m.weights(), kWeightThreads), kResident * multiprocessors, m.x.batch,
                             sizeof(T), tuning);
    make_room();
    launch(moment_weights_kernel<Element>,
           {grid_of(blocks_for(m.weights() * m.splits, kWeightThreads)), kWeightThreads}, run, m);
  }
  if (m.splits > 1) {
    launch(add_splits_kernel<T>,
           {grid_of(blocks_for(m.weights(), kSumWidth)), kSumWidth * kSumLanes, kSumWidth * kSumLanes * sizeof(double)},
           run, m);
  }
}

}  // namespace

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const MomentTuning& tuning) {
  Moment m{};
  m.x = x;
  m.g = g;
  m.geometry = geometry;
  m.update = update;
  m.out = out;
  m.groups = x.channels / out.inputs;
  m.outputs = out.outputs / m.groups;
  m.offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
  m.positions = m.last_positions = g.height * g.width;
  m.splits = 1;
  m.examples_in_sum = tuning.examples_in_sum;
  m.positions_in_sum = tuning.positions_in_sum;
  if (m.weights() == 0) return;
  if (m.offsets == 1 && x.height * x.width == 1 && m.positions == 1 && geometry.vertical.pad == 0 &&
      geometry.horizontal.pad == 0) {
    m.one_by_one = true;
    m.x = in_rows(x);
    m.g = in_rows(g);
    m.positions = kRowsInExample;
    m.last_positions = x.batch - (m.x.batch - 1) * kRowsInExample;
    m.geometry = {{1, 1, 0, 1, 1}, {1, 1, 0, 1, kRowsInExample}};
  }
  if (m.positions == 0) m.x.batch = 0;
  dispatch(x.type, [&](auto element) { second_moment<decltype(element)>(m, run, tuning); });
}

}  // namespace eigendamage::cuda
