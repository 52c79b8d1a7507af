#include <algorithm>
#include <limits>
#include <vector>

#include "panels.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kLine = 256;  // positions staged at a time
constexpr std::int64_t kTaskPositions = 4096;
constexpr std::int64_t kMaxOffset = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kStaged = 16384;  // numbers that a task stages, at most but for one row of outputs

template <class T>
constexpr bool is_own_type(ScalarType type) {
  return type == (sizeof(T) == 8 ? ScalarType::kFloat64 : ScalarType::kFloat32);
}

const void* element(const ImageView& x, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const std::int64_t i = n * x.batch_stride + c * x.channel_stride + h * x.height_stride + w * x.width_stride;
  return static_cast<const char*>(x.data) + i * bytes_of(x.type);
}

template <class T>
void fill_ones(std::int64_t count, std::int64_t stride, T* out) {
  for (std::int64_t p = 0; p < count; ++p) out[p * stride] = T(1);
}

template <class T>
const std::vector<T>& ones() {
  static const std::vector<T> line(kLine, T(1));
  return line;
}

template <class T>
class PixelPacker : public Packer<T> {
 public:
  PixelPacker(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling)
      : Packer<T>(tiling.bundles * tiling.panels, tiling.width), simd_(simd), x_(x), tiling_(tiling) {}

  std::int64_t piece_tasks(const Box& box) const override { return box.images.size() * row_blocks(box); }

  void pack_piece(const Box& box, std::int64_t piece, std::int64_t task, T* out) const override {
    const std::int64_t block = task % row_blocks(box), image = task / row_blocks(box);
    const std::int64_t columns = box.packed_columns.size(), first = block * rows_per_task(box);
    const std::int64_t rows = std::min(rows_per_task(box), box.packed_rows.size() - first);
    out += (first * columns * box.images.size() + image) * tiling_.width;

    // Rows that follow each other in memory are one long row.
    const bool joined = columns == x_.width && x_.height_stride == x_.width * x_.width_stride;
    for (std::int64_t row = 0; row < (joined ? 1 : rows); ++row) {
      pack_row(piece / tiling_.panels, piece % tiling_.panels, box.images.begin + image,
               box.packed_rows.begin + first + row, box.packed_columns.begin, joined ? rows * columns : columns,
               box.images.size() * tiling_.width, nullptr, out + row * columns * box.images.size() * tiling_.width);
    }
  }

  Ahead source(const Box& box) const override {
    const std::int64_t rows = box.packed_rows.size(), columns = box.packed_columns.size();
    const bool planes = x_.width_stride == 1 && x_.height_stride == x_.width &&
                        (x_.channel_stride == x_.height * x_.width || x_.channels == 1);
    const bool pixels = x_.channel_stride == 1 && x_.width_stride == x_.channels &&
                        (x_.height_stride == x_.width * x_.channels || x_.height == 1);
    const bool whole = columns == x_.width && (rows == x_.height || (pixels && box.images.size() == 1));
    const bool joined = x_.batch_stride == x_.channels * x_.height * x_.width || box.images.size() == 1;
    if (box.positions() == 0 || !joined || !(whole ? planes || pixels : pixels && rows == 1 && box.images.size() == 1))
      return {};
    const auto* first =
        static_cast<const char*>(element(x_, box.images.begin, 0, box.packed_rows.begin, box.packed_columns.begin));
    return {first, first + box.positions() * x_.channels * bytes_of(x_.type)};
  }

 protected:
  static std::int64_t rows_per_task(const Box& box) {
    return std::max<std::int64_t>(1, kTaskPositions / std::max<std::int64_t>(1, box.packed_columns.size()));
  }

  static std::int64_t row_blocks(const Box& box) {
    return (box.packed_rows.size() + rows_per_task(box) - 1) / rows_per_task(box);
  }

