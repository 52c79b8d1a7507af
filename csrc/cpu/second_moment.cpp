#include "second_moment.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gradients.h"
#include "panels.h"
#include "parallel.h"
#include "simd.h"

namespace eigendamage::cpu {
namespace {

// Levels of summation: positions in registers, register sums in a gradient's tile, squares of up to kExamples, those in the
// sums of a chunk, chunks in the output. A small weight has too few entries for their errors to average out.
constexpr std::int64_t kListed = 64, kListedSmall = 16, kSmall = 2048, kExamples = 64;
// Bytes of a thread: sums that it holds, and panels that it reads again and again.
constexpr std::int64_t kSums = 1 << 16, kReread = 64 << 10;
constexpr std::int64_t kItems = 32;  // enough to share for all threads to end together

/// The convolution that reads the pixel at each of its outputs.
constexpr ConvGeometry pointwise(std::int64_t height, std::int64_t width) {
  return {{1, 1, 0, 1, height}, {1, 1, 0, 1, width}};
}

/// A layer as it is packed.
template <class T>
struct Layer {
  const PanelKernels<T>& simd;
  const GradientKernels<T>& gradients;
  std::int64_t examples;
  const Tiling &x_tiling, &g_tiling;
  const Packer<T>&x_packer, &g_packer;
  std::int64_t x_height, x_width;  ///< the grid of x's positions
  ConvGeometry geometry;           ///< between the grids
  std::int64_t kernel_width;       ///< of the weight
  std::int64_t entries;            ///< kernel offsets among the channels of x: 1, or all where `geometry` is pointwise
  bool rows;                       ///< an example has one position, and all are the columns of one image
};

/// Rows of panel i of g against panel j of x under some kernel offsets.
struct Item {
  std::int64_t bundle, i, j;
  Range rows, offsets;
};

template <class T>
class SecondMoment {
 public:
  SecondMoment(const Layer<T>& layer, const Update& update, const WeightView& out, const ParallelFor& parallel_for,
               std::int64_t packed_bytes)
      : l_(layer),
        update_(update),
        out_(out),
        parallel_for_(parallel_for),
        packed_bytes_(packed_bytes),
        places_(places()) {}
  void run();

 private:
  /// What is packed as one: an example, or all of a chunk where they are rows.
  std::int64_t units(const Range& examples) const {
    return l_.rows ? std::min<std::int64_t>(1, examples.size()) : examples.size();
  }

  std::vector<Item> items() const;
  void lay_out(const Range& examples);
  void pack(const Range& examples);
  void sum(const Item& item, const Range& examples) const;
  void add_squares(const Item& item, const Range& units, T* sums, T* partial) const;
  void write(const Item& item, const T* sums, bool first) const;
  std::vector<std::int64_t> places() const;

  std::int64_t padded_rows(const Item& item) const {
    return (item.rows.size() + l_.simd.tile_rows - 1) / l_.simd.tile_rows * l_.simd.tile_rows;
  }
  static std::int64_t bytes(std::int64_t numbers) { return numbers * static_cast<std::int64_t>(sizeof(T)); }

