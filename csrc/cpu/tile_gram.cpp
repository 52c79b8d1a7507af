#include "tile_gram.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "output.h"
#include "parallel.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: chunks in the matrix units, sums of chunks in a tile, tiles in the sums of a slice.
constexpr std::int64_t kListedChunks = 16, kListsInTile = 64;
constexpr std::int64_t kSlices = 16, kFewSlices = 4, kLongSlice = 2048, kOneSlice = 256, kLeastInBox = 128;
constexpr std::int64_t kTileSize = kTileWidth * kTileWidth;

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

class TileSummation {
 public:
  TileSummation(const GramProblem<float>& problem, const ChunkPacker& packer)
      : p_(problem),
        packer_(packer),
        tiles_(*p_.simd.tiles),
        writer_(p_.simd, p_.plan, p_.tiling, p_.update, p_.out, p_.around, p_.parallel_for),
        pairs_(panel_pairs(p_.tiling)),
        step_(chunk_size(packer.parts())) {
    for (const PanelPair& pair : pairs_.list) {
      const std::int64_t constant = p_.tiling.constant_place(pair.bundle, pair.i);
      strips_.push_back({pair, {0, constant >= 0 ? constant : p_.tiling.panel_channels(pair.bundle, pair.i)}, true});
    }
  }

  bool run() {
    const bool few = count(strips_) * kTileSize * 4 <= p_.limits.kept && positions() > kOneSlice;
    if (!(few ? sum_slices() : sum_blocks())) return false;
    if (p_.tiling.constant) writer_.write_corner(static_cast<double>(p_.images * p_.plan.outputs));
    return true;
  }

 private:
  std::int64_t positions() const { return p_.images * p_.plan.height * p_.plan.width; }
  std::int64_t panels() const { return p_.tiling.bundles * p_.tiling.panels; }
  std::int64_t position_bytes() const { return step_ / kChunk * 2; }  ///< of a panel
  std::int64_t box_size(const std::vector<Box>& boxes) const {
    std::int64_t most = 0;
    for (const Box& box : boxes) most = std::max(most, packer_.most_chunks(box));
    return most * panels() * step_;
  }

  /// Adds the sums of a box to a pair's, or with `first` puts them there.
  void sum(const Strip& strip, const ChunkList& list, const std::uint16_t* chunks, float* sum, bool first) const {
    const auto [bundle, i, j] = strip.pair;
    const std::int64_t panel_size = list.count() * step_;
    const std::uint16_t *a = chunks + (bundle * p_.tiling.panels + i) * panel_size,
                        *b = chunks + (bundle * p_.tiling.panels + j) * panel_size;
    const std::int64_t columns = p_.tiling.panel_channels(bundle, j);
    alignas(64) float tile[kTileSize];
    float* target = first ? sum : tile;
    std::int64_t in_tile = 0;
    for (const ChunkList::Weighted& some : list.weighted) {
      for (std::int64_t c = some.chunks.begin; c < some.chunks.end; c += kListedChunks) {
        const Run run{c, std::min(kListedChunks, some.chunks.end - c), 1};
        tiles_.gram(a, b, step_, &run, 1, packer_.parts(), strip.rows, columns, i == j, some.weight, in_tile == 0,
                    target);
        if (++in_tile < kListsInTile) continue;
        if (target == tile) p_.simd.add(sum, tile, kTileSize);
        target = tile;
        in_tile = 0;
      }
    }
    if (target == tile) {
      if (in_tile > 0) p_.simd.add(sum, tile, kTileSize);
    } else if (in_tile == 0) {
      std::fill(sum, sum + kTileSize, 0.0f);
    }
  }

  /// Few sums: each slice of the boxes has its own, added up and written at the end.
  bool sum_slices() const {
    const std::int64_t slice_size = count(strips_) * kTileSize;
    const std::int64_t near = p_.limits.near_box * 3 / (panels() * position_bytes());
    const std::int64_t in_box = std::min(near, std::max(kLeastInBox, positions() / kFewSlices));
    const std::vector<Box> boxes = split_boxes(p_.plan, p_.images, std::max(kChunk, in_box));
    const std::int64_t fitting = std::clamp(p_.limits.slices / (slice_size * 4), kFewSlices, kSlices);
    const std::int64_t slices = std::min({fitting, count(boxes), std::max(kFewSlices, positions() / kLongSlice)});
    const std::int64_t box_size = this->box_size(boxes);
    const Buffer<float> sums = make_buffer<float>(slices * slice_size);
    std::atomic<bool> right{true};
    for_each(p_.parallel_for, slices, [&](std::int64_t slice) {
      const Buffer<std::uint16_t> chunks = make_buffer<std::uint16_t>(box_size);
      const std::int64_t begin = count(boxes) * slice / slices, end = count(boxes) * (slice + 1) / slices;
      for (std::int64_t b = begin; b < end; ++b) {
        const Box& box = boxes[static_cast<std::size_t>(b)];
        const ChunkList list = packer_.list(box);
        for (std::int64_t piece = 0; piece < packer_.pieces(); ++piece) {
          if (!packer_.pack(box, list, piece, chunks.get())) right = false;
        }
        float* total = sums.get() + slice * slice_size;
        for (const Strip& strip : strips_) {
          sum(strip, list, chunks.get(), total, b == begin);
          total += kTileSize;
        }
      }
    });
    if (!right) return false;
    writer_.write_all(strips_, kTileSize, p_.parallel_for, [&](std::int64_t s, const Range& rows) {
      float* total = sums.get() + s * kTileSize + rows.begin * kTileWidth;
      for (std::int64_t i = 1; i < slices; ++i) p_.simd.add(total, total + i * slice_size, rows.size() * kTileWidth);
      return total;
    });
    return true;
  }

