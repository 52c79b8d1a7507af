#include <algorithm>
#include <vector>

#include "panels.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kLine = 256;  // positions staged at a time
constexpr std::int64_t kTaskPositions = 4096;

std::int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

template <class T>
constexpr bool is_own_type(ScalarType type) {
  return type == (sizeof(T) == 8 ? ScalarType::kFloat64 : ScalarType::kFloat32);
}

const void* element(const ImageView& x, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const std::int64_t i = n * x.batch_stride + c * x.channel_stride + h * x.height_stride + w * x.width_stride;
  return static_cast<const char*>(x.data) + i * bytes_of(x.type);
}

template <class T>
const std::vector<T>& ones() {
  static const std::vector<T> line(kLine, T(1));
  return line;
}

template <class T>
class PixelPacker final : public Packer<T> {
 public:
  PixelPacker(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling)
      : simd_(simd), x_(x), tiling_(tiling) {}

  std::int64_t tasks(const Box& box) const override {
    return tiling_.bundles * tiling_.panels * box.images.size() * row_blocks(box);
  }

  void pack(const Box& box, std::int64_t task, T* packed) const override {
    const std::int64_t block = task % row_blocks(box);
    task /= row_blocks(box);
    const std::int64_t image = task % box.images.size();
    task /= box.images.size();
    const std::int64_t columns = box.packed_columns.size(), first = block * rows_per_task(box);
    const std::int64_t rows = std::min(rows_per_task(box), box.packed_rows.size() - first);
    T* out = packed + ((task * box.packed_rows.size() + first) * columns * box.images.size() + image) * tiling_.width;

    // Rows that follow each other in memory are one long row.
    const bool joined = columns == x_.width && x_.height_stride == x_.width * x_.width_stride;
    for (std::int64_t row = 0; row < (joined ? 1 : rows); ++row) {
      pack_row(task / tiling_.panels, task % tiling_.panels, box.images.begin + image,
               box.packed_rows.begin + first + row, box.packed_columns.begin, joined ? rows * columns : columns,
               box.images.size() * tiling_.width, out + row * columns * box.images.size() * tiling_.width);
    }
  }

 private:
  static std::int64_t rows_per_task(const Box& box) {
    return std::max<std::int64_t>(1, kTaskPositions / std::max<std::int64_t>(1, box.packed_columns.size()));
  }

  static std::int64_t row_blocks(const Box& box) {
    return (box.packed_rows.size() + rows_per_task(box) - 1) / rows_per_task(box);
  }

  void pack_row(std::int64_t bundle, std::int64_t panel, std::int64_t n, std::int64_t h, std::int64_t w,
                std::int64_t count, std::int64_t stride, T* out) const {
    const std::int64_t first = panel * tiling_.width;
    const std::int64_t channels = std::clamp<std::int64_t>(tiling_.bundle_channels(bundle) - first, 0, tiling_.width);
    const std::int64_t c = bundle * tiling_.bundle_groups * tiling_.channels + first;
    const std::int64_t constant = tiling_.constant_place(bundle, panel);
    if (x_.channel_stride == 1 && x_.width_stride != 1) {
      simd_.copy_pixels(element(x_, n, c, h, w), x_.type, x_.width_stride, count, channels, tiling_.width, stride, out);
      for (std::int64_t p = 0; constant >= 0 && p < count; ++p) out[p * stride + constant] = T(1);
      return;
    }
    for (std::int64_t p = 0; p < count; p += kLine) {
      const std::int64_t length = std::min(kLine, count - p);
      for (std::int64_t lane = 0; lane < tiling_.width; lane += simd_.lanes) {
        pack_lanes(n, c + lane, h, w + p, length, channels - lane, constant - lane, stride, out + p * stride + lane);
      }
    }
  }

  void pack_lanes(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t length,
                  std::int64_t channels, std::int64_t constant, std::int64_t stride, T* out) const {
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
    simd_.interleave(lines, length, stride, out);
  }

  const PanelKernels<T>& simd_;
  const ImageView x_;
  const Tiling tiling_;
};

template <class T>
class PatchPacker final : public Packer<T> {
 public:
  PatchPacker(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry, const Tiling& tiling)
      : simd_(simd), x_(x), geometry_(geometry), tiling_(tiling) {}

  std::int64_t tasks(const Box& box) const override { return tiling_.groups * box.images.size() * box.rows.size(); }

