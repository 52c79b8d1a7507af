#include "squares.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "tile_squares.h"
#include "weight_writer.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: positions in registers, register sums in a gradient's tile, squares of up to kExamples, those in the
// sums of a chunk or slice, these in the output. A small weight has too few entries for their errors to average out.
constexpr std::int64_t kListed = 64, kListedSmall = 16, kSmall = 2048, kExamples = 64;
// Bytes of a thread: sums that it adds to, and panels that it reads again and again.
constexpr std::int64_t kSums = 1 << 16, kReread = 24 << 10;
constexpr std::int64_t kFew = 4;                   // panels of x
constexpr std::int64_t kItems = 32, kSlices = 16;  // enough to share for all threads to end together

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Rows of panel i of g against panel j of x under some kernel offsets.
struct Item {
  std::int64_t bundle, i, j;
  Range rows, offsets;
  std::int64_t at;  ///< of its sums (offsets, rows, tile_width) among those of all items
};

/// Positions that are packed together, and which of them meet.
struct Band {
  Box x, g;  ///< of image 0
  std::vector<OffsetRuns> offsets;
  std::int64_t lists;  ///< the most of an offset
  bool first, last;    ///< of an example
};

template <class T>
struct Packed {
  Buffer<T> x, g;
};

Box nth(Box box, std::int64_t image) {
  box.images = {image, image + 1};
  return box;
}

template <class T>
class Squares {
 public:
  Squares(const Layer<T>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning)
      : l_(layer), parallel_for_(parallel_for), tuning_(tuning), writer_(layer) {}
  void run(std::vector<WeightPair> only);  ///< those pairs, or where there are none all

 private:
  void list_items(bool sliced);
  Band band(const Range& lines, const Range& columns) const;
  std::vector<Band> bands(std::int64_t positions) const;
  void pack(const Band& band, const Range& examples, std::int64_t task, const Packed<T>& packed) const;
  void add(const Item& item, const Band& band, const Packed<T>& packed, const Range& units, T* sums, T* partial) const;
  void write(const Item& item, const T* sums, bool first) const {
    writer_.write({item.bundle, item.i, item.rows, {item.j, item.j + 1}, item.offsets}, sums, 0,
                  padded_rows(item) * tile_width(), first);
  }
  void sum_slices(std::int64_t slices);
  void sum_chunk(const Band& band, const Range& examples, const Packed<T>& packed, bool first) const;
  void sum_chunks();

  std::int64_t offsets() const { return l_.geometry.vertical.kernel * l_.geometry.horizontal.kernel; }
  bool is_pointwise() const {
    const auto same = [](const ConvAxis& a, std::int64_t size) {
      return a.kernel == 1 && a.stride == 1 && a.pad == 0 && a.output == size;
    };
    return same(l_.geometry.vertical, l_.x_height) && same(l_.geometry.horizontal, l_.x_width);
  }
  std::int64_t tasks(const Band& band) const { return l_.x_packer->tasks(band.x) + l_.g_packer->tasks(band.g); }
  /// From one example to the next: a panel more than there are, lest the same panel of all fall into the same cache sets.
  static std::int64_t step(const Box& box, const Tiling& tiling) {
    return box.positions() * (tiling.channels_per_position() + tiling.width);
  }
  std::int64_t x_step(const Band& band) const { return step(band.x, l_.x_tiling); }
  std::int64_t g_step(const Band& band) const { return step(band.g, l_.g_tiling); }
  Packed<T> room(const Band& band, std::int64_t examples) const {
    return {make_buffer<T>(examples * x_step(band)), make_buffer<T>(examples * g_step(band))};
  }
  std::int64_t padded_rows(const Item& item) const {
    if (l_.products == Products::kLanes) return 1;
    return ceil_div(item.rows.size(), l_.simd.tile_rows) * l_.simd.tile_rows;
  }
  std::int64_t tile_width() const { return 2 * l_.simd.lanes; }
  std::int64_t size(const Item& item) const { return item.offsets.size() * padded_rows(item) * tile_width(); }
  static std::int64_t bytes(std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(T)); }

  const Layer<T>& l_;
  const ParallelFor& parallel_for_;
  const GradientTuning tuning_;
  const WeightWriter<T> writer_;
  std::vector<WeightPair> only_;
  std::vector<Item> items_;
  std::int64_t sums_ = 0;  ///< of all items
};

