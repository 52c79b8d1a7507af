#include "gram.h"

#include <algorithm>
#include <vector>

#include "output.h"
#include "parallel.h"
#include "runs.h"
#include "tiles.h"

namespace eigendamage::cpu {
namespace {

// Float sums are accurate because none of them is long: positions are summed in registers, register sums in a tile, tiles
// in the sums of a slot. A narrow tile is cheap to add to, and too small for its errors to average out.
constexpr std::int64_t kListed = 64, kListedNarrow = 16, kListedChunks = 16;
constexpr std::int64_t kListsInTile = 64;
// Enough work to share for all threads to end together: many slices if they are long, few where they are worth a set of
// sums at all.
constexpr std::int64_t kSlices = 16, kFewSlices = 4, kStrips = 20;
constexpr std::int64_t kLongSlice = 2048, kPositionsOfSlot = 256;
constexpr std::int64_t kTimes = 4;               // as much for boxes in tiles, whose numbers are six times as long
constexpr std::int64_t kWorthSharing = 4 << 20;  // multiply-adds

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

std::int64_t most_positions(const std::vector<Box>& boxes) {
  std::int64_t most = 0;
  for (const Box& box : boxes) most = std::max(most, box.positions());
  return most;
}

template <class T>
class Summation {
 public:
  explicit Summation(const GramProblem<T>& problem);
  bool run();

 private:
  Range needed_groups(const PanelPair& pair) const;
  std::vector<Strip> strips(std::int64_t rows) const;
  void pack(const std::vector<Box>& boxes, const Range& batch, std::int64_t box_size, T* packed) const;
  void sum_strip(const Box& box, const T* packed, const Strip& strip, std::int64_t slot_size, T* sums, bool first,
                 Ahead& ahead) const;
  void sum_slot(const Slot& slot, const Box& box, const T* a, const T* b, const Strip& strip, bool upper, T* sum,
                bool first, Ahead& ahead) const;
  void add_slices(const Strip& strip, T* total, std::int64_t slices, std::int64_t slice_size,
                  std::int64_t slot_size) const;
  bool sum_slices();
  bool sum_boxes();

  const LagGroup& group(std::int64_t i) const { return p_.plan.groups[static_cast<std::size_t>(i)]; }
  std::int64_t slots() const { return count(p_.plan.slots); }
  /// Of `rows` rows and a line more: at multiples of a page, the cache would hold few of a row's slots.
  std::int64_t slot_size(std::int64_t rows) const { return rows * p_.tiling.width + kMaxLanes; }
  bool in_tiles() const { return p_.in_tiles.kernels != nullptr; }
  bool is_spoiled() const { return in_tiles() && *p_.in_tiles.special; }
  /// Of all panels, that a position takes.
  std::int64_t numbers() const { return p_.tiling.bundles * p_.tiling.panels * position_; }
  static std::int64_t bytes(std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(T)); }

