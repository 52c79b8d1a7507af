#include "gram.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "output.h"
#include "runs.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kItems = 64;  // of work for all threads, so that they end together
constexpr std::int64_t kRowsPerTask = 8;

std::int64_t count(const auto& items) { return static_cast<std::int64_t>(items.size()); }

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
  struct Item {
    std::int64_t pair;
    Range groups;
  };

  Range needed_groups(const PanelPair& pair) const;
  Range slots_of(const Range& groups) const;
  std::vector<Item> items(std::int64_t slots_per_item) const;
  void pack(const Box& box);
  void sum_slot(const Box& box, const PanelPair& pair, const LagGroup& group, std::int64_t slot, std::int64_t slice,
                std::int64_t slices, T* sum) const;
  void sum_groups(const Box& box, const Item& item, std::int64_t slice, std::int64_t slices, const Tiles<T>& tiles,
                  bool first) const;
  void keep_aside(std::int64_t slices);
  void add_to_output();

  const LagGroup& group(std::int64_t i) const { return p_.plan.groups[static_cast<std::size_t>(i)]; }
  const PanelPair& pair(std::int64_t i) const { return pairs_[static_cast<std::size_t>(i)]; }
  /// Channels of panel i, without the constant.
  Range rows(const PanelPair& pair) const {
    const std::int64_t constant = p_.tiling.constant_place(pair.bundle, pair.i);
    return {0, constant >= 0 ? constant : p_.tiling.panel_channels(pair.bundle, pair.i)};
  }

  const GramProblem<T> p_;
  const OutputWriter<T> writer_;
  const std::int64_t tile_size_;
  std::vector<PanelPair> pairs_;
  std::vector<Box> boxes_;
  Buffer<T> packed_;
};