  void pack_row(std::int64_t bundle, std::int64_t panel, std::int64_t n, std::int64_t h, std::int64_t w,
                std::int64_t count, std::int64_t stride, const std::int32_t* places, T* out) const {
    const std::int64_t first = panel * tiling_.width;
    const std::int64_t channels = std::clamp<std::int64_t>(tiling_.bundle_channels(bundle) - first, 0, tiling_.width);
    const std::int64_t c = bundle * tiling_.bundle_groups * tiling_.channels + first;
    const std::int64_t constant = tiling_.constant_place(bundle, panel);
    if (x_.channel_stride == 1 && x_.width_stride != 1) {
      simd_.copy_pixels(element(x_, n, c, h, w), x_.type, x_.width_stride, count, channels, tiling_.width, stride,
                        places, out);
      if (constant >= 0) fill_ones(count, stride, out + constant);
      return;
    }
    const bool scattered = x_.width_stride != 1 || count < simd_.lanes;  // too much so for whole vectors
    if (scattered && channels > 0 && is_own_type<T>(x_.type) && x_.channel_stride * channels <= kMaxOffset) {
      std::int32_t offsets[kMaxWidth];
      for (std::int64_t lane = 0; lane < tiling_.width; ++lane) {  // those behind the last hold its pixels
        offsets[lane] = static_cast<std::int32_t>(std::min(lane, channels - 1) * x_.channel_stride);
      }
      simd_.gather(static_cast<const T*>(element(x_, n, c, h, w)), count, x_.width_stride, 1, 0, offsets, tiling_.width,
                   stride, out);
      if (constant >= 0) fill_ones(count, stride, out + constant);
      return;
    }
    for (std::int64_t p = 0; p < count; p += kLine) {
      const std::int64_t length = std::min(kLine, count - p);
      for (std::int64_t lane = 0; lane < tiling_.width; lane += simd_.lanes) {
        pack_lanes(n, c + lane, h, w + p, length, channels - lane, constant - lane, stride,
                   places ? places + p : nullptr, out + (places ? 0 : p * stride) + lane);
      }
    }
  }

  void pack_lanes(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t length,
                  std::int64_t channels, std::int64_t constant, std::int64_t stride, const std::int32_t* places,
                  T* out) const {
    alignas(64) T staged[kMaxLanes][kLine];
    const T* lines[kMaxLanes];
    for (std::int64_t i = 0; i < simd_.lanes; ++i) {
      lines[i] = i == constant ? ones<T>().data() : nullptr;
      if (i >= channels) continue;
      const void* line = element(x_, n, c + i, h, w);
      if (x_.width_stride == 1 && is_own_type<T>(x_.type)) {
        lines[i] = static_cast<const T*>(line);
      } else {
        simd_.widen(line, x_.type, x_.width_stride, length, staged[i]);
        lines[i] = staged[i];
      }
    }
    simd_.interleave(lines, length, stride, places, out);
  }

  const PanelKernels<T>& simd_;
  const ImageView x_;
  const Tiling tiling_;
};

/// A whole image is read from end to end, and each pixel put where it belongs; a part of one pixel by pixel.
template <class T>
class OrderedPixelPacker final : public PixelPacker<T> {
 public:
  OrderedPixelPacker(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling,
                     const std::vector<std::int64_t>& pixels)
      : PixelPacker<T>(simd, x, tiling), pixels_(pixels), places_(pixels.size()) {
    for (std::size_t i = 0; i < pixels.size(); ++i)
      places_[static_cast<std::size_t>(pixels[i])] = static_cast<std::int32_t>(i);
  }

  void pack_piece(const Box& box, std::int64_t piece, std::int64_t image, T* out) const override {
    const std::int64_t bundle = piece / tiling_.panels, panel = piece % tiling_.panels;
    const std::int64_t n = box.images.begin + image, stride = box.images.size() * tiling_.width;
    const Range some = box.packed_columns;
    out += image * tiling_.width;
    if (is_whole(some)) return this->pack_row(bundle, panel, n, 0, 0, some.size(), stride, places_.data(), out);
    for (std::int64_t i = some.begin; i < some.end; ++i, out += stride) {
      const std::int64_t pixel = pixels_[static_cast<std::size_t>(i)];
      this->pack_row(bundle, panel, n, pixel / x_.width, pixel % x_.width, 1, stride, nullptr, out);
    }
  }