  const Layer<T> l_;
  const Update update_;
  const WeightView out_;
  const ParallelFor& parallel_for_;
  const std::int64_t packed_bytes_;
  Box x_box_, g_box_;  ///< of the first unit of a chunk
  std::vector<OffsetRuns> offsets_;
  std::int64_t lists_ = 0;  ///< the most of an offset
  const std::vector<std::int64_t> places_;
  Buffer<T> x_packed_, g_packed_;
};

template <class T>
std::vector<Item> SecondMoment<T>::items() const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const std::int64_t all = l_.geometry.vertical.kernel * l_.geometry.horizontal.kernel;
  const std::int64_t pairs = g.bundles * g.panels * x.panels;
  const std::int64_t strip = pairs < kItems ? std::min(g.width, l_.simd.tile_rows) : g.width;
  const std::int64_t fitting = kSums / bytes(strip * x.width);
  const std::int64_t strips = pairs * ((g.width + strip - 1) / strip);
  const std::int64_t shared = (all * strips + kItems - 1) / kItems;
  const std::int64_t together = std::clamp<std::int64_t>(std::min(fitting, shared), 1, all);
  std::vector<Item> list;
  for (std::int64_t bundle = 0; bundle < g.bundles; ++bundle) {
    for (std::int64_t i = 0; i < g.panels; ++i) {
      const std::int64_t rows = g.panel_channels(bundle, i);
      for (std::int64_t j = 0; j < x.panels; ++j) {
        for (std::int64_t r = 0; r < rows; r += strip) {
          for (std::int64_t k = 0; k < all; k += together) {
            list.push_back({bundle, i, j, {r, std::min(rows, r + strip)}, {k, std::min(all, k + together)}});
          }
        }
      }
    }
  }
  return list;
}

/// Where the positions of a chunk are, and which of them meet.
template <class T>
void SecondMoment<T>::lay_out(const Range& examples) {
  const auto box = [&](std::int64_t height, std::int64_t width) -> Box {
    if (l_.rows) return {{0, 1}, {0, 1}, examples, {0, 1}, examples};
    return {{examples.begin, examples.begin + 1}, {0, height}, {0, width}, {0, height}, {0, width}};
  };
  const ConvGeometry geometry = l_.rows ? pointwise(1, examples.size()) : l_.geometry;
  const std::int64_t entries =
      out_.outputs * out_.inputs * l_.entries * geometry.vertical.kernel * geometry.horizontal.kernel;
  const std::int64_t listed = entries < kSmall ? kListedSmall : kListed;
  x_box_ = box(l_.x_height, l_.x_width);
  g_box_ = box(geometry.vertical.output, geometry.horizontal.output);
  offsets_ = offset_runs(geometry, l_.rows ? 1 : l_.x_height, l_.rows ? examples.size() : l_.x_width, listed);
  lists_ = 0;
  for (const OffsetRuns& offset : offsets_) lists_ = std::max(lists_, offset.lists());
}

template <class T>
void SecondMoment<T>::pack(const Range& examples) {
  const std::int64_t x_tasks = l_.x_packer.tasks(x_box_), g_tasks = l_.g_packer.tasks(g_box_);
  const std::int64_t x_size = x_box_.positions() * l_.x_tiling.channels_per_position();
  const std::int64_t g_size = g_box_.positions() * l_.g_tiling.channels_per_position();
  const auto nth = [](Box box, std::int64_t unit) {
    box.images = {box.images.begin + unit, box.images.end + unit};
    return box;
  };
  for_each(parallel_for_, units(examples) * (x_tasks + g_tasks), [&](std::int64_t task) {
    const std::int64_t unit = task / (x_tasks + g_tasks), part = task % (x_tasks + g_tasks);
    if (part < x_tasks) {
      l_.x_packer.pack(nth(x_box_, unit), part, x_packed_.get() + unit * x_size);
    } else {
      l_.g_packer.pack(nth(g_box_, unit), part - x_tasks, g_packed_.get() + unit * g_size);
    }
  });
  if (!l_.rows) return;
  // The square of a product of two numbers is the product of their squares.
  const auto square = [&](T* values, std::int64_t size) {
    parallel_for_(size, [values](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) values[i] *= values[i];
    });
  };
  square(x_packed_.get(), x_size);
  square(g_packed_.get(), g_size);
}

/// Adds the squares of some units to sums (offsets, rows, width of x); `partial` is room for as many.
template <class T>
void SecondMoment<T>::add_squares(const Item& item, const Range& units, T* sums, T* partial) const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const std::int64_t x_panel = x_box_.positions() * x.width, g_panel = g_box_.positions() * g.width;
  GradientTask<T> task{};
  task.g_width = g.width;
  task.x_width = x.width;
  task.step = l_.geometry.horizontal.stride;
  task.rows = item.rows.size();
  task.columns = x.panel_channels(item.bundle, item.j);
  for (std::int64_t l = 0; l < lists_; ++l) {
    for (std::int64_t k = item.offsets.begin; k < item.offsets.end; ++k) {
      const OffsetRuns& offset = offsets_[static_cast<std::size_t>(k)];
      if (l >= offset.lists()) continue;
      const std::int64_t tile = (k - item.offsets.begin) * padded_rows(item) * x.width;
      task.runs = offset.begin(l);
      task.runs_end = offset.begin(l + 1);
      task.fresh = l == 0;
      // Rows were squared before: their sum is all there is to do.
      task.partial = (l_.rows ? sums : partial) + tile;
      task.squares = !l_.rows && l + 1 == offset.lists() ? sums + tile : nullptr;
      for (std::int64_t n = units.begin; n < units.end; ++n) {
        task.g = g_packed_.get() + ((n * g.bundles + item.bundle) * g.panels + item.i) * g_panel + item.rows.begin;
        task.x = x_packed_.get() + ((n * x.bundles + item.bundle) * x.panels + item.j) * x_panel;
        l_.gradients.add(task);
      }
    }
  }
}