  const GramProblem<T> p_;
  const OutputWriter<T> writer_;
  const PanelPairs pairs_;
  const std::int64_t position_;  ///< numbers of a panel that a position takes
  const std::int64_t together_;  ///< images in a position
};

template <class T>
Summation<T>::Summation(const GramProblem<T>& problem)
    : p_(problem),
      writer_(p_.simd, p_.plan, p_.tiling, p_.update, p_.out, p_.around, p_.parallel_for),
      pairs_(panel_pairs(p_.tiling)),
      position_(in_tiles() ? chunk_size(p_.in_tiles.parts) / 2 : p_.tiling.width),
      together_(in_tiles() ? kChunk : 1) {}

template <class T>
Range Summation<T>::needed_groups(const PanelPair& pair) const {
  const Range zero = p_.plan.zero_lag;
  if (p_.tiling.constant_place(pair.bundle, pair.j) == 0) return zero;
  return {pair.i == pair.j ? zero.begin : 0, count(p_.plan.groups)};
}

/// The pairs, cut into strips of that many rows; the constant's row is left out.
template <class T>
std::vector<Strip> Summation<T>::strips(std::int64_t rows) const {
  std::vector<Strip> list;
  for (const PanelPair& pair : pairs_.list) {
    const std::int64_t constant = p_.tiling.constant_place(pair.bundle, pair.i);
    const std::int64_t end = constant >= 0 ? constant : p_.tiling.panel_channels(pair.bundle, pair.i);
    for (std::int64_t r = 0; r < end; r += rows)
      list.push_back({pair, {r, std::min(end, r + rows)}, rows == p_.tiling.width});
  }
  return list;
}

/// Packs boxes of the batch, each `box_size` numbers after the one before.
template <class T>
void Summation<T>::pack(const std::vector<Box>& boxes, const Range& batch, std::int64_t box_size, T* packed) const {
  std::int64_t most = 0;
  for (const Box& box : boxes) most = std::max(most, p_.packer.tasks(box));
  for_each(p_.parallel_for, batch.size() * most, [&](std::int64_t i) {
    const Box& box = boxes[static_cast<std::size_t>(batch.begin + i / most)];
    if (i % most < p_.packer.tasks(box)) p_.packer.pack(box, i % most, packed + i / most * box_size);
  });
}

/// Sums a slot over a box: to `sum` itself where that is empty, or as a whole.
template <class T>
void Summation<T>::sum_slot(const Slot& slot, const Box& box, const T* a, const T* b, const Strip& strip, bool upper,
                            T* sum, bool first, Ahead& ahead) const {
  const std::int64_t width = p_.tiling.width, tile_size = strip.rows.size() * width;
  const std::int64_t columns = p_.tiling.panel_channels(strip.pair.bundle, strip.pair.j);
  alignas(64) T tile[kMaxWidth * kMaxWidth];
  T* target = first ? sum : tile;
  std::int64_t in_tile = 0;
  const auto gram = [&](const Run* runs, std::int64_t run_count, T weight) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (in_tiles()) {
        const std::int64_t parts = p_.in_tiles.parts;
        p_.in_tiles.kernels->gram(reinterpret_cast<const std::uint16_t*>(a), reinterpret_cast<const std::uint16_t*>(b),
                                  chunk_size(parts), runs, run_count, parts, strip.rows, columns, upper, weight,
                                  in_tile == 0, target);
        return;
      }
    }
    p_.simd.gram(a, b, width, runs, run_count, strip.rows, columns, upper, weight, in_tile == 0, target, ahead);
  };
  const std::int64_t listed = in_tiles() ? kListedChunks : columns > p_.simd.lanes ? kListed : kListedNarrow;
  for_each_run_list(p_.plan, slot, box, listed, [&](const Run* runs, std::int64_t run_count, std::int64_t weight) {
    gram(runs, run_count, static_cast<T>(weight));
    if (++in_tile < kListsInTile) return;
    if (target == tile) p_.simd.add(sum, tile, tile_size);
    target = tile;
    in_tile = 0;
  });
  if (target == tile) {
    if (in_tile > 0) p_.simd.add(sum, tile, tile_size);
  } else if (in_tile == 0) {
    std::fill(sum, sum + tile_size, T(0));
  }
}

/// Sums all slots that the strip needs over a box; a slot's sums are `slot_size` after the one before. `first` overwrites.
template <class T>
void Summation<T>::sum_strip(const Box& box, const T* packed, const Strip& strip, std::int64_t slot_size, T* sums,
                             bool first, Ahead& ahead) const {
  const PanelPair& pair = strip.pair;
  const std::int64_t panel_size = box.positions() * position_;
  const T* bundle = packed + pair.bundle * p_.tiling.panels * panel_size;
  const Range groups = needed_groups(pair);
  for (std::int64_t g = groups.begin; g < groups.end; ++g) {
    const auto [down, right, slots] = group(g);
    const bool upper = pair.i == pair.j && down == 0 && right == 0;
    const std::int64_t lag = (down * box.packed_columns.size() + right) * box.images.size();
    const T *a = bundle + pair.i * panel_size, *b = bundle + pair.j * panel_size + lag * position_;
    for (std::int64_t s = slots.begin; s < slots.end; ++s) {
      sum_slot(p_.plan.slots[static_cast<std::size_t>(s)], box, a, b, strip, upper, sums + s * slot_size, first, ahead);
    }
  }
}

