#include "gram.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <vector>

#include "output.h"
#include "runs.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kUnits = 64;  // of work to share out, so that all threads end together

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

/// body(i) for every i < items; whichever thread is free takes the next one.
void for_each(const ParallelFor& parallel_for, std::int64_t items, const std::function<void(std::int64_t)>& body) {
  std::atomic<std::int64_t> next{0};
  parallel_for(items, [&](std::int64_t, std::int64_t) {
    for (std::int64_t i = next++; i < items; i = next++) body(i);
  });
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
  void pack(const Box& box);
  void sum_slots(const Box& box, const Strip& strip, const LagGroup& group, std::int64_t slice, std::int64_t slices,
                 std::int64_t tile_size, T* sums, bool first) const;
  void set_aside();
  void add_to_output();

  const LagGroup& group(std::int64_t i) const { return p_.plan.groups[static_cast<std::size_t>(i)]; }
  std::int64_t slots() const { return count(p_.plan.slots); }
  static std::int64_t bytes(std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(T)); }

  const GramProblem<T> p_;
  const OutputWriter<T> writer_;
  std::vector<PanelPair> pairs_;
  std::vector<Box> boxes_;
  Buffer<T> packed_;
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

template <class T>
void Summation<T>::pack(const Box& box) {
  for_each(p_.parallel_for, p_.packer.tasks(box), [&](std::int64_t task) { p_.packer.pack(box, task, packed_.get()); });
}

/// Sums the slots of a group over one slice of the positions in the box; a slot's tile of sums is `tile_size` after the
/// one before. `first` overwrites them.
template <class T>
void Summation<T>::sum_slots(const Box& box, const Strip& strip, const LagGroup& group, std::int64_t slice,
                             std::int64_t slices, std::int64_t tile_size, T* sums, bool first) const {
  const Tiling& tiling = p_.tiling;
  const PanelPair& pair = strip.pair;
  const std::int64_t lag = (group.down * box.packed_columns.size() + group.right) * box.images.size();
  const std::int64_t panel_size = box.positions() * tiling.width;
  const T* bundle = packed_.get() + pair.bundle * tiling.panels * panel_size;
  const T *a = bundle + pair.i * panel_size, *b = bundle + pair.j * panel_size + lag * tiling.width;
  const std::int64_t columns = tiling.panel_channels(pair.bundle, pair.j);
  const bool upper = pair.i == pair.j && group.down == 0 && group.right == 0;
  alignas(64) T tile[kMaxWidth * kMaxWidth];
  for (std::int64_t s = group.slots.begin; s < group.slots.end; ++s, sums += tile_size) {
    const Slot& slot = p_.plan.slots[static_cast<std::size_t>(s)];
    const std::int64_t lists = (slot_positions(p_.plan, slot, box) + kRegisterPositions - 1) / kRegisterPositions;
    std::memset(tile, 0, sizeof(T) * static_cast<std::size_t>(tile_size));
    for_each_run_list(p_.plan, slot, box, lists * slice / slices * kRegisterPositions,
                      lists * (slice + 1) / slices * kRegisterPositions, [&](const Run* runs, std::int64_t run_count) {
                        p_.simd.gram(a, b, tiling.width, runs, run_count, strip.rows, columns, upper, tile);
                      });
    for (std::int64_t i = 0; i < tile_size; ++i) sums[i] = first ? tile[i] : sums[i] + tile[i];
  }
}