template <class T>
void SecondMoment<T>::sum(const Item& item, const Range& examples) const {
  const std::int64_t size = item.offsets.size() * padded_rows(item) * l_.x_tiling.width;
  const Buffer<T> buffer = make_buffer<T>(3 * size);
  T *total = buffer.get(), *sums = total + size, *partial = sums + size;
  std::fill(total, sums, T(0));
  const std::int64_t count = units(examples);
  const std::int64_t read = bytes(x_box_.positions() * l_.x_tiling.width + g_box_.positions() * l_.g_tiling.width);
  const std::int64_t together = lists_ > 1 ? 1 : std::max<std::int64_t>(1, kReread / std::max<std::int64_t>(1, read));
  for (std::int64_t begin = 0; begin < count; begin += kExamples) {
    const std::int64_t end = std::min(count, begin + kExamples);
    std::fill(sums, partial, T(0));
    for (std::int64_t n = begin; n < end; n += together) {
      add_squares(item, {n, std::min(end, n + together)}, sums, partial);
    }
    for (std::int64_t i = 0; i < size; ++i) total[i] += sums[i];
  }
  write(item, total, examples.begin == 0);
}

/// out += alpha·sums; `first` applies beta before. In double: a float alpha would add its own rounding to every entry.
template <class T>
void SecondMoment<T>::write(const Item& item, const T* sums, bool first) const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const std::int64_t tile = padded_rows(item) * x.width;
  const std::int64_t offsets = l_.geometry.vertical.kernel * l_.geometry.horizontal.kernel;
  const double alpha = update_.alpha, beta = first ? update_.beta : 1;
  for (std::int64_t r = item.rows.begin; r < item.rows.end; ++r, sums += x.width) {
    const std::int64_t bundle_group = (item.i * g.width + r) / g.channels;
    const std::int64_t output = item.bundle * g.bundle_groups * g.channels + item.i * g.width + r;
    const std::int64_t origin = bundle_group * x.channels - item.j * x.width;  // of the group's channels in panel j
    const std::int64_t begin = std::max<std::int64_t>(0, origin);
    const std::int64_t end = std::clamp<std::int64_t>(origin + x.channels, 0, x.width);
    T* row = static_cast<T*>(out_.data) + output * out_.output_stride;
    for (std::int64_t c = begin; c < end; ++c) {
      const std::int64_t* place = places_.data() + (c - origin) * offsets;
      const T* sum = sums + c;
      for (std::int64_t k = item.offsets.begin; k < item.offsets.end; ++k, sum += tile) {
        T& value = row[place[k]];
        const double term = alpha * static_cast<double>(*sum);
        value = static_cast<T>(beta == 0 ? term : beta * static_cast<double>(value) + term);
      }
    }
  }
}

/// Where the entries of a row of `out` are, by channel of x and kernel offset.
template <class T>
std::vector<std::int64_t> SecondMoment<T>::places() const {
  const std::int64_t offsets = l_.geometry.vertical.kernel * l_.geometry.horizontal.kernel;
  std::vector<std::int64_t> list;
  for (std::int64_t c = 0; c < l_.x_tiling.channels; ++c) {
    for (std::int64_t k = 0; k < offsets; ++k) {
      const std::int64_t offset = k + c % l_.entries;
      list.push_back(c / l_.entries * out_.input_stride + offset / l_.kernel_width * out_.row_stride +
                     offset % l_.kernel_width * out_.column_stride);
    }
  }
  return list;
}

template <class T>
void SecondMoment<T>::run() {
  const std::int64_t x_channels = l_.x_tiling.channels_per_position(), g_channels = l_.g_tiling.channels_per_position();
  lay_out({0, 1});
  const std::int64_t x_size = x_box_.positions() * x_channels, g_size = g_box_.positions() * g_channels;
  const std::int64_t fitting = packed_bytes_ / std::max<std::int64_t>(1, bytes(x_size + g_size));
  const std::int64_t chunk = std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(1, l_.examples));
  x_packed_ = make_buffer<T>(chunk * x_size);
  g_packed_ = make_buffer<T>(chunk * g_size);
  const std::vector<Item> items = this->items();
  for (std::int64_t begin = 0; begin == 0 || begin < l_.examples; begin += chunk) {
    const Range examples{begin, std::min(l_.examples, begin + chunk)};
    if (l_.rows) lay_out(examples);
    x_box_.images = g_box_.images = l_.rows ? Range{0, 1} : Range{begin, begin + 1};
    pack(examples);
    for_each(parallel_for_, static_cast<std::int64_t>(items.size()),
             [&](std::int64_t i) { sum(items[static_cast<std::size_t>(i)], examples); });
  }
}

