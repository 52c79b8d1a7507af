#include "spectral.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <vector>

#include "fourier.h"
#include "output.h"
#include "parallel.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation, as in gram.cpp. At the last frequency all numbers of a sum may have one sign.
constexpr std::int64_t kListed = 32, kListedOneSided = 16;
constexpr std::int64_t kTogether = 16;     // frequencies whose sums stay in the cache until they are transformed
constexpr std::int64_t kTasks = 24;        // enough to share for all threads to end together
constexpr std::int64_t kPacked = 1 << 17;  // bytes of pixels that a thread transforms together
constexpr std::int64_t kSums = 6 << 20;    // bytes of sums of all slices

std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

/// Of one panel's channels, an image with the others left out, and how it is laid into that panel.
struct PanelView {
  ImageView x;
  Tiling tiling;
};

PanelView panel_view(const ImageView& x, const Tiling& tiling, std::int64_t bundle, std::int64_t panel) {
  const std::int64_t first = panel * tiling.width;
  const std::int64_t channels = std::clamp<std::int64_t>(tiling.bundle_channels(bundle) - first, 0, tiling.width);
  PanelView view{x, {1, channels, false, 1, 1, tiling.width, 1}};
  const std::int64_t skipped = bundle * tiling.bundle_groups * tiling.channels + first;
  if (channels > 0) view.x.data = static_cast<const char*>(x.data) + skipped * x.channel_stride * bytes_of(x.type);
  view.x.channels = channels;
  return view;
}

template <class T>
class Spectra {
 public:
  explicit Spectra(const SpectralProblem<T>& problem);
  void run();

 private:
  struct Task {
    PanelPair pair;
    std::int64_t slice;
  };

  /// body(i, numbers of the thread's own) for every i < items.
  template <class Body>
  void for_each_with(std::int64_t numbers, std::int64_t items, const Body& body) const {
    std::atomic<std::int64_t> next{0};
    p_.parallel_for(items, [&](std::int64_t, std::int64_t) {
      const Buffer<T> scratch = make_buffer<T>(numbers);
      for (std::int64_t i = next++; i < items; i = next++) body(i, scratch.get());
    });
  }
  T transform_panel(std::int64_t panel, const Range& images, T* scratch) const;
  void copy_border(std::int64_t panel, const Range& images, const T* pixels) const;
  void add_up(const Task& task, T* scratch, T* slice_sums, T* sums) const;
  void correlate(const PanelPair& pair, const Range& frequencies, T* scratch, T* sums) const;
  void add_products(const PanelPair& pair, const Range& frequencies, T* products, bool first, T* lags) const;
  void split_lags(const PanelPair& pair, const T* lags, T* sums) const;
  void mirror_lags(T* sums) const;
  void set_constant(const Task& task, T* sums) const;
  void subtract_border(const PanelPair& pair, std::int64_t group, T* sums) const;
  bool sum_batch();

  const Plan& plan() const { return p_.plan.plan; }
  const LagGroup& group(std::int64_t g) const { return plan().groups[static_cast<std::size_t>(g)]; }
  std::int64_t images() const { return x_.batch; }
  std::int64_t positive_lags() const { return count(plan().groups) - plan().zero_lag.begin; }
  std::int64_t slot_size() const { return width_ * width_ + kMaxLanes; }
  std::int64_t lag_row() const { return 2 * lag_lines_ * 2 * p_.simd.lanes; }  ///< of all lags' cosines, then sines
  Range needed_groups(const PanelPair& pair) const {
    if (only_constant(pair)) return plan().zero_lag;
    return {pair.i == pair.j ? plan().zero_lag.begin : 0, count(plan().groups)};
  }
  bool only_constant(const PanelPair& pair) const { return p_.tiling.constant_place(pair.bundle, pair.j) == 0; }
  std::int64_t channels(const PanelPair& pair, std::int64_t panel) const {
    const std::int64_t constant = p_.tiling.constant_place(pair.bundle, panel);
    return constant >= 0 ? constant : p_.tiling.panel_channels(pair.bundle, panel);
  }
  T* spectrum(std::int64_t panel, std::int64_t frequency) const {
    return spectra_.get() + (panel * frequencies_.count() + frequency) * images() * 2 * width_;
  }
  T* border(std::int64_t panel) const { return border_.get() + panel * p_.plan.border_positions() * images() * width_; }
  std::int64_t panel(const PanelPair& pair, std::int64_t i) const { return pair.bundle * p_.tiling.panels + i; }