  Ahead source(const Box& box) const override {
    if (!is_whole(box.packed_columns)) return {};
    Box images = box;
    images.packed_rows = {0, x_.height};
    images.packed_columns = {0, x_.width};
    return PixelPacker<T>::source(images);
  }

 private:
  using PixelPacker<T>::x_;
  using PixelPacker<T>::tiling_;

  bool is_whole(const Range& pixels) const { return pixels.size() == static_cast<std::int64_t>(places_.size()); }

  const std::vector<std::int64_t>& pixels_;
  std::vector<std::int32_t> places_;  ///< of an image's pixels
};

/// The lines of one image axis that outputs [begin, begin + count) read, laid side by side: all lines from the first to
/// the last or, where strides or dilations far beyond the kernel leave too many of those unread, `count` lines for each
/// kernel offset. Output t and offset i read line t·step + i·apart of them.
struct StagedAxis {
  std::int64_t step, apart, lines;
  std::int64_t first, pieces, piece_apart, piece_lines, piece_step;  ///< in the image

  StagedAxis(const ConvAxis& axis, const Range& outputs) {
    const std::int64_t count = outputs.size(), reach = axis.dilation * (axis.kernel - 1);
    first = axis.stride * outputs.begin - axis.pad;
    const std::int64_t all = axis.stride * (count - 1) + reach + 1;
    if (all <= axis.kernel * count) {
      step = axis.stride, apart = axis.dilation, lines = all;
      pieces = 1, piece_apart = 0, piece_lines = all, piece_step = 1;
    } else {
      step = 1, apart = count, lines = axis.kernel * count;
      pieces = axis.kernel, piece_apart = axis.dilation, piece_lines = count, piece_step = axis.stride;
    }
  }

  std::int64_t line(std::int64_t piece, std::int64_t i) const { return first + piece * piece_apart + i * piece_step; }
};

/// Where the patches of a block of outputs are gathered from: channel c of an output's patch, at offset (i, j) of the
/// kernel, lies c·channel + i·down + j·across behind the patch's first number.
template <class T>
struct PatchSource {
  const T* first;  ///< of the block's first output
  std::int64_t image, row, column;
  std::int64_t channel, down, across;
};

/// Gathers patches: one list of offsets serves all outputs of a block. They come from x itself where it holds T's and no
/// window leaves it, else from a copy of what the block reads, widened to T and with the zeros around.
template <class T>
class PatchPacker final : public Packer<T> {
 public:
  PatchPacker(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& tiling)
      : Packer<T>(tiling.groups, tiling.panels * tiling.width),
        simd_(simd),
        x_(x),
        geometry_(geometry),
        tiling_(tiling),
        group_channels_(tiling.channels / (geometry.vertical.kernel * geometry.horizontal.kernel)) {}

  std::int64_t piece_tasks(const Box& box) const override {
    if (box.positions() == 0) return 0;
    const Blocks blocks = split(box);
    return blocks.count(box.images, blocks.images) * blocks.count(box.rows, blocks.rows);
  }

  void pack_piece(const Box& box, std::int64_t group, std::int64_t task, T* out) const override {
    const Blocks blocks = split(box);
    const std::int64_t row_blocks = blocks.count(box.rows, blocks.rows);
    const Range rows = blocks.part(box.rows, blocks.rows, task % row_blocks);
    const Range images = blocks.part(box.images, blocks.images, task / row_blocks);

    const std::int64_t stride = box.images.size() * tiling_.width, row_size = box.columns.size() * stride;
    out += (rows.begin - box.rows.begin) * row_size + (images.begin - box.images.begin) * tiling_.width;
    Buffer<T> staged;
    const PatchSource<T> source = reads_inside(rows, box.columns) ? in_place(images, group, rows, box.columns)
                                                                  : stage(images, group, rows, box.columns, staged);
    for (std::int64_t panel = 0; panel < tiling_.panels; ++panel, out += box.rows.size() * row_size) {
      std::int32_t offsets[kMaxWidth];
      list_offsets(panel, source, offsets);
      for (std::int64_t row = 0; row < rows.size(); ++row) {
        simd_.gather(source.first + row * source.row, box.columns.size(), source.column, images.size(), source.image,
                     offsets, tiling_.width, stride, out + row * row_size);
      }
      const std::int64_t constant = tiling_.constant_place(group, panel);
      for (std::int64_t n = 0; constant >= 0 && n < images.size(); ++n) {
        fill_ones(rows.size() * box.columns.size(), stride, out + n * tiling_.width + constant);
      }
    }
  }