template <class T>
Summation<T>::Summation(const GramProblem<T>& problem)
    : p_(problem), writer_(p_.plan, p_.tiling, p_.update, p_.out), tile_size_(p_.tiling.width * p_.tiling.width) {
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

template <class T>
Range Summation<T>::slots_of(const Range& groups) const {
  return {group(groups.begin).slots.begin, group(groups.end - 1).slots.end};
}

/// Consecutive groups of one pair, with at most that many slots together or alone.
template <class T>
std::vector<typename Summation<T>::Item> Summation<T>::items(std::int64_t slots_per_item) const {
  std::vector<Item> list;
  for (std::int64_t i = 0; i < count(pairs_); ++i) {
    const Range groups = needed_groups(pair(i));
    Item item{i, {groups.begin, groups.begin + 1}};
    for (std::int64_t g = groups.begin + 1; g < groups.end; ++g) {
      if (slots_of({item.groups.begin, g + 1}).size() > slots_per_item) {
        list.push_back(item);
        item.groups.begin = g;
      }
      item.groups.end = g + 1;
    }
    list.push_back(item);
  }
  return list;
}

template <class T>
void Summation<T>::pack(const Box& box) {
  for_each(p_.parallel_for, p_.packer.tasks(box), [&](std::int64_t task) { p_.packer.pack(box, task, packed_.get()); });
}

/// sum += the slot's positions of one slice of the box.
template <class T>
void Summation<T>::sum_slot(const Box& box, const PanelPair& pair, const LagGroup& group, std::int64_t slot,
                            std::int64_t slice, std::int64_t slices, T* sum) const {
  const Tiling& tiling = p_.tiling;
  const Slot& positions = p_.plan.slots[static_cast<std::size_t>(slot)];
  const std::int64_t lists = (slot_positions(p_.plan, positions, box) + kRegisterPositions - 1) / kRegisterPositions;
  const std::int64_t lag = (group.down * box.packed_columns.size() + group.right) * box.images.size();
  const std::int64_t panel_size = box.positions() * tiling.width;
  const T* bundle = packed_.get() + pair.bundle * tiling.panels * panel_size;
  const T *a = bundle + pair.i * panel_size, *b = bundle + pair.j * panel_size + lag * tiling.width;
  const std::int64_t rows = this->rows(pair).size(), columns = tiling.panel_channels(pair.bundle, pair.j);
  const bool upper = pair.i == pair.j && group.down == 0 && group.right == 0;
  for_each_run_list(p_.plan, positions, box, lists * slice / slices * kRegisterPositions,
                    lists * (slice + 1) / slices * kRegisterPositions, [&](const Run* runs, std::int64_t run_count) {
                      p_.simd.gram(a, b, tiling.width, runs, run_count, rows, columns, upper, sum);
                    });
}

template <class T>
void Summation<T>::sum_groups(const Box& box, const Item& item, std::int64_t slice, std::int64_t slices,
                              const Tiles<T>& tiles, bool first) const {
  alignas(64) T sum[32 * 32];
  for (std::int64_t g = item.groups.begin; g < item.groups.end; ++g) {
    for (std::int64_t slot = group(g).slots.begin; slot < group(g).slots.end; ++slot) {
      std::memset(sum, 0, static_cast<std::size_t>(tile_size_) * sizeof(T));
      sum_slot(box, pair(item.pair), group(g), slot, slice, slices, sum);
      T* tile = tiles[slot];
      for (std::int64_t i = 0; i < tile_size_; ++i) tile[i] = first ? sum[i] : tile[i] + sum[i];
    }
  }
}

/// Few sums: every box adds to tiles that are written once, at the end.
template <class T>
void Summation<T>::keep_aside(std::int64_t slices) {
  const std::int64_t slots = count(p_.plan.slots), slice_size = count(pairs_) * slots * tile_size_;
  const Buffer<T> kept = make_buffer<T>(slices * slice_size);
  const std::vector<Item> list = items(0);
  const auto tiles = [&](std::int64_t pair, std::int64_t slice) {
    return Tiles<T>{kept.get() + slice * slice_size + pair * slots * tile_size_, 0, tile_size_};
  };
  for (const Box& box : boxes_) {
    pack(box);
    for_each(p_.parallel_for, count(list) * slices, [&](std::int64_t i) {
      const Item& item = list[static_cast<std::size_t>(i / slices)];
      sum_groups(box, item, i % slices, slices, tiles(item.pair, i % slices), &box == boxes_.data());
    });
  }
  const std::int64_t blocks = (p_.tiling.width + kRowsPerTask - 1) / kRowsPerTask;
  for_each(p_.parallel_for, count(pairs_) * blocks, [&](std::int64_t i) {
    const PanelPair& pair = this->pair(i / blocks);
    const Range groups = needed_groups(pair), slots_needed = slots_of(groups);
    const std::int64_t end = std::min(rows(pair).end, (i % blocks + 1) * kRowsPerTask);
    const Range rows{std::min(end, i % blocks * kRowsPerTask), end};
    const Tiles<T> total = tiles(i / blocks, 0);
    for (std::int64_t slice = 1; slice < slices; ++slice) {
      for (std::int64_t slot = slots_needed.begin; slot < slots_needed.end; ++slot) {
        const T* part = tiles(i / blocks, slice)[slot];
        for (std::int64_t e = rows.begin * p_.tiling.width; e < rows.end * p_.tiling.width; ++e)
          total[slot][e] += part[e];
      }
    }
    writer_.add(pair, groups, total, rows, true);
  });
}

/// Many sums: a thread makes some of them for one box and adds them to the output.
template <class T>
void Summation<T>::add_to_output() {
  const std::vector<Item> list = items(p_.limits.pass / (tile_size_ * static_cast<std::int64_t>(sizeof(T))));
  for (const Box& box : boxes_) {
    const bool first = &box == boxes_.data();
    pack(box);
    for_each(p_.parallel_for, count(list), [&](std::int64_t i) {
      const Item& item = list[static_cast<std::size_t>(i)];
      const Range slots = slots_of(item.groups);
      const Buffer<T> sums = make_buffer<T>(slots.size() * tile_size_);
      const Tiles<T> tiles{sums.get(), slots.begin, tile_size_};
      sum_groups(box, item, 0, 1, tiles, true);
      writer_.add(pair(item.pair), item.groups, tiles, rows(pair(item.pair)), first);
    });
  }
}

template <class T>
void Summation<T>::run() {
  constexpr auto bytes = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t kept_bytes = count(pairs_) * count(p_.plan.slots) * tile_size_ * bytes;
  const bool keep = kept_bytes <= p_.limits.kept;
  const std::int64_t position_bytes = p_.tiling.channels_per_position() * bytes;
  const std::int64_t budget =
      std::max<std::int64_t>(1, (keep ? p_.limits.kept_box : p_.limits.added_box) / position_bytes);
  boxes_ = split_boxes(p_.plan, p_.images, budget);
  std::int64_t positions = 0;
  for (const Box& box : boxes_) positions = std::max(positions, box.positions());
  packed_ = make_buffer<T>(positions * p_.tiling.channels_per_position());

  if (keep) {
    const std::int64_t wanted = kItems / std::max<std::int64_t>(1, count(items(0)));
    const std::int64_t most =
        std::min(positions / (2 * kRegisterPositions), p_.limits.kept / std::max<std::int64_t>(1, kept_bytes));
    keep_aside(std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(1, most)));
  } else {
    add_to_output();
  }
  if (p_.tiling.constant) writer_.write_corner(static_cast<double>(p_.images * p_.plan.outputs));
  for_each(p_.parallel_for, count(pairs_), [&](std::int64_t i) { writer_.mirror(pair(i)); });
}

}  // namespace

template <class T>
void sum_grams(const GramProblem<T>& problem) {
  Summation<T>(problem).run();
}

template void sum_grams(const GramProblem<float>&);
template void sum_grams(const GramProblem<double>&);

}  // namespace eigendamage::cpu