  const SpectralProblem<T> p_;
  const std::int64_t width_, area_;
  const Frequencies frequencies_;
  const Fourier<T> fourier_;
  ImageView x_;  ///< the batch at hand
  std::optional<OutputWriter<T>> writer_;
  std::int64_t together_, lag_lines_, slices_ = 1;
  std::vector<T> cosines_, sines_;  ///< (frequencies, lag_lines_): of the positive lags, with the weight of a frequency
  const PanelPairs pairs_;
  Buffer<T> spectra_, border_;
};

template <class T>
Spectra<T>::Spectra(const SpectralProblem<T>& problem)
    : p_(problem),
      width_(p_.tiling.width),
      area_(p_.plan.rows * p_.plan.columns),
      frequencies_(p_.plan.rows, p_.plan.columns),
      fourier_(p_.spectral, p_.simd.tile_rows, plan().height, plan().width, p_.plan.rows, p_.plan.columns),
      pairs_(panel_pairs(p_.tiling)) {
  const std::int64_t rows = p_.plan.rows, columns = p_.plan.columns;
  lag_lines_ = (positive_lags() + p_.simd.tile_rows - 1) / p_.simd.tile_rows * p_.simd.tile_rows;
  cosines_.resize(static_cast<std::size_t>(frequencies_.count() * lag_lines_));
  sines_.resize(cosines_.size());
  std::vector<double> cosine(static_cast<std::size_t>(area_)), sine(cosine.size());
  for (std::int64_t i = 0; i < area_; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(area_);
    cosine[static_cast<std::size_t>(i)] = std::cos(angle);
    sine[static_cast<std::size_t>(i)] = std::sin(angle);
  }
  for (std::int64_t f = 0; f < frequencies_.count(); ++f) {
    const auto [down, across, real] = frequencies_[f];
    for (std::int64_t l = 0; l < positive_lags(); ++l) {
      const LagGroup& lag = group(plan().zero_lag.begin + l);
      const std::int64_t turns = down * lag.down * columns + across * lag.right * rows;
      const auto angle = static_cast<std::size_t>((turns % area_ + area_) % area_);
      const auto at = static_cast<std::size_t>(f * lag_lines_ + l);
      cosines_[at] = static_cast<T>((real ? 1 : 2) * cosine[angle]);
      sines_[at] = static_cast<T>((real ? 1 : 2) * sine[angle]);
    }
  }
  const std::int64_t bytes =
      count(pairs_.list) * count(plan().slots) * slot_size() * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t wanted =
      std::min((kTasks + count(pairs_.list) - 1) / count(pairs_.list), frequencies_.count() / kTogether);
  slices_ = std::clamp<std::int64_t>(std::min(wanted, kSums / bytes), 1, kTasks);
  const std::int64_t panels = p_.tiling.bundles * p_.tiling.panels;
  const std::int64_t of_image = panels * frequencies_.count() * 2 * width_;
  const std::int64_t of_border = panels * p_.plan.border_positions() * width_;
  const std::int64_t fitting = p_.bytes / ((of_image + of_border) * static_cast<std::int64_t>(sizeof(T)));
  together_ = std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(1, p_.x.batch));
  spectra_ = make_buffer<T>(of_image * together_);
  border_ = make_buffer<T>(of_border * together_);
}

/// Of some images; the largest number of them.
template <class T>
T Spectra<T>::transform_panel(std::int64_t panel, const Range& images, T* scratch) const {
  const std::int64_t size = plan().height * plan().width * images.size() * width_;
  const PanelView view = panel_view(x_, p_.tiling, panel / p_.tiling.panels, panel % p_.tiling.panels);
  if (view.tiling.channels == 0) {
    std::fill_n(scratch, size, T(0));
    copy_border(panel, images, scratch);
    return 0;
  }
  const auto packer = pack_pixels(p_.simd, view.x, view.tiling);
  const Range rows{0, plan().height}, columns{0, plan().width};
  const Box box{images, rows, columns, rows, columns};
  for (std::int64_t task = 0; task < packer->tasks(box); ++task) packer->pack(box, task, scratch);
  fourier_.transform(frequencies_, scratch, images.size(), width_, scratch + size, this->images() * 2 * width_,
                     spectrum(panel, 0) + images.begin * 2 * width_);
  copy_border(panel, images, scratch);
  return p_.spectral.largest(scratch, size);
}

