#include "gram.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "output.h"
#include "parallel.h"
#include "runs.h"

namespace eigendamage::cpu {
namespace {

// Float sums are accurate because none of them is long: positions are summed in registers, register sums in a tile, tiles
// in the sums of a slot. A narrow tile is cheap to add to, and too small for its errors to average out.
constexpr std::int64_t kListed = 64, kListedNarrow = 16;
constexpr std::int64_t kListsInTile = 64;
// Enough work to share for all threads to end together.
constexpr std::int64_t kSlices = 16, kStrips = 32;
constexpr std::int64_t kSlicePositions = 2048;  // at least

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
  void run();

 private:
  /// Channels `rows` of panel i against panel j.
  struct Strip {
    PanelPair pair;
    Range rows;
  };

  Range needed_groups(const PanelPair& pair) const;
  std::vector<Strip> strips(std::int64_t rows) const;
  std::vector<Box> boxes(std::int64_t most_bytes, std::int64_t channels, std::int64_t least_count) const;
  void pack(const std::vector<Box>& boxes, const Range& batch, std::int64_t box_size, T* packed) const;
  void sum_strip(const Box& box, const T* packed, const Strip& strip, std::int64_t tile_size, T* sums,
                 bool first) const;
  void sum_slices();
  void sum_boxes();

  const LagGroup& group(std::int64_t i) const { return p_.plan.groups[static_cast<std::size_t>(i)]; }
  std::int64_t slots() const { return count(p_.plan.slots); }
  static std::int64_t bytes(std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(T)); }

  const GramProblem<T> p_;
  const OutputWriter<T> writer_;
  std::vector<PanelPair> pairs_;
};

template <class T>
Summation<T>::Summation(const GramProblem<T>& problem)
    : p_(problem), writer_(p_.simd, p_.plan, p_.tiling, p_.update, p_.out) {
  for (std::int64_t bundle = 0; bundle < p_.tiling.bundles; ++bundle) {
    for (std::int64_t i = 0; i < p_.tiling.panels; ++i) {
      if (p_.tiling.constant_place(bundle, i) == 0) continue;
      for (std::int64_t j = i; j < p_.tiling.panels; ++j) pairs_.push_back({bundle, i, j});
    }
  }
}

template <class T>
Range Summation<T>::needed_groups(const PanelPair& pair) const {
  const Range zero = p_.plan.zero_lag;
  if (p_.tiling.constant_place(pair.bundle, pair.j) == 0) return zero;
  return {pair.i == pair.j ? zero.begin : 0, count(p_.plan.groups)};
}

/// The pairs, cut into strips of that many rows; the constant's row is left out.
template <class T>
std::vector<typename Summation<T>::Strip> Summation<T>::strips(std::int64_t rows) const {
  std::vector<Strip> list;
  for (const PanelPair& pair : pairs_) {
    const std::int64_t constant = p_.tiling.constant_place(pair.bundle, pair.i);
    const std::int64_t end = constant >= 0 ? constant : p_.tiling.panel_channels(pair.bundle, pair.i);
    for (std::int64_t r = 0; r < end; r += rows) list.push_back({pair, {r, std::min(end, r + rows)}});
  }
  return list;
}