/// Whole panels where slices share the work, else enough items to share. A few panels of x meet all of g's before the next
/// few do: they stay in a cache.
template <class T>
void Squares<T>::list_items(bool sliced) {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const bool lanes = l_.products == Products::kLanes;
  const std::int64_t all = offsets(), wanted = sliced ? 1 : kItems;
  const std::int64_t pairs = g.bundles * g.panels * (lanes ? 1 : x.panels);
  const std::int64_t strip = pairs < wanted ? std::min(g.width, l_.simd.tile_rows) : g.width;
  const std::int64_t strips = pairs * ceil_div(g.width, strip);
  const std::int64_t fitting = kSums / bytes(strip * tile_width()), shared = ceil_div(all * strips, wanted);
  const std::int64_t together = std::clamp<std::int64_t>(std::min(fitting, shared), 1, all);
  items_.clear();
  sums_ = 0;
  for (std::int64_t bundle = 0; bundle < g.bundles; ++bundle) {
    for (std::int64_t few = 0; few < x.panels; few += kFew) {
      for (std::int64_t i = 0; i < g.panels; ++i) {
        const std::int64_t rows = lanes ? 1 : g.panel_channels(bundle, i);
        for (std::int64_t j = few; j < std::min(x.panels, few + kFew); ++j) {
          if (!only_.empty() && !std::binary_search(only_.begin(), only_.end(), WeightPair{bundle, i, j})) continue;
          for (std::int64_t r = 0; r < rows && (!lanes || i == j); r += strip) {
            for (std::int64_t k = 0; k < all; k += together) {
              items_.push_back({bundle, i, j, {r, std::min(rows, r + strip)}, {k, std::min(all, k + together)}, sums_});
              sums_ += size(items_.back());
            }
          }
        }
      }
    }
  }
}

/// Those lines and columns where positions of g and x are the same, else all.
template <class T>
Band Squares<T>::band(const Range& lines, const Range& columns) const {
  const bool cut = is_pointwise();
  const Range x_lines = cut ? lines : Range{0, l_.x_height}, x_columns = cut ? columns : Range{0, l_.x_width};
  const ConvGeometry geometry = cut ? pointwise(lines.size(), columns.size()) : l_.geometry;
  const std::int64_t entries = l_.out.outputs * l_.x_tiling.channels * offsets();
  Band band{
      {{0, 1}, x_lines, x_columns, x_lines, x_columns}, {{0, 1}, lines, columns, lines, columns}, {}, 0, true, true};
  band.offsets = offset_runs(geometry, x_lines.size(), x_columns.size(), entries < kSmall ? kListedSmall : kListed);
  for (const OffsetRuns& offset : band.offsets) band.lists = std::max(band.lists, offset.lists());
  return band;
}

/// An example, cut where that is possible into bands of about so many positions.
template <class T>
std::vector<Band> Squares<T>::bands(std::int64_t positions) const {
  const std::int64_t height = l_.geometry.vertical.output, width = l_.geometry.horizontal.output;
  if (!is_pointwise()) return {band({0, height}, {0, width})};
  const std::int64_t columns = std::clamp<std::int64_t>(positions, 1, std::max<std::int64_t>(1, width));
  const std::int64_t lines = std::max<std::int64_t>(1, positions / columns);
  std::vector<Band> list;
  for (std::int64_t h = 0; h < std::max<std::int64_t>(1, height); h += lines) {
    for (std::int64_t w = 0; w < std::max<std::int64_t>(1, width); w += columns) {
      list.push_back(band({h, std::min(height, h + lines)}, {w, std::min(width, w + columns)}));
      list.back().first = list.size() == 1;
      list.back().last = false;
    }
  }
  list.back().last = true;
  return list;
}