  /// Many sums: a thread makes those of a block of pairs, box after box of a batch of them, and adds them to the output.
  bool sum_blocks() const {
    const std::int64_t packed = 2 * p_.limits.packed, fitting = packed / (panels() * position_bytes());
    const std::int64_t in_box = std::min(kListedChunks * kChunk, fitting);
    const std::vector<Box> boxes = split_boxes(p_.plan, p_.images, std::max(kChunk, in_box));
    const std::int64_t box_size = std::max<std::int64_t>(1, this->box_size(boxes));
    const std::vector<Range> batches = split(count(boxes), packed / (box_size * 2));
    const Buffer<std::uint16_t> chunks = make_buffer<std::uint16_t>(batches.back().size() * box_size);
    std::vector<ChunkList> lists;
    const auto pack = [&](const Range& batch) {
      lists.clear();
      for (std::int64_t b = batch.begin; b < batch.end; ++b) {
        lists.push_back(packer_.list(boxes[static_cast<std::size_t>(b)]));
      }
      std::atomic<bool> right{true};
      for_each(p_.parallel_for, batch.size() * packer_.pieces(), [&](std::int64_t i) {
        const std::int64_t b = i / packer_.pieces();
        if (!packer_.pack(boxes[static_cast<std::size_t>(batch.begin + b)], lists[static_cast<std::size_t>(b)],
                          i % packer_.pieces(), chunks.get() + b * box_size)) {
          right = false;
        }
      });
      return right.load();
    };
    // Nothing is written before all numbers are known to be finite; the first batch stays packed.
    for (auto batch = batches.rbegin(); batch != batches.rend(); ++batch) {
      if (!pack(*batch)) return false;
    }
    for (const Range& batch : batches) {
      if (batch.begin > 0) pack(batch);
      for_each(p_.parallel_for, count(pairs_.blocks), [&](std::int64_t t) {
        const Range& block = pairs_.blocks[static_cast<std::size_t>(t)];
        const Buffer<float> sums = make_buffer<float>(block.size() * kTileSize);
        for (std::int64_t b = 0; b < batch.size(); ++b) {
          for (std::int64_t s = block.begin; s < block.end; ++s) {
            sum(strips_[static_cast<std::size_t>(s)], lists[static_cast<std::size_t>(b)], chunks.get() + b * box_size,
                sums.get() + (s - block.begin) * kTileSize, b == 0);
          }
        }
        for (std::int64_t s = block.begin; s < block.end; ++s) {
          writer_.write(strips_[static_cast<std::size_t>(s)], sums.get() + (s - block.begin) * kTileSize, kTileSize,
                        batch.begin == 0, batch.end == count(boxes));
        }
      });
    }
    return true;
  }

  const GramProblem<float> p_;
  const ChunkPacker& packer_;
  const TileKernels& tiles_;
  const OutputWriter<float> writer_;
  const PanelPairs pairs_;
  const std::int64_t step_;  ///< from a chunk to the next
  std::vector<Strip> strips_;
};

}  // namespace

bool tiles_pay(const GramProblem<float>& problem) {
  const Plan& plan = problem.plan;
  const Tiling& tiling = problem.tiling;
  const bool one_sum = plan.slots.size() == 1 && plan.reach_down + plan.reach_right == 0;
  const auto pairs = static_cast<double>(tiling.bundles * tiling.panels * (tiling.panels + 1) / 2);
  const auto positions = static_cast<double>(problem.images * plan.height * plan.width);
  return problem.simd.tiles && one_sum && tiling.width == kTileWidth && positions * pairs * kTileSize >= problem.tiles;
}

bool sum_tiles(const GramProblem<float>& problem, const ChunkPacker& packer) {
  return TileSummation(problem, packer).run();
}

}  // namespace eigendamage::cpu
