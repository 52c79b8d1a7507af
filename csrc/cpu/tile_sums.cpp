#include "tile_sums.h"

#include <algorithm>

#include "parallel.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kSlices = 16;

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

}  // namespace

std::vector<WeightPair> TileSums::run() {
  const std::int64_t slices = std::min(kSlices, levels_.units / levels_.in_slice);
  if (slices >= kSlices / 4 && slices * offsets() * all_pairs() * kTileSize * 4 <= sums_) {
    sum_slices(slices);
  } else {
    sum_blocks();
  }
  return left_out_;
}

/// Blocks of up to so many panels of g and of x.
std::vector<TileSums::Block> TileSums::blocks(std::int64_t g_panels, std::int64_t x_panels) const {
  std::vector<Block> list;
  for (std::int64_t bundle = 0; bundle < l_.g_tiling.bundles; ++bundle) {
    for (const Range& g : split(l_.g_tiling.panels, g_panels)) {
      for (const Range& x : split(l_.x_tiling.panels, x_panels)) list.push_back({bundle, g, x});
    }
  }
  return list;
}

/// total = Σ over all those units, of which `sums` holds some.
bool TileSums::sum_all(const Block& block, const Range& units, float* total, float* sums) const {
  bool finite = true;
  for (std::int64_t begin = units.begin; begin == units.begin || begin < units.end; begin += levels_.together) {
    const Range some{begin, std::min(units.end, begin + levels_.together)};
    finite &= sum(block, some, begin == units.begin ? total : sums);
    if (begin != units.begin) l_.simd.add(total, sums, sums_size(block));
  }
  return finite;
}

/// What panel i of a block's g has against those of x.
void TileSums::write(const Block& block, std::int64_t i, const float* sums) const {
  const Range rows{0, l_.g_tiling.panel_channels(block.bundle, block.g.begin + i)};
  writer_.write({block.bundle, block.g.begin + i, rows, block.x, {0, offsets()}}, sums + i * block.x.size() * kTileSize,
                kTileSize, block.pairs() * kTileSize, true);
}

void TileSums::leave_out(const Block& block) {
  const std::lock_guard lock(mutex_);
  for (std::int64_t i = block.g.begin; i < block.g.end; ++i) {
    for (std::int64_t j = block.x.begin; j < block.x.end; ++j) left_out_.push_back({block.bundle, i, j});
  }
}

void TileSums::sum_slices(std::int64_t slices) {
  const std::vector<Block> whole = blocks(l_.g_tiling.panels, l_.x_tiling.panels);
  std::int64_t size = 0;
  for (const Block& block : whole) size += sums_size(block);
  const Buffer<float> totals = make_buffer<float>(slices * size);
  std::vector<char> finite(static_cast<std::size_t>(slices * count(whole)));
  for_each(parallel_for_, slices, [&](std::int64_t slice) {
    const Range mine{levels_.units * slice / slices, levels_.units * (slice + 1) / slices};
    const Buffer<float> sums = make_buffer<float>(mine.size() > levels_.together ? size : 0);
    float* total = totals.get() + slice * size;
    for (std::int64_t b = 0; b < count(whole); ++b) {
      const Block& block = whole[static_cast<std::size_t>(b)];
      finite[static_cast<std::size_t>(slice * count(whole) + b)] = sum_all(block, mine, total, sums.get());
      total += sums_size(block);
    }
  });
  std::int64_t at = 0;
  for (std::int64_t b = 0; b < count(whole); ++b) {
    const Block& block = whole[static_cast<std::size_t>(b)];
    bool right = true;
    for (std::int64_t slice = 0; slice < slices; ++slice) {
      right &= finite[static_cast<std::size_t>(slice * count(whole) + b)] != 0;
    }
    float* total = totals.get() + at;
    at += sums_size(block);
    if (!right) {
      leave_out(block);
      continue;
    }
    for_each(parallel_for_, block.pairs(), [&](std::int64_t pair) {
      for (std::int64_t k = 0; k < offsets(); ++k) {
        float* tile = total + (k * block.pairs() + pair) * kTileSize;
        for (std::int64_t slice = 1; slice < slices; ++slice) l_.simd.add(tile, tile + slice * size, kTileSize);
      }
    });
    for_each(parallel_for_, block.g.size(), [&](std::int64_t i) { write(block, i, total); });
  }
}

void TileSums::sum_blocks() {
  const std::vector<Block> list = blocks(levels_.g_panels, levels_.x_panels);
  for_each(parallel_for_, count(list), [&](std::int64_t b) {
    const Block& block = list[static_cast<std::size_t>(b)];
    const Buffer<float> total = make_buffer<float>(sums_size(block));
    const Buffer<float> sums = make_buffer<float>(levels_.units > levels_.together ? sums_size(block) : 0);
    if (!sum_all(block, {0, levels_.units}, total.get(), sums.get())) return leave_out(block);
    for (std::int64_t i = 0; i < block.g.size(); ++i) write(block, i, total.get());
  });
}

}  // namespace eigendamage::cpu