/// Adds to a strip's sums in the first slice those in the others, one after the other.
template <class T>
void Summation<T>::add_slices(const Strip& strip, T* total, std::int64_t slices, std::int64_t slice_size,
                              std::int64_t slot_size) const {
  const Range groups = needed_groups(strip.pair);
  for (std::int64_t s = group(groups.begin).slots.begin; s < group(groups.end - 1).slots.end; ++s) {
    T* sum = total + s * slot_size;
    for (std::int64_t i = 1; i < slices; ++i)
      p_.simd.add(sum, sum + i * slice_size, strip.rows.size() * p_.tiling.width);
  }
}

/// Few sums: each slice of the boxes has its own, added up and written at the end.
template <class T>
bool Summation<T>::sum_slices() {
  const std::int64_t width = p_.tiling.width, slot_size = this->slot_size(width), strip_size = slots() * slot_size;
  const std::vector<Strip> strips = this->strips(width);
  const std::int64_t channels = numbers(), slice_size = count(strips) * strip_size;
  const std::int64_t most_slices =
      std::clamp(p_.limits.slices / std::max<std::int64_t>(1, bytes(slice_size)), kFewSlices, kSlices);
  const std::int64_t positions = p_.images * p_.plan.height * p_.plan.width;
  const std::int64_t of_many = std::max(kLongSlice / together_, positions / most_slices);
  const std::int64_t of_few =
      std::max(kPositionsOfSlot / together_ * slots() / count(p_.plan.groups), positions / kFewSlices);
  const std::int64_t in_box =
      std::max<std::int64_t>(1, std::min({p_.limits.kept_box / bytes(channels), of_many, of_few}));
  const std::int64_t near = std::max(kPositionsOfSlot / together_, p_.limits.near_box / bytes(channels));
  const bool overlap = p_.plan.reach_down + p_.plan.reach_right > 0;
  const std::vector<Box> boxes = split_boxes(p_.plan, p_.images, overlap ? in_box : std::min(in_box, near));
  const std::int64_t worth = std::max<std::int64_t>(1, (positions + in_box - 1) / in_box);
  const std::int64_t slices = std::min({most_slices, count(boxes), worth});
  const Buffer<T> sums = make_buffer<T>(slices * slice_size);
  const auto first_box = [&](std::int64_t slice) { return count(boxes) * slice / slices; };
  for_each_knowing_next(p_.parallel_for, slices, [&](std::int64_t slice, std::int64_t next_slice) {
    const Buffer<T> packed = make_buffer<T>(most_positions(boxes) * channels);
    const std::int64_t begin = first_box(slice), end = first_box(slice + 1);
    for (std::int64_t b = begin; b < end; ++b) {
      const Box& box = boxes[static_cast<std::size_t>(b)];
      const std::int64_t next = b + 1 < end ? b + 1 : first_box(next_slice);
      Ahead ahead = next < count(boxes) ? p_.packer.source(boxes[static_cast<std::size_t>(next)]) : Ahead{};
      for (std::int64_t task = 0; task < p_.packer.tasks(box); ++task) p_.packer.pack(box, task, packed.get());
      for (std::int64_t s = 0; s < count(strips); ++s) {
        sum_strip(box, packed.get(), strips[static_cast<std::size_t>(s)], slot_size,
                  sums.get() + slice * slice_size + s * strip_size, b == begin, ahead);
      }
    }
  });
  if (is_spoiled()) return false;
  writer_.write_all(strips, slot_size, p_.parallel_for, [&](std::int64_t s, const Range& rows) {
    T* total = sums.get() + s * strip_size + rows.begin * width;
    add_slices({strips[static_cast<std::size_t>(s)].pair, rows, false}, total, slices, slice_size, slot_size);
    return total;
  });
  return true;
}