/// One task of those to pack `examples`, as units from 0.
template <class T>
void Squares<T>::pack(const Band& band, const Range& examples, std::int64_t task, const Packed<T>& packed) const {
  const std::int64_t unit = task / tasks(band), part = task % tasks(band), x_tasks = l_.x_packer->tasks(band.x);
  if (part < x_tasks) {
    l_.x_packer->pack(nth(band.x, examples.begin + unit), part, packed.x.get() + unit * x_step(band));
  } else {
    l_.g_packer->pack(nth(band.g, examples.begin + unit), part - x_tasks, packed.g.get() + unit * g_step(band));
  }
}

/// Adds to the squares of some units, or where they are not yet complete to their gradient.
template <class T>
void Squares<T>::add(const Item& item, const Band& band, const Packed<T>& packed, const Range& units, T* sums,
                     T* partial) const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const std::int64_t x_panel = band.x.positions() * x.width, g_panel = band.g.positions() * g.width;
  const bool whole = band.lists == 1 && band.first && band.last;
  const std::int64_t read = std::max<std::int64_t>(1, bytes(x_panel + g_panel));
  const std::int64_t together = whole ? std::max<std::int64_t>(1, kReread / read) : 1;
  const auto add = l_.products == Products::kLanes ? l_.gradients.add_lanes : l_.gradients.add;
  GradientTask<T> task{};
  task.g_width = g.width;
  task.x_width = x.width;
  task.g_example = g_step(band);
  task.x_example = x_step(band);
  task.step = l_.geometry.horizontal.stride;
  task.rows = item.rows.size();
  task.columns = x.panel_channels(item.bundle, item.j);
  for (std::int64_t n = units.begin; n < units.end; n += together) {
    task.examples = std::min(together, units.end - n);
    task.g = packed.g.get() + n * task.g_example + (item.bundle * g.panels + item.i) * g_panel + item.rows.begin;
    task.x = packed.x.get() + n * task.x_example + (item.bundle * x.panels + item.j) * x_panel;
    for (std::int64_t l = 0; l < band.lists; ++l) {
      for (std::int64_t k = item.offsets.begin; k < item.offsets.end; ++k) {
        const OffsetRuns& offset = band.offsets[static_cast<std::size_t>(k)];
        if (l >= offset.lists()) continue;
        const std::int64_t tile = (k - item.offsets.begin) * padded_rows(item) * tile_width();
        task.runs = offset.begin(l);
        task.runs_end = offset.begin(l + 1);
        task.line = (k - item.offsets.begin) * ceil_div(task.rows, l_.simd.tile_rows);
        task.fresh = band.first && l == 0;
        task.partial = partial + tile;
        task.squares = band.last && l + 1 == offset.lists() ? sums + tile : nullptr;
        add(task);
      }
    }
  }
}

/// Few sums: each slice of the examples has its own, packed and summed by one thread, added up and written at the end.
template <class T>
void Squares<T>::sum_slices(std::int64_t slices) {
  const std::int64_t position = bytes(l_.x_tiling.channels_per_position() + l_.g_tiling.channels_per_position());
  const std::vector<Band> bands = this->bands(tuning_.own / position);
  const std::int64_t example = bytes(x_step(bands.front()) + g_step(bands.front()));
  const std::int64_t chunk =
      bands.size() > 1 ? 1 : std::clamp<std::int64_t>(tuning_.own / std::max<std::int64_t>(1, example), 1, kExamples);
  const Buffer<T> totals = make_buffer<T>(slices * sums_);
  for_each(parallel_for_, slices, [&](std::int64_t slice) {
    const Range mine{l_.examples * slice / slices, l_.examples * (slice + 1) / slices};
    const Packed<T> packed = room(bands.front(), chunk);
    const Buffer<T> later = make_buffer<T>(mine.size() > kExamples ? sums_ : 0), partial = make_buffer<T>(sums_);
    T* total = totals.get() + slice * sums_;
    std::fill(total, total + sums_, T(0));
    for (std::int64_t begin = mine.begin; begin < mine.end; begin += kExamples) {
      const std::int64_t end = std::min(mine.end, begin + kExamples);
      T* sums = begin == mine.begin ? total : later.get();
      if (sums != total) std::fill(sums, sums + sums_, T(0));
      for (std::int64_t n = begin; n < end; n += chunk) {
        const Range examples{n, std::min(end, n + chunk)};
        for (const Band& band : bands) {
          for (std::int64_t task = 0; task < examples.size() * tasks(band); ++task) pack(band, examples, task, packed);
          for (const Item& item : items_) {
            add(item, band, packed, {0, examples.size()}, sums + item.at, partial.get() + item.at);
          }
        }
      }
      for (std::int64_t i = 0; sums != total && i < sums_; ++i) total[i] += sums[i];
    }
  });
  for_each(parallel_for_, static_cast<std::int64_t>(items_.size()), [&](std::int64_t i) {
    const Item& item = items_[static_cast<std::size_t>(i)];
    T* total = totals.get() + item.at;
    for (std::int64_t slice = 1; slice < slices; ++slice) {
      const T* part = total + slice * sums_;
      for (std::int64_t s = 0; s < size(item); ++s) total[s] += part[s];
    }
    write(item, total, true);
  });
}