 private:
  /// How many images and rows of outputs a task takes.
  struct Blocks {
    std::int64_t images, rows;

    static std::int64_t count(const Range& all, std::int64_t each) { return (all.size() + each - 1) / each; }
    static Range part(const Range& all, std::int64_t each, std::int64_t i) {
      return {all.begin + i * each, std::min(all.end, all.begin + (i + 1) * each)};
    }
  };

  /// What a task stages should stay in the nearest caches.
  Blocks split(const Box& box) const {
    const auto staged = [&](std::int64_t rows) {
      return group_channels_ * StagedAxis(geometry_.vertical, {0, rows}).lines *
             StagedAxis(geometry_.horizontal, box.columns).lines;
    };
    const std::int64_t all = staged(box.rows.size());
    if (all <= kStaged) return {std::clamp<std::int64_t>(kStaged / all, 1, box.images.size()), box.rows.size()};
    std::int64_t rows = box.rows.size();
    while (rows > 1 && staged(rows) > kStaged) rows = (rows + 1) / 2;
    return {1, rows};
  }

  bool reads_inside(const Range& rows, const Range& columns) const {
    const auto inside = [](const ConvAxis& axis, const Range& outputs, std::int64_t size) {
      const std::int64_t last = axis.stride * (outputs.end - 1) + axis.dilation * (axis.kernel - 1) - axis.pad;
      return axis.stride * outputs.begin >= axis.pad && last < size;
    };
    const std::int64_t reach = (group_channels_ - 1) * x_.channel_stride + (x_.height - 1) * x_.height_stride +
                               (x_.width - 1) * x_.width_stride;
    return is_own_type<T>(x_.type) && reach <= kMaxOffset && inside(geometry_.vertical, rows, x_.height) &&
           inside(geometry_.horizontal, columns, x_.width);
  }

  PatchSource<T> in_place(const Range& images, std::int64_t group, const Range& rows, const Range& columns) const {
    const ConvAxis &v = geometry_.vertical, &h = geometry_.horizontal;
    const void* first = element(x_, images.begin, group * group_channels_, v.stride * rows.begin - v.pad,
                                h.stride * columns.begin - h.pad);
    return {static_cast<const T*>(first), x_.batch_stride,   v.stride * x_.height_stride,
            h.stride * x_.width_stride,   x_.channel_stride, v.dilation * x_.height_stride,
            h.dilation * x_.width_stride};
  }

  PatchSource<T> stage(const Range& images, std::int64_t group, const Range& rows, const Range& columns,
                       Buffer<T>& staged) const {
    const StagedAxis vertical(geometry_.vertical, rows), horizontal(geometry_.horizontal, columns);
    const std::int64_t plane = vertical.lines * horizontal.lines, image = group_channels_ * plane;
    staged = make_buffer<T>(images.size() * image);
    for (std::int64_t across = 0; across < horizontal.pieces; ++across) {
      T* to = staged.get() + across * horizontal.piece_lines;
      for (std::int64_t n = images.begin; n < images.end; ++n) {
        for (std::int64_t c = 0; c < group_channels_; ++c, to += plane) {
          stage_plane(n, group * group_channels_ + c, vertical, horizontal, across, to);
        }
      }
    }
    return {staged.get(),    image, vertical.step * horizontal.lines,
            horizontal.step, plane, vertical.apart * horizontal.lines,
            horizontal.apart};
  }