  void pack(const Box& box, std::int64_t task, T* packed) const override {
    const std::int64_t row = task % box.rows.size();
    const std::int64_t image = task / box.rows.size() % box.images.size();
    const std::int64_t group = task / box.rows.size() / box.images.size();

    const std::int64_t kh = geometry_.vertical.kernel, kw = geometry_.horizontal.kernel;
    const std::int64_t columns = box.columns.size();
    const Staging staging = stage_by(columns);
    const std::int64_t sources = tiling_.channels / kw, source_size = staging.lines * staging.length;
    const Buffer<T> staged = make_buffer<T>(sources * source_size);
    for (std::int64_t source = 0; source < sources; ++source) {
      stage(box.images.begin + image, group * (sources / kh) + source / kh, box.rows.begin + row, source % kh,
            box.columns.begin, staging, staged.get() + source * source_size);
    }

    const std::int64_t stride = box.images.size() * tiling_.width;
    const std::int64_t panel_size = box.positions() * tiling_.width;
    for (std::int64_t panel = 0; panel < tiling_.panels; ++panel) {
      T* out = packed + (group * tiling_.panels + panel) * panel_size + row * columns * stride + image * tiling_.width;
      for (std::int64_t lane = 0; lane < tiling_.width; lane += simd_.lanes) {
        pack_lanes(staged.get(), staging, panel * tiling_.width + lane, columns, stride, out + lane);
      }
    }
  }

 private:
  /// How a line of the image, one per (channel, kernel row), is laid out so that what one kernel column reads from it lies
  /// side by side: once, its pixels sorted by their residue modulo the stride, or where that is more, as strides and
  /// dilations far beyond the kernel make it, once for each kernel column.
  struct Staging {
    bool by_residue;
    std::int64_t lines, length;
  };

  Staging stage_by(std::int64_t columns) const {
    const ConvAxis& axis = geometry_.horizontal;
    const std::int64_t phase = columns + axis.dilation * (axis.kernel - 1) / axis.stride;
    if (static_cast<double>(axis.stride) * static_cast<double>(phase) <= static_cast<double>(axis.kernel * columns)) {
      return {true, axis.stride, phase};
    }
    return {false, axis.kernel, columns};
  }

  void stage(std::int64_t n, std::int64_t c, std::int64_t output_row, std::int64_t kernel_row, std::int64_t column,
             const Staging& staging, T* lines) const {
    const ConvAxis &v = geometry_.vertical, &a = geometry_.horizontal;
    const std::int64_t h = v.stride * output_row + v.dilation * kernel_row - v.pad;
    const std::int64_t apart = staging.by_residue ? 1 : a.dilation;
    for (std::int64_t line = 0; line < staging.lines; ++line, lines += staging.length) {
      const std::int64_t w = a.stride * column + line * apart - a.pad;  // of lines[0]
      const auto first_at_least = [&](std::int64_t limit) {
        return std::clamp<std::int64_t>((limit - w + a.stride - 1) / a.stride, 0, staging.length);
      };
      const bool inside = 0 <= h && h < x_.height;
      const std::int64_t begin = inside ? first_at_least(0) : 0, end = inside ? first_at_least(x_.width) : 0;
      std::fill(lines, lines + begin, T(0));
      if (begin < end) {
        simd_.widen(element(x_, n, c, h, w + a.stride * begin), x_.type, a.stride * x_.width_stride, end - begin,
                    lines + begin);
      }
      std::fill(lines + std::max(begin, end), lines + staging.length, T(0));
    }
  }

  void pack_lanes(const T* staged, const Staging& staging, std::int64_t first, std::int64_t columns,
                  std::int64_t stride, T* out) const {
    const ConvAxis& axis = geometry_.horizontal;
    const T* lines[kMaxLanes];
    for (std::int64_t p = 0; p < columns; p += kLine) {
      for (std::int64_t i = 0; i < simd_.lanes; ++i) {
        const std::int64_t channel = first + i, column = channel % axis.kernel, reach = column * axis.dilation;
        lines[i] = nullptr;
        if (channel < tiling_.channels) {
          const T* source = staged + channel / axis.kernel * staging.lines * staging.length + p;
          lines[i] = staging.by_residue ? source + reach % axis.stride * staging.length + reach / axis.stride
                                        : source + column * staging.length;
        } else if (channel == tiling_.channels && tiling_.constant) {
          lines[i] = ones<T>().data();
        }
      }
      simd_.interleave(lines, std::min(kLine, columns - p), stride, out + p * stride);
    }
  }

  const PanelKernels<T>& simd_;
  const ImageView x_;
  const ConvGeometry geometry_;
  const Tiling tiling_;
};

}  // namespace

template <class T>
std::unique_ptr<Packer<T>> pack_pixels(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling) {
  return std::make_unique<PixelPacker<T>>(simd, x, tiling);
}

template <class T>
std::unique_ptr<Packer<T>> pack_patches(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry,
                                        const Tiling& tiling) {
  return std::make_unique<PatchPacker<T>>(simd, x, geometry, tiling);
}

template std::unique_ptr<Packer<float>> pack_pixels(const PanelKernels<float>&, const ImageView&, const Tiling&);
template std::unique_ptr<Packer<double>> pack_pixels(const PanelKernels<double>&, const ImageView&, const Tiling&);
template std::unique_ptr<Packer<float>> pack_patches(const PanelKernels<float>&, const ImageView&, const ConvGeometry&,
                                                     const Tiling&);
template std::unique_ptr<Packer<double>> pack_patches(const PanelKernels<double>&, const ImageView&,
                                                      const ConvGeometry&, const Tiling&);

}  // namespace eigendamage::cpu
