#include "output.h"

#include <algorithm>
#include <vector>

#include "pages.h"
#include "parallel.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kAside = 1 << 19;        // bytes of a strip
constexpr std::int64_t kFewest = 4, kMost = 8;  // panels of a block
constexpr std::int64_t kTasks = 20;             // enough to share for all threads to end together
constexpr std::int64_t kFewPairs = 10;          // fewer are written in parts
constexpr std::int64_t kWritten = 1 << 14;      // numbers of the output that are worth a task
constexpr std::int64_t kLines = 2;              // vectors of lines that are worth one, mirrored

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

}  // namespace

PanelPairs panel_pairs(const Tiling& tiling) {
  PanelPairs pairs{{}, {}, std::clamp<std::int64_t>(tiling.panels / 8, kFewest, kMost)};
  const auto block = [&](std::int64_t bundle, std::int64_t top, std::int64_t left, bool diagonal) {
    const auto begin = static_cast<std::int64_t>(pairs.list.size());
    for (std::int64_t i = top; i < std::min(tiling.panels, top + pairs.few); ++i) {
      if (tiling.constant_place(bundle, i) == 0) continue;
      for (std::int64_t j = std::max(i, left); j < std::min(tiling.panels, left + pairs.few); ++j) {
        if ((i == j) == diagonal) pairs.list.push_back({bundle, i, j});
      }
    }
    const auto end = static_cast<std::int64_t>(pairs.list.size());
    if (begin < end) pairs.blocks.push_back({begin, end});
  };
  for (const bool diagonal : {false, true}) {
    for (std::int64_t bundle = 0; bundle < tiling.bundles; ++bundle) {
      for (std::int64_t top = 0; top < tiling.panels; top += pairs.few) {
        for (std::int64_t left = top; left < (diagonal ? top + 1 : tiling.panels); left += pairs.few) {
          block(bundle, top, left, diagonal);
        }
      }
    }
  }
  return pairs;
}

template <class T>
OutputWriter<T>::OutputWriter(const PanelKernels<T>& simd, const Plan& plan, const Tiling& tiling, const Update& update,
                              const FactorView& out, std::int64_t around, const ParallelFor& parallel_for)
    : simd_(simd), plan_(plan), tiling_(tiling), update_(update), out_(out) {
  const std::int64_t lines = std::min(tiling.width, tiling.bundle_groups * tiling.channels) * plan.offsets;
  for (std::int64_t i = 0; i < lines; ++i)
    ranks_.push_back(static_cast<T>(i % plan.offsets * tiling.width + i / plan.offsets));
  if (update.beta != 0) return;
  const auto bytes = static_cast<std::size_t>(row(out.groups - 1, out.size - 1) + out.size - row(0, 0)) * sizeof(T);
  use_huge_pages(out.data, bytes);
  const auto vector = static_cast<std::size_t>(simd.lanes) * sizeof(T);
  around_ = plan.offsets > 1 && bytes >= static_cast<std::size_t>(around) &&
            reinterpret_cast<std::uintptr_t>(out.data) % vector == 0 &&
            (out.row_stride | out.group_stride) % simd.lanes == 0;
  if (around_) populate(out.data, bytes, parallel_for);
}

template <class T>
void OutputWriter<T>::write(const Strip& strip, const T* sums, std::int64_t slot_size, bool first, bool last) const {
  if (first && last && write_around(strip, sums, slot_size)) return;
  add(strip.pair, strip.rows, sums, slot_size, first ? update_.beta : 1);
  if (!last) return;
  if (strip.pair.i < strip.pair.j) {
    mirror(strip.pair, strip.rows);
  } else if (strip.whole) {
    mirror_diagonal(strip.pair, {0, count(ranks_)});
  }
}

/// Row k1 of the blocks of a channel.
template <class T>
void OutputWriter<T>::combine(const T* sums, std::int64_t k1, const Range& offsets, std::int64_t slot_size,
                              T* entries) const {
  simd_.combine(sums, plan_.terms.data(), plan_.blocks.data() + k1 * plan_.offsets + offsets.begin, offsets.size(),
                slot_size, tiling_.width, plan_.offsets, entries + offsets.begin);
}