template <class T>
void Spectra<T>::copy_border(std::int64_t panel, const Range& images, const T* pixels) const {
  const std::int64_t constant = p_.tiling.constant_place(panel / p_.tiling.panels, panel % p_.tiling.panels);
  const std::int64_t pixel = images.size() * width_;
  T* out = border(panel) + images.begin * width_;
  const auto copy = [&](std::int64_t row, std::int64_t column) {
    std::copy_n(pixels + (row * plan().width + column) * pixel, pixel, out);
    for (std::int64_t i = 0; constant >= 0 && i < pixel; i += width_) out[i + constant] = 1;
    out += this->images() * width_;
  };
  for (const std::int64_t row : p_.plan.lines_across) {
    for (std::int64_t column = 0; column < plan().width; ++column) copy(row, column);
  }
  for (const std::int64_t column : p_.plan.lines_down) {
    for (std::int64_t row = 0; row < plan().height; ++row) copy(row, column);
  }
}

/// Adds the products of frequencies, transformed, to the sums of a row's lags.
template <class T>
void Spectra<T>::add_products(const PanelPair& pair, const Range& frequencies, T* products, bool first, T* lags) const {
  const std::int64_t rows = channels(pair, pair.i), lanes = p_.simd.lanes;
  const std::int64_t columns = p_.tiling.panel_channels(pair.bundle, pair.j);
  const std::int64_t tile = slot_size();
  const bool upper = pair.i == pair.j;
  for (std::int64_t f = frequencies.begin; f < frequencies.end; ++f) {
    T* re = products + (f - frequencies.begin) * 2 * tile;
    const std::int64_t listed = f + 1 == frequencies_.count() ? kListedOneSided : kListed;
    for (std::int64_t n = 0; n < images(); n += listed) {
      p_.spectral.correlate(spectrum(panel(pair, pair.i), f) + n * 2 * width_,
                            spectrum(panel(pair, pair.j), f) + n * 2 * width_, width_, std::min(listed, images() - n),
                            rows, columns, upper, frequencies_[f].real, n == 0, re, re + tile);
    }
  }
  const PairedRun run{0, 0, frequencies.size()};
  for (std::int64_t r = 0; r < rows; ++r) {
    for (const bool turned : {false, true}) {
      const std::int64_t skipped = upper && r >= lanes ? lanes : 0;
      GradientTask<T> task{};
      task.g = (turned ? sines_ : cosines_).data() + frequencies.begin * lag_lines_;
      task.g_width = lag_lines_;
      task.x = products + turned * tile + r * width_ + skipped;
      task.x_width = 2 * tile;
      task.examples = task.step = 1;
      task.runs = &run;
      task.runs_end = &run + 1;
      task.rows = positive_lags();
      task.columns = columns - skipped;
      task.fresh = first;
      task.partial = lags + r * lag_row() + turned * lag_row() / 2 + skipped;
      if (task.columns > 0) p_.products.add(task);
    }
  }
}

/// The sum of lag l is Σ re·cos − im·sin, that of −l has a plus.
template <class T>
void Spectra<T>::split_lags(const PanelPair& pair, const T* lags, T* sums) const {
  const std::int64_t last = count(plan().groups) - 1;
  for (std::int64_t r = 0; r < channels(pair, pair.i); ++r) {
    for (std::int64_t l = 0; l < positive_lags(); ++l) {
      const T *cosines = lags + r * lag_row() + l * 2 * p_.simd.lanes, *sines = cosines + lag_row() / 2;
      const std::int64_t g = plan().zero_lag.begin + l;
      T* minus = sums + g * slot_size() + r * width_;
      T* plus = sums + (last - g) * slot_size() + r * width_;
      p_.spectral.split(cosines, sines, width_, minus, plus);
    }
  }
}