/// Many sums: a thread makes those of a strip, box after box of a batch of them, and adds them to the output. Where no lag has
/// a box read again, all strips of a block of pairs do so before the next box.
template <class T>
bool Summation<T>::sum_boxes() {
  const std::int64_t width = p_.tiling.width, step = in_tiles() ? kTileWidth / 2 : p_.simd.tile_rows;
  const std::int64_t fitting = p_.limits.added / bytes(slots() * width), shared = width * count(pairs_.list) / kStrips;
  const std::int64_t rows = std::clamp(std::min(fitting, shared) / step * step, step, width);
  const std::int64_t slot_size = this->slot_size(rows), channels = numbers();
  const std::vector<Strip> strips = this->strips(rows);
  const std::int64_t strip_size = slots() * slot_size;
  const bool lags = p_.plan.reach_down + p_.plan.reach_right > 0;
  const bool one_strip_each = count(strips) == count(pairs_.list);
  const bool together = !lags && one_strip_each && count(pairs_.blocks) >= kStrips &&
                        bytes(pairs_.few * pairs_.few * strip_size) <= p_.limits.added;
  const std::vector<Range> tasks = together ? pairs_.blocks : split(count(strips), 1);
  const std::int64_t panels = together ? 2 * pairs_.few : 2;
  const std::int64_t added_box = (in_tiles() ? kTimes : 1) * p_.limits.added_box;
  const std::int64_t most_packed = (in_tiles() ? 2 : 1) * p_.limits.packed;
  const std::int64_t in_box = std::min(added_box / bytes(panels * position_), most_packed / bytes(channels));
  const std::vector<Box> boxes = split_boxes(p_.plan, p_.images, std::max<std::int64_t>(1, in_box));
  const std::int64_t box_size = most_positions(boxes) * channels;
  const std::vector<Range> batches = split(count(boxes), most_packed / bytes(std::max<std::int64_t>(1, box_size)));
  const Buffer<T> packed = make_buffer<T>(batches.back().size() * box_size);
  // In tiles nothing is written before all numbers are known to be finite; the first batch stays packed.
  for (auto batch = batches.rbegin(); in_tiles() && batch != batches.rend(); ++batch) {
    pack(boxes, *batch, box_size, packed.get());
    if (is_spoiled()) return false;
  }
  for (const Range& batch : batches) {
    if (!in_tiles() || batch.begin > 0) pack(boxes, batch, box_size, packed.get());
    for_each(p_.parallel_for, count(tasks), [&](std::int64_t t) {
      const Range& task = tasks[static_cast<std::size_t>(t)];
      const Buffer<T> sums = make_buffer<T>(task.size() * strip_size);
      Ahead none;
      for (std::int64_t b = batch.begin; b < batch.end; ++b) {
        for (std::int64_t s = task.begin; s < task.end; ++s) {
          sum_strip(boxes[static_cast<std::size_t>(b)], packed.get() + (b - batch.begin) * box_size,
                    strips[static_cast<std::size_t>(s)], slot_size, sums.get() + (s - task.begin) * strip_size,
                    b == batch.begin, none);
        }
      }
      for (std::int64_t s = task.begin; s < task.end; ++s) {
        writer_.write(strips[static_cast<std::size_t>(s)], sums.get() + (s - task.begin) * strip_size, slot_size,
                      batch.begin == 0, batch.end == count(boxes));
      }
    });
  }
  if (rows < width) writer_.mirror_diagonals(pairs_.list, p_.parallel_for);
  return true;
}

template <class T>
bool Summation<T>::run() {
  const std::int64_t sums = count(pairs_.list) * slots() * slot_size(p_.tiling.width);
  const std::int64_t positions = p_.images * together_ * p_.plan.height * p_.plan.width;
  const bool one_slice = positions <= kPositionsOfSlot * slots() / count(p_.plan.groups);
  const bool few = bytes(sums) <= p_.limits.kept && !(one_slice && positions * sums > kWorthSharing);
  if (!(few ? sum_slices() : sum_boxes())) return false;
  if (p_.tiling.constant) writer_.write_corner(static_cast<double>(p_.examples * p_.plan.outputs));
  return true;
}

}  // namespace

template <class T>
bool sum_grams(const GramProblem<T>& problem) {
  return Summation<T>(problem).run();
}

template bool sum_grams(const GramProblem<float>&);
template bool sum_grams(const GramProblem<double>&);

}  // namespace eigendamage::cpu