/// A large result is in no cache, and reading the lines that are to be replaced would take longer than writing them: whole
/// strips of it are put together aside. False where they are not of whole vectors, or are too large for a cache.
template <class T>
bool OutputWriter<T>::write_around(const Strip& strip, const T* sums, std::int64_t slot_size) const {
  const auto& [pair, rows, whole] = strip;
  const std::int64_t width = tiling_.width, kernel = plan_.offsets, lanes = simd_.lanes;
  if (!around_ || pair.i == pair.j || tiling_.constant_place(pair.bundle, pair.j) >= 0) return false;
  const std::int64_t from = (pair.i * width + rows.begin) * kernel, to = pair.j * width * kernel;
  const std::int64_t height = rows.size() * kernel,
                     across = std::min(width, tiling_.channels - pair.j * width) * kernel;
  const std::int64_t step = across + lanes;  // no power of two
  if ((from | height | across) % lanes != 0 || height * step * static_cast<std::int64_t>(sizeof(T)) > kAside)
    return false;
  T *const out = row(pair.bundle, from) + to, *const mirrored = row(pair.bundle, to) + from;
  const Buffer<T> aside = make_buffer<T>(height * step), entries = make_buffer<T>(width * kernel + kMaxLanes);
  for (std::int64_t r = 0; r < height; ++r) {
    T* const line = aside.get() + r * step;
    combine(sums + r / kernel * width, r % kernel, {0, kernel}, slot_size, entries.get());
    simd_.update(line, entries.get(), across, update_.alpha, 0);
  }
  simd_.write_around(aside.get(), height, across, step, out, mirrored, out_.row_stride);
  return true;
}

template <class T>
void OutputWriter<T>::add(const PanelPair& pair, const Range& rows, const T* sums, std::int64_t slot_size,
                          double beta) const {
  if (is_one_sum(pair)) return add_one_sum(pair, rows, sums, beta);
  const std::int64_t width = tiling_.width, channels = tiling_.channels, kernel = plan_.offsets;
  const std::int64_t constant = tiling_.constant_place(pair.bundle, pair.j);
  std::vector<T> entries(
      static_cast<std::size_t>(width * kernel + kMaxLanes));  // of one row, in the order of the output
  for (std::int64_t r = rows.begin; r < rows.end; ++r, sums += width) {
    const std::int64_t bundle_group = (pair.i * width + r) / channels;
    const std::int64_t group = pair.bundle * tiling_.bundle_groups + bundle_group;
    const std::int64_t channel = pair.i * width + r - bundle_group * channels;
    const std::int64_t origin = bundle_group * channels - pair.j * width;  // of the group's channels in panel j
    const std::int64_t begin = std::max<std::int64_t>(0, origin);
    const std::int64_t end = std::clamp<std::int64_t>(origin + channels, 0, width);
    for (std::int64_t k1 = 0; k1 < kernel; ++k1) {
      T* out = row(group, channel * kernel + k1);
      const std::int64_t first_offset = pair.i == pair.j || constant == 0 ? k1 : 0;
      const std::int64_t offsets = constant == 0 ? 1 : kernel - first_offset;
      combine(sums, k1, {first_offset, first_offset + offsets}, slot_size, entries.data());
      if (constant != 0) {
        simd_.update(out + (begin - origin) * kernel, entries.data() + begin * kernel, (end - begin) * kernel,
                     update_.alpha, beta);
      }
      if (constant >= 0) {
        T* corner = out + out_.size - 1;
        simd_.update(corner, entries.data() + constant * kernel + k1, 1, update_.alpha, beta);
        row(group, out_.size - 1)[channel * kernel + k1] = *corner;
      }
    }
  }
}

/// Whether an entry of the output is one of the sums, and a row of panel i nothing but a row of them.
template <class T>
bool OutputWriter<T>::is_one_sum(const PanelPair& pair) const {
  return plan_.offsets == 1 && plan_.slots.size() == 1 && plan_.terms.size() == 1 && tiling_.bundle_groups == 1 &&
         tiling_.constant_place(pair.bundle, pair.j) < 0;
}

/// Fetches all lines at once, those of the mirror too: they are far apart, and a new result is in no cache.
template <class T>
void OutputWriter<T>::add_one_sum(const PanelPair& pair, const Range& rows, const T* sums, double beta) const {
  const std::int64_t width = tiling_.width, from = pair.i * width, to = pair.j * width;
  const std::int64_t columns = std::clamp<std::int64_t>(tiling_.channels - to, 0, width);
  constexpr auto line = static_cast<std::int64_t>(64 / sizeof(T));
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    for (std::int64_t c = 0; c < columns; c += line) __builtin_prefetch(row(pair.bundle, from + r) + to + c, 1, 3);
  }
  for (std::int64_t c = 0; pair.i < pair.j && c < columns; ++c) {
    for (std::int64_t r = rows.begin; r < rows.end; r += line)
      __builtin_prefetch(row(pair.bundle, to + c) + from + r, 1, 3);
  }
  for (std::int64_t r = rows.begin; r < rows.end; ++r, sums += width)
    simd_.update(row(pair.bundle, from + r) + to, sums, columns, update_.alpha, beta);
}

template <class T>
void OutputWriter<T>::write_corner(double count) const {
  for (std::int64_t group = 0; group < out_.groups; ++group) {
    T& corner = row(group, out_.size - 1)[out_.size - 1];
    const double before = update_.beta == 0 ? 0 : update_.beta * static_cast<double>(corner);
    corner = static_cast<T>(before + update_.alpha * count);
  }
}