/// Of a panel against itself only entries r ≤ c are summed: those of lag l with r > c are those of −l on the other side.
template <class T>
void Spectra<T>::mirror_lags(T* sums) const {
  const std::int64_t last = count(plan().groups) - 1, lanes = p_.simd.lanes;
  for (std::int64_t g = plan().zero_lag.end; g <= last; ++g) {
    T* lag = sums + g * slot_size();
    const T* opposite = sums + (last - g) * slot_size();
    for (std::int64_t r = lanes; r < width_; ++r) {
      for (std::int64_t c = 0; c < lanes; ++c) lag[r * width_ + c] = opposite[c * width_ + r];
    }
  }
}

template <class T>
void Spectra<T>::correlate(const PanelPair& pair, const Range& frequencies, T* scratch, T* sums) const {
  T* lags = scratch + kTogether * 2 * slot_size();
  for (std::int64_t f = frequencies.begin; f < frequencies.end; f += kTogether) {
    add_products(pair, {f, std::min(frequencies.end, f + kTogether)}, scratch, f == frequencies.begin, lags);
  }
  split_lags(pair, lags, sums);
  if (pair.i == pair.j && width_ > p_.simd.lanes) mirror_lags(sums);
}

/// The sum of every channel, where the panel has the constant: all of it in the slice with the mean's frequency.
template <class T>
void Spectra<T>::set_constant(const Task& task, T* sums) const {
  const PanelPair& pair = task.pair;
  const std::int64_t constant = p_.tiling.constant_place(pair.bundle, pair.j);
  const T* line = spectrum(panel(pair, pair.i), frequencies_.count() - 1);
  for (std::int64_t r = 0; r < channels(pair, pair.i); ++r) {
    double sum = 0;
    for (std::int64_t n = 0; n < images(); ++n) sum += static_cast<double>(line[n * 2 * width_ + r]);
    sums[plan().zero_lag.begin * slot_size() + r * width_ + constant] =
        task.slice + 1 == slices_ ? static_cast<T>(sum * static_cast<double>(area_)) : T(0);
  }
}

template <class T>
void Spectra<T>::subtract_border(const PanelPair& pair, std::int64_t g, T* sums) const {
  const bool upper = pair.i == pair.j && g == plan().zero_lag.begin;
  const std::int64_t line = images() * width_, columns = p_.tiling.panel_channels(pair.bundle, pair.j);
  const T *a = border(panel(pair, pair.i)), *b = border(panel(pair, pair.j));
  Ahead none;
  for (std::int64_t slot = group(g).slots.begin; slot < group(g).slots.end; ++slot) {
    bool fresh = true;
    for (const BorderRun& run : p_.plan.runs[static_cast<std::size_t>(slot)]) {
      for (std::int64_t p = 0; p < run.count * images(); p += kListed, fresh = false) {
        const Run listed{p, std::min(kListed, run.count * images() - p), 1};
        p_.simd.gram(a + run.a * line, b + run.b * line, width_, &listed, 1, {0, channels(pair, pair.i)}, columns,
                     upper, static_cast<T>(-area_), fresh, sums + slot * slot_size(), none);
      }
    }
  }
}

/// The sums over the whole image at a slice of the frequencies, and some of the border's.
template <class T>
void Spectra<T>::add_up(const Task& task, T* scratch, T* slice_sums, T* sums) const {
  const auto& [pair, slice] = task;
  const Range zero = plan().zero_lag;
  const std::int64_t begin = frequencies_.count() * slice / slices_, end = frequencies_.count() * (slice + 1) / slices_;
  if (only_constant(pair)) {
    std::fill_n(slice_sums + zero.begin * slot_size(), slot_size(), T(0));
  } else {
    correlate(pair, {begin, end}, scratch, slice_sums);
  }
  if (p_.tiling.constant_place(pair.bundle, pair.j) >= 0) set_constant(task, slice_sums);
  const Range groups = needed_groups(pair);
  for (std::int64_t g = groups.begin; g < groups.end; ++g) {
    if (g % slices_ == slice) subtract_border(pair, g, sums);
  }
}