/// Few sums: every box adds to tiles that are written once, at the end. Slices of a box make work for all threads.
template <class T>
void Summation<T>::set_aside() {
  const std::int64_t width = p_.tiling.width, tile_size = width * width;
  const std::vector<Strip> strips = this->strips(width);
  struct Unit {
    std::int64_t strip, group;
  };
  std::vector<Unit> units;
  for (std::int64_t s = 0; s < count(strips); ++s) {
    const Range groups = needed_groups(strips[static_cast<std::size_t>(s)].pair);
    for (std::int64_t g = groups.begin; g < groups.end; ++g) units.push_back({s, g});
  }
  const std::int64_t strip_size = slots() * tile_size, all = count(strips) * strip_size;
  const std::int64_t most_slices = std::min(boxes_.front().positions() / (2 * kRegisterPositions),
                                            p_.limits.kept / bytes(std::max<std::int64_t>(1, all)));
  const std::int64_t slices = std::clamp<std::int64_t>(kUnits / std::max<std::int64_t>(1, count(units)), 1,
                                                       std::max<std::int64_t>(1, most_slices));
  const Buffer<T> sums = make_buffer<T>(slices * all);

  for (const Box& box : boxes_) {
    pack(box);
    for_each(p_.parallel_for, count(units) * slices, [&](std::int64_t i) {
      const Unit& unit = units[static_cast<std::size_t>(i / slices)];
      T* tiles = sums.get() + i % slices * all + unit.strip * strip_size + group(unit.group).slots.begin * tile_size;
      sum_slots(box, strips[static_cast<std::size_t>(unit.strip)], group(unit.group), i % slices, slices, tile_size,
                tiles, &box == &boxes_.front());
    });
  }
  for_each(p_.parallel_for, count(strips), [&](std::int64_t i) {
    const Strip& strip = strips[static_cast<std::size_t>(i)];
    T* total = sums.get() + i * strip_size;
    const Range groups = needed_groups(strip.pair);
    for (std::int64_t slice = 1; slice < slices; ++slice) {
      const T* part = total + slice * all;
      for (std::int64_t e = group(groups.begin).slots.begin * tile_size;
           e < group(groups.end - 1).slots.end * tile_size; ++e)
        total[e] += part[e];
    }
    writer_.add(strip.pair, strip.rows, total, tile_size, true);
  });
}

/// Many sums: a thread makes those of a strip for one box and adds them to the output.
template <class T>
void Summation<T>::add_to_output() {
  const std::int64_t width = p_.tiling.width;
  const std::int64_t fitting = p_.limits.added / bytes(slots() * width) / p_.simd.tile_rows * p_.simd.tile_rows;
  const std::int64_t rows = std::clamp(fitting, p_.simd.tile_rows, width), tile_size = rows * width;
  const std::vector<Strip> strips = this->strips(rows);
  for (const Box& box : boxes_) {
    pack(box);
    for_each(p_.parallel_for, count(strips), [&](std::int64_t i) {
      const Strip& strip = strips[static_cast<std::size_t>(i)];
      const Buffer<T> sums = make_buffer<T>(slots() * tile_size);
      const Range groups = needed_groups(strip.pair);
      for (std::int64_t g = groups.begin; g < groups.end; ++g) {
        sum_slots(box, strip, group(g), 0, 1, tile_size, sums.get() + group(g).slots.begin * tile_size, true);
      }
      writer_.add(strip.pair, strip.rows, sums.get(), tile_size, &box == &boxes_.front());
    });
  }
}

template <class T>
void Summation<T>::run() {
  const Tiling& tiling = p_.tiling;
  const bool few = bytes(count(pairs_) * slots() * tiling.width * tiling.width) <= p_.limits.kept;
  const std::int64_t box_bytes = few ? p_.limits.kept_box : p_.limits.added_box;
  boxes_ =
      split_boxes(p_.plan, p_.images, std::max<std::int64_t>(1, box_bytes / bytes(tiling.channels_per_position())));
  std::int64_t positions = 0;
  for (const Box& box : boxes_) positions = std::max(positions, box.positions());
  packed_ = make_buffer<T>(positions * tiling.channels_per_position());

  if (few) {
    set_aside();
  } else {
    add_to_output();
  }
  if (tiling.constant) writer_.write_corner(static_cast<double>(p_.images * p_.plan.outputs));
  for_each(p_.parallel_for, count(pairs_),
           [&](std::int64_t i) { writer_.mirror(pairs_[static_cast<std::size_t>(i)]); });
}

}  // namespace

template <class T>
void sum_grams(const GramProblem<T>& problem) {
  Summation<T>(problem).run();
}

template void sum_grams(const GramProblem<float>&);
template void sum_grams(const GramProblem<double>&);

}  // namespace eigendamage::cpu