/// As many groups to a bundle as have their channels of x and of g in a panel each.
template <class T>
std::int64_t bundled_groups(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t inputs,
                            std::int64_t outputs) {
  return std::clamp<std::int64_t>(simd.min_width / std::max({std::int64_t{1}, inputs, outputs}), 1, groups);
}

/// Whether patches written out take less time than one product per kernel offset, of panels that few channels fill badly.
/// Counted in multiply-adds; packing a number costs about as much as kPack of them.
template <class T>
bool patches_pay(const PanelKernels<T>& simd, const ConvGeometry& geometry, std::int64_t inputs, std::int64_t outputs) {
  constexpr double kPack = 16;
  const auto lanes = [&](std::int64_t channels) {
    return static_cast<double>((channels + simd.lanes - 1) / simd.lanes * simd.lanes);
  };
  const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
  const double per_offset = static_cast<double>(offsets) * lanes(inputs) * static_cast<double>(outputs);
  return lanes(offsets * inputs) * (static_cast<double>(outputs) + kPack) < per_offset;
}

template <class T>
void second_moment(const PanelKernels<T>& simd, const GradientKernels<T>& gradients, const ImageView& x,
                   const ImageView& g, const ConvGeometry& geometry, const Update& update, const WeightView& out,
                   const Execution& run, const GradientTuning& tuning) {
  const std::int64_t groups = x.channels / out.inputs, inputs = out.inputs, outputs = out.outputs / groups;
  const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
  const auto add = [&](const Layer<T>& layer) {
    SecondMoment<T>(layer, update, out, *run.parallel_for, tuning.packed).run();
  };
  const Tiling g_tiling = tile_bundles(simd, groups, outputs, false, bundled_groups(simd, groups, inputs, outputs));
  const bool patches = tuning.form == GradientForm::kCheaper ? patches_pay(simd, geometry, inputs, outputs)
                                                             : tuning.form == GradientForm::kPatches;
  if (patches && groups == 1 && offsets > 1) {
    const std::int64_t height = geometry.vertical.output, width = geometry.horizontal.output;
    const Tiling x_tiling = tile_bundles(simd, 1, inputs * offsets, false, 1);
    const auto x_packer = pack_patches(simd, x, geometry, x_tiling);
    const auto g_packer = pack_pixels(simd, g, g_tiling);
    return add({simd, gradients, x.batch, x_tiling, g_tiling, *x_packer, *g_packer, height, width,
                pointwise(height, width), geometry.horizontal.kernel, offsets, false});
  }
  const Tiling x_tiling = tile_bundles(simd, groups, inputs, false, g_tiling.bundle_groups);
  const bool rows = offsets == 1 && x.height == 1 && x.width == 1 && g.height == 1 && g.width == 1 &&
                    geometry.vertical.pad == 0 && geometry.horizontal.pad == 0;
  const auto view = [&](ImageView image) {
    if (rows) {
      image.width = image.batch;
      image.width_stride = image.batch_stride;
      image.batch = 1;
    }
    return image;
  };
  const auto x_packer = pack_pixels(simd, view(x), x_tiling);
  const auto g_packer = pack_pixels(simd, view(g), g_tiling);
  add({simd, gradients, x.batch, x_tiling, g_tiling, *x_packer, *g_packer, x.height, x.width, geometry,
       geometry.horizontal.kernel, 1, rows});
}

}  // namespace

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const GradientTuning& tuning) {
  const InstructionSet& set = instruction_set();
  if (x.type == ScalarType::kFloat64) {
    second_moment(set.double_precision, set.double_gradients, x, g, geometry, update, out, run, tuning);
  } else {
    second_moment(set.single_precision, set.single_gradients, x, g, geometry, update, out, run, tuning);
  }
}

}  // namespace eigendamage::cpu