/// Boxes of at most that many packed bytes of that many channels, and at least that many of them where they would not
/// become tiny.
template <class T>
std::vector<Box> Summation<T>::boxes(std::int64_t most_bytes, std::int64_t channels, std::int64_t least_count) const {
  const std::int64_t positions = p_.images * p_.plan.height * p_.plan.width;
  const std::int64_t fitting = most_bytes / bytes(channels);
  const std::int64_t shared = std::max(kSlicePositions, positions / least_count);
  return split_boxes(p_.plan, p_.images, std::max<std::int64_t>(1, std::min(fitting, shared)));
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

/// Sums all slots that the strip needs over a box; a slot's sums are `tile_size` after the one before. `first` overwrites.
template <class T>
void Summation<T>::sum_strip(const Box& box, const T* packed, const Strip& strip, std::int64_t tile_size, T* sums,
                             bool first) const {
  const Tiling& tiling = p_.tiling;
  const PanelPair& pair = strip.pair;
  const std::int64_t panel_size = box.positions() * tiling.width;
  const T* bundle = packed + pair.bundle * tiling.panels * panel_size;
  const std::int64_t columns = tiling.panel_channels(pair.bundle, pair.j);
  const std::int64_t listed = columns > p_.simd.lanes ? kListed : kListedNarrow;
  alignas(64) T tile[kMaxWidth * kMaxWidth];
  const Range groups = needed_groups(pair);
  for (std::int64_t g = groups.begin; g < groups.end; ++g) {
    const auto [down, right, slots] = group(g);
    const bool upper = pair.i == pair.j && down == 0 && right == 0;
    const std::int64_t lag = (down * box.packed_columns.size() + right) * box.images.size();
    const T *a = bundle + pair.i * panel_size, *b = bundle + pair.j * panel_size + lag * tiling.width;
    for (std::int64_t s = slots.begin; s < slots.end; ++s) {
      T* total = sums + s * tile_size;
      if (first) std::fill(total, total + tile_size, T(0));
      std::fill(tile, tile + tile_size, T(0));
      std::int64_t in_tile = 0;
      const auto empty_tile = [&] {
        for (std::int64_t i = 0; i < tile_size; ++i) {
          total[i] += tile[i];
          tile[i] = T(0);
        }
        in_tile = 0;
      };
      for_each_run_list(p_.plan, p_.plan.slots[static_cast<std::size_t>(s)], box, listed,
                        [&](const Run* runs, std::int64_t run_count) {
                          p_.simd.gram(a, b, tiling.width, runs, run_count, strip.rows, columns, upper, tile);
                          if (++in_tile == kListsInTile) empty_tile();
                        });
      if (in_tile > 0) empty_tile();
    }
  }
}

/// Few sums: each slice of the boxes has its own, added up and written at the end.
template <class T>
void Summation<T>::sum_slices() {
  const std::int64_t width = p_.tiling.width, tile_size = width * width, strip_size = slots() * tile_size;
  const std::vector<Strip> strips = this->strips(width);
  const std::int64_t channels = p_.tiling.channels_per_position();
  const std::vector<Box> boxes = this->boxes(p_.limits.kept_box, channels, kSlices);
  const std::int64_t slices = std::min(kSlices, count(boxes)), slice_size = count(strips) * strip_size;
  const Buffer<T> sums = make_buffer<T>(slices * slice_size);
  for_each(p_.parallel_for, slices, [&](std::int64_t slice) {
    const Buffer<T> packed = make_buffer<T>(most_positions(boxes) * channels);
    const std::int64_t begin = count(boxes) * slice / slices, end = count(boxes) * (slice + 1) / slices;
    for (std::int64_t b = begin; b < end; ++b) {
      const Box& box = boxes[static_cast<std::size_t>(b)];
      for (std::int64_t task = 0; task < p_.packer.tasks(box); ++task) p_.packer.pack(box, task, packed.get());
      for (std::int64_t s = 0; s < count(strips); ++s) {
        sum_strip(box, packed.get(), strips[static_cast<std::size_t>(s)], tile_size,
                  sums.get() + slice * slice_size + s * strip_size, b == begin);
      }
    }
  });
  for_each(p_.parallel_for, count(strips), [&](std::int64_t s) {
    const Strip& strip = strips[static_cast<std::size_t>(s)];
    const Range groups = needed_groups(strip.pair);
    const std::int64_t begin = group(groups.begin).slots.begin * tile_size;
    const std::int64_t end = group(groups.end - 1).slots.end * tile_size;
    T* total = sums.get() + s * strip_size;
    for (std::int64_t slice = 1; slice < slices; ++slice) {
      const T* part = total + slice * slice_size;
      for (std::int64_t i = begin; i < end; ++i) total[i] += part[i];
    }
    writer_.add(strip.pair, strip.rows, total, tile_size, true);
    if (strip.pair.i < strip.pair.j) writer_.mirror(strip.pair, strip.rows);
  });
}

/// Many sums: a thread makes those of a strip, box after box of a batch of them, and adds them to the output.
template <class T>
void Summation<T>::sum_boxes() {
  const std::int64_t width = p_.tiling.width, step = p_.simd.tile_rows;
  const std::int64_t fitting = p_.limits.added / bytes(slots() * width), shared = width * count(pairs_) / kStrips;
  const std::int64_t rows = std::clamp(std::min(fitting, shared) / step * step, step, width), tile_size = rows * width;
  const std::vector<Strip> strips = this->strips(rows);
  const std::vector<Box> boxes = this->boxes(p_.limits.added_box, 2 * width, 1);
  const std::int64_t box_size = most_positions(boxes) * p_.tiling.channels_per_position();
  const std::vector<Range> batches = split(count(boxes), p_.limits.packed / bytes(std::max<std::int64_t>(1, box_size)));
  const Buffer<T> packed = make_buffer<T>(batches.back().size() * box_size);
  for (const Range& batch : batches) {
    pack(boxes, batch, box_size, packed.get());
    for_each(p_.parallel_for, count(strips), [&](std::int64_t s) {
      const Strip& strip = strips[static_cast<std::size_t>(s)];
      const Buffer<T> sums = make_buffer<T>(slots() * tile_size);
      for (std::int64_t b = batch.begin; b < batch.end; ++b) {
        sum_strip(boxes[static_cast<std::size_t>(b)], packed.get() + (b - batch.begin) * box_size, strip, tile_size,
                  sums.get(), b == batch.begin);
      }
      writer_.add(strip.pair, strip.rows, sums.get(), tile_size, batch.begin == 0);
      if (batch.end == count(boxes) && strip.pair.i < strip.pair.j) writer_.mirror(strip.pair, strip.rows);
    });
  }
}

template <class T>
void Summation<T>::run() {
  const std::int64_t sums = count(pairs_) * slots() * p_.tiling.width * p_.tiling.width;
  if (bytes(sums) <= p_.limits.kept) {
    sum_slices();
  } else {
    sum_boxes();
  }
  if (p_.tiling.constant) writer_.write_corner(static_cast<double>(p_.images * p_.plan.outputs));
  std::vector<PanelPair> diagonal;
  std::copy_if(pairs_.begin(), pairs_.end(), std::back_inserter(diagonal), [](const auto& p) { return p.i == p.j; });
  for_each(p_.parallel_for, count(diagonal),
           [&](std::int64_t i) { writer_.mirror_diagonal(diagonal[static_cast<std::size_t>(i)]); });
}

}  // namespace

template <class T>
void sum_grams(const GramProblem<T>& problem) {
  Summation<T>(problem).run();
}

template void sum_grams(const GramProblem<float>&);
template void sum_grams(const GramProblem<double>&);

}  // namespace eigendamage::cpu