template <class T>
void Squares<T>::sum_chunk(const Band& band, const Range& examples, const Packed<T>& packed, bool first) const {
  for_each(parallel_for_, examples.size() * tasks(band),
           [&](std::int64_t task) { pack(band, examples, task, packed); });
  for_each(parallel_for_, static_cast<std::int64_t>(items_.size()), [&](std::int64_t i) {
    const Item& item = items_[static_cast<std::size_t>(i)];
    const std::int64_t size = this->size(item);
    const Buffer<T> buffer = make_buffer<T>(3 * size);
    T *total = buffer.get(), *sums = total + size, *partial = sums + size;
    std::fill(total, sums, T(0));
    for (std::int64_t begin = 0; begin < examples.size(); begin += kExamples) {
      const Range units{begin, std::min(examples.size(), begin + kExamples)};
      if (begin == 0) {
        add(item, band, packed, units, total, partial);
        continue;
      }
      std::fill(sums, partial, T(0));
      add(item, band, packed, units, sums, partial);
      for (std::int64_t s = 0; s < size; ++s) total[s] += sums[s];
    }
    write(item, total, first);
  });
}

/// Many sums: all threads share the packed examples of a chunk, and one of them adds up all squares of an item.
template <class T>
void Squares<T>::sum_chunks() {
  const std::int64_t height = l_.geometry.vertical.output, width = l_.geometry.horizontal.output;
  const Band band = this->band({0, height}, {0, width});
  const std::int64_t example = std::max<std::int64_t>(1, bytes(x_step(band) + g_step(band)));
  const std::int64_t chunk =
      std::clamp<std::int64_t>(tuning_.packed / example, 1, std::max<std::int64_t>(1, l_.examples));
  const Packed<T> packed = room(band, chunk);
  for (std::int64_t begin = 0; begin == 0 || begin < l_.examples; begin += chunk) {
    sum_chunk(band, {begin, std::min(l_.examples, begin + chunk)}, packed, begin == 0);
  }
}

template <class T>
void Squares<T>::run(std::vector<WeightPair> only) {
  only_ = std::move(only);
  std::sort(only_.begin(), only_.end());
  list_items(true);
  const std::int64_t slices = std::min(kSlices, l_.examples);
  if (slices >= kSlices / 4 && bytes(slices * sums_) <= tuning_.sums) {
    sum_slices(slices);
  } else {
    list_items(false);
    sum_chunks();
  }
}

}  // namespace

template <class T>
void add_squared_gradients(const Layer<T>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (tiles_pay(layer, tuning)) {
      const std::vector<WeightPair> left_out = sum_tile_squares(layer, parallel_for, tuning);
      if (!left_out.empty()) Squares<T>(layer, parallel_for, tuning).run(left_out);
      return;
    }
  }
  Squares<T>(layer, parallel_for, tuning).run({});
}

template void add_squared_gradients(const Layer<float>&, const ParallelFor&, const GradientTuning&);
template void add_squared_gradients(const Layer<double>&, const ParallelFor&, const GradientTuning&);

}  // namespace eigendamage::cpu