  /// One piece of all lines of a channel; zeros outside the image.
  void stage_plane(std::int64_t n, std::int64_t c, const StagedAxis& vertical, const StagedAxis& horizontal,
                   std::int64_t across, T* to) const {
    const std::int64_t w = horizontal.line(across, 0), step = horizontal.piece_step, count = horizontal.piece_lines;
    const auto first_at_least = [&](std::int64_t limit) {
      return std::clamp<std::int64_t>((limit - w + step - 1) / step, 0, count);
    };
    const std::int64_t begin = first_at_least(0), end = std::max(begin, first_at_least(x_.width));
    for (std::int64_t piece = 0; piece < vertical.pieces; ++piece) {
      for (std::int64_t i = 0; i < vertical.piece_lines; ++i, to += horizontal.lines) {
        const std::int64_t h = vertical.line(piece, i);
        if (h < 0 || h >= x_.height || begin == end) {
          std::fill_n(to, count, T(0));
          continue;
        }
        std::fill(to, to + begin, T(0));
        simd_.widen(element(x_, n, c, h, w + step * begin), x_.type, step * x_.width_stride, end - begin, to + begin);
        std::fill(to + end, to + count, T(0));
      }
    }
  }

  /// Of a panel's channels; those behind the last read what it reads.
  void list_offsets(std::int64_t panel, const PatchSource<T>& source, std::int32_t* offsets) const {
    const std::int64_t kh = geometry_.vertical.kernel, kw = geometry_.horizontal.kernel;
    for (std::int64_t lane = 0; lane < tiling_.width; ++lane) {
      const std::int64_t channel = std::min(panel * tiling_.width + lane, tiling_.channels - 1);
      offsets[lane] = static_cast<std::int32_t>(channel / (kh * kw) * source.channel + channel / kw % kh * source.down +
                                                channel % kw * source.across);
    }
  }

  const PanelKernels<T>& simd_;
  const ImageView x_;
  const ConvGeometry geometry_;
  const Tiling tiling_;
  const std::int64_t group_channels_;
};

}  // namespace

template <class T>
std::unique_ptr<Packer<T>> pack_pixels(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling) {
  return std::make_unique<PixelPacker<T>>(simd, x, tiling);
}

template <class T>
bool can_order_pixels(const PanelKernels<T>& simd, const ImageView& x) {
  const bool one_line = x.height == 1 || x.height_stride == x.width * x.width_stride;
  return one_line && (x.width_stride == 1 ? x.height * x.width >= simd.lanes : x.channel_stride == 1);
}

template <class T>
std::unique_ptr<Packer<T>> pack_pixels_in_order(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling,
                                                const std::vector<std::int64_t>& pixels) {
  return std::make_unique<OrderedPixelPacker<T>>(simd, x, tiling, pixels);
}

template <class T>
std::unique_ptr<Packer<T>> pack_patches(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry,
                                        const Tiling& tiling) {
  return std::make_unique<PatchPacker<T>>(simd, x, geometry, tiling);
}

template std::unique_ptr<Packer<float>> pack_pixels(const PanelKernels<float>&, const ImageView&, const Tiling&);
template std::unique_ptr<Packer<double>> pack_pixels(const PanelKernels<double>&, const ImageView&, const Tiling&);
template bool can_order_pixels(const PanelKernels<float>&, const ImageView&);
template bool can_order_pixels(const PanelKernels<double>&, const ImageView&);
template std::unique_ptr<Packer<float>> pack_pixels_in_order(const PanelKernels<float>&, const ImageView&,
                                                             const Tiling&, const std::vector<std::int64_t>&);
template std::unique_ptr<Packer<double>> pack_pixels_in_order(const PanelKernels<double>&, const ImageView&,
                                                              const Tiling&, const std::vector<std::int64_t>&);
template std::unique_ptr<Packer<float>> pack_patches(const PanelKernels<float>&, const ImageView&, const ConvGeometry&,
                                                     const Tiling&);
template std::unique_ptr<Packer<double>> pack_patches(const PanelKernels<double>&, const ImageView&,
                                                      const ConvGeometry&, const Tiling&);

}  // namespace eigendamage::cpu