/// Adds a batch to the output. False, and nothing is written, where its numbers are too large.
template <class T>
bool Spectra<T>::sum_batch() {
  const std::int64_t panels = p_.tiling.bundles * p_.tiling.panels, pixels = plan().height * plan().width;
  const double terms = 8 * static_cast<double>(area_) * static_cast<double>(area_) * static_cast<double>(images());
  const double largest = std::sqrt(static_cast<double>(std::numeric_limits<T>::max()) / terms);
  std::atomic<bool> fits{true};
  const std::int64_t fitting = kPacked / (pixels * width_ * static_cast<std::int64_t>(sizeof(T)));
  const std::vector<Range> groups_of_images = split(images(), std::min(fitting, panels * images() / kTasks));
  const std::int64_t numbers = groups_of_images.back().size() * width_;
  for_each_with(pixels * numbers + fourier_.scratch(numbers), panels * count(groups_of_images),
                [&](std::int64_t i, T* scratch) {
                  const Range& some = groups_of_images[static_cast<std::size_t>(i % count(groups_of_images))];
                  const T found = transform_panel(i / count(groups_of_images), some, scratch);
                  if (!(static_cast<double>(found) < largest)) fits = false;
                });
  if (!fits) return false;

  const std::int64_t groups = count(plan().groups), size = count(plan().slots) * slot_size();
  const std::int64_t scratch_size = kTogether * 2 * slot_size() + width_ * lag_row() + kMaxLanes;
  if (slices_ == 1) {
    for_each_with(scratch_size + size, count(pairs_.list), [&](std::int64_t i, T* scratch) {
      const PanelPair& pair = pairs_.list[static_cast<std::size_t>(i)];
      T* sums = scratch + scratch_size;
      add_up({pair, 0}, scratch, sums, sums);
      writer_->write({pair, {0, channels(pair, pair.i)}, true}, sums, slot_size(), true, true);
    });
  } else {
    const std::int64_t slice_size = groups * slot_size(), pair_size = size + (slices_ - 1) * slice_size;
    const Buffer<T> sums = make_buffer<T>(count(pairs_.list) * pair_size);
    for_each_with(scratch_size, count(pairs_.list) * slices_, [&](std::int64_t i, T* scratch) {
      const std::int64_t slice = i % slices_;
      T* of_pair = sums.get() + i / slices_ * pair_size;
      T* of_slice = slice == 0 ? of_pair : of_pair + size + (slice - 1) * slice_size;
      add_up({pairs_.list[static_cast<std::size_t>(i / slices_)], slice}, scratch, of_slice, of_pair);
    });
    std::vector<Strip> strips;
    for (const PanelPair& pair : pairs_.list) strips.push_back({pair, {0, channels(pair, pair.i)}, true});
    writer_->write_all(strips, slot_size(), p_.parallel_for, [&](std::int64_t i, const Range& rows) {
      T* total = sums.get() + i * pair_size + rows.begin * width_;
      const Range needed = needed_groups(pairs_.list[static_cast<std::size_t>(i)]);
      for (std::int64_t slice = 1; slice < slices_; ++slice) {
        const T* part = total + size + (slice - 1) * slice_size;
        for (std::int64_t first = needed.begin * slot_size(); first < needed.end * slot_size(); first += slot_size())
          p_.simd.add(total + first, part + first, rows.size() * width_);
      }
      return total;
    });
  }
  if (p_.tiling.constant) writer_->write_corner(static_cast<double>(images() * plan().outputs * area_));
  return true;
}

template <class T>
void Spectra<T>::run() {
  Update update = p_.update;
  for (const Range& images : split(p_.x.batch, together_)) {
    x_ = p_.x;
    x_.batch = images.size();
    x_.data = static_cast<const char*>(p_.x.data) + images.begin * p_.x.batch_stride * bytes_of(p_.x.type);
    writer_.emplace(p_.simd, plan(), p_.tiling, Update{update.alpha / static_cast<double>(area_), update.beta}, p_.out,
                    p_.around, p_.parallel_for);
    if (!sum_batch()) p_.otherwise(x_, update);
    update.beta = 1;
  }
}

}  // namespace

template <class T>
void sum_spectra(const SpectralProblem<T>& problem) {
  Spectra<T>(problem).run();
}

template void sum_spectra(const SpectralProblem<float>&);
template void sum_spectra(const SpectralProblem<double>&);

}  // namespace eigendamage::cpu