/// A few whole lines of `to` at a time: what is written side by side stays in the cache. The lines after them are fetched
/// ahead, for they are far apart and nothing else would foresee them.
template <class T>
void OutputWriter<T>::transpose(const T* from, T* to, std::int64_t rows, std::int64_t columns,
                                std::int64_t to_stride) const {
  const std::int64_t lanes = simd_.lanes, stride = out_.row_stride, whole = rows / lanes * lanes;
  const T* lines[kMaxLanes];
  for (std::int64_t c = 0; c < columns; c += lanes) {
    const std::int64_t count = std::min(lanes, columns - c);
    const bool more = c + 2 * lanes <= columns;
    for (std::int64_t r = 0; r < whole; r += lanes) {
      for (std::int64_t i = 0; i < lanes; ++i) {
        lines[i] = from + (r + i) * stride + c;
        if (more) __builtin_prefetch(to + (c + lanes + i) * to_stride + r, 1, 2);
      }
      simd_.interleave(lines, count, to_stride, nullptr, to + c * to_stride + r);
    }
    for (std::int64_t i = c; i < c + count; ++i) {
      for (std::int64_t r = whole; r < rows; ++r) to[i * to_stride + r] = from[r * stride + i];
    }
  }
}

/// Channels `rows` of panel i against those of panel j > i. (Several panels: the bundle is one group.)
template <class T>
void OutputWriter<T>::mirror(const PanelPair& pair, const Range& rows) const {
  const std::int64_t kernel = plan_.offsets, from = pair.i * tiling_.width + rows.begin, to = pair.j * tiling_.width;
  const std::int64_t columns = std::clamp<std::int64_t>(tiling_.channels - to, 0, tiling_.width);
  transpose(row(pair.bundle, from * kernel) + to * kernel, row(pair.bundle, to * kernel) + from * kernel,
            rows.size() * kernel, columns * kernel, out_.row_stride);
}

/// Lines `lines` of panel i, in pairs with those behind them.
template <class T>
void OutputWriter<T>::mirror_diagonal(const PanelPair& pair, const Range& lines) const {
  const std::int64_t kernel = plan_.offsets, first = pair.bundle * tiling_.bundle_groups;
  const std::int64_t begin = pair.i * tiling_.width;
  const std::int64_t size = (std::min(tiling_.channels, begin + tiling_.width) - begin) * kernel;
  const Range some{lines.begin, std::min(lines.end, size)};
  for (std::int64_t group = first; group < std::min(tiling_.groups, first + tiling_.bundle_groups); ++group) {
    simd_.mirror(row(group, begin * kernel) + begin * kernel, size, out_.row_stride, ranks_.data(), some);
  }
}

template <class T>
void OutputWriter<T>::mirror_diagonals(const std::vector<PanelPair>& pairs, const ParallelFor& parallel_for) const {
  const std::int64_t lines = kLines * simd_.lanes, most = (count(ranks_) + lines - 1) / lines;
  for_each(parallel_for, count(pairs) * most, [&](std::int64_t i) {
    const PanelPair& pair = pairs[static_cast<std::size_t>(i / most)];
    if (pair.i == pair.j) mirror_diagonal(pair, {i % most * lines, (i % most + 1) * lines});
  });
}

template <class T>
void OutputWriter<T>::write_all(const std::vector<Strip>& strips, std::int64_t slot_size,
                                const ParallelFor& parallel_for,
                                const std::function<const T*(std::int64_t strip, const Range& rows)>& sums) const {
  const std::int64_t width = tiling_.width, worth = kWritten / (width * plan_.offsets * plan_.offsets);
  const std::int64_t rows = count(strips) < kFewPairs ? std::clamp<std::int64_t>(worth, 1, width) : width;
  const std::int64_t parts = (width + rows - 1) / rows, all = count(strips) * parts;
  const std::vector<Range> runs = split(all, (all + kTasks - 1) / kTasks);
  for_each(parallel_for, count(runs), [&](std::int64_t run) {
    const Range& range = runs[static_cast<std::size_t>(run)];
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const Strip& strip = strips[static_cast<std::size_t>(i / parts)];
      const std::int64_t begin = i % parts * rows, end = std::min(strip.rows.end, begin + rows);
      if (begin >= end) continue;
      write({strip.pair, {begin, end}, parts == 1}, sums(i / parts, {begin, end}), slot_size, true, true);
    }
  });
  if (parts == 1) return;
  std::vector<PanelPair> pairs;
  for (const Strip& strip : strips) pairs.push_back(strip.pair);
  mirror_diagonals(pairs, parallel_for);
}

template class OutputWriter<float>;
template class OutputWriter<double>;

}  // namespace eigendamage::cpu
