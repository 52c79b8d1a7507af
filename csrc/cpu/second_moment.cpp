#include "second_moment.h"

#include <algorithm>

#include "pages.h"
#include "panels.h"
#include "rows.h"
#include "simd.h"
#include "squares.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kPack = 16;  // multiply-adds in the time that packing a number takes

/// As many groups to a bundle as have their channels of x and of g in a panel each.
template <class T>
std::int64_t bundled_groups(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t inputs,
                            std::int64_t outputs) {
  return std::clamp<std::int64_t>(simd.min_width / std::max({std::int64_t{1}, inputs, outputs}), 1, groups);
}

/// Channels with those that fill their last vector.
template <class T>
std::int64_t filled(const PanelKernels<T>& simd, std::int64_t channels) {
  return (channels + simd.lanes - 1) / simd.lanes * simd.lanes;
}

/// Whether patches written out take less time than one product per kernel offset, of panels that few channels fill badly.
/// Counted in multiply-adds.
template <class T>
bool patches_pay(const PanelKernels<T>& simd, std::int64_t offsets, std::int64_t inputs, std::int64_t outputs) {
  return filled(simd, offsets * inputs) * (outputs + kPack) < offsets * filled(simd, inputs) * outputs;
}

/// Whether groups side by side, a pair of channels at a time, take less time than bundles of them. Likewise.
template <class T>
bool lanes_pay(const PanelKernels<T>& simd, std::int64_t offsets, std::int64_t groups, std::int64_t inputs,
               std::int64_t outputs) {
  const std::int64_t bundled = bundled_groups(simd, groups, inputs, outputs);
  const std::int64_t in_lanes = inputs * outputs * (offsets + 2 * kPack) * filled(simd, groups);
  return in_lanes < offsets * groups * outputs * filled(simd, inputs * bundled);
}

/// Channel n of every group.
ImageView of_every_group(ImageView image, std::int64_t n, std::int64_t groups) {
  image.data = static_cast<const char*>(image.data) + n * image.channel_stride *
                                                          (image.type == ScalarType::kFloat64   ? 8
                                                           : image.type == ScalarType::kFloat32 ? 4
                                                                                                : 2);
  image.channel_stride *= image.channels / groups;
  image.channels = groups;
  return image;
}

/// Its batch as the columns of one image.
ImageView in_one_image(ImageView image) {
  image.width = image.batch;
  image.width_stride = image.batch_stride;
  image.batch = 1;
  return image;
}

GradientForm cheapest(const auto& simd, std::int64_t offsets, std::int64_t groups, std::int64_t inputs,
                      std::int64_t outputs) {
  if (groups > 1) {
    return lanes_pay(simd, offsets, groups, inputs, outputs) ? GradientForm::kLanes : GradientForm::kOffsets;
  }
  const bool patches = offsets > 1 && patches_pay(simd, offsets, inputs, outputs);
  return patches ? GradientForm::kPatches : GradientForm::kOffsets;
}

template <class T>
void second_moment(const PanelKernels<T>& simd, const GradientKernels<T>& gradients, const ImageView& x,
                   const ImageView& g, const ConvGeometry& geometry, const Update& update, const WeightView& out,
                   const Execution& run, const GradientTuning& tuning) {
  const std::int64_t groups = x.channels / out.inputs, inputs = out.inputs, outputs = out.outputs / groups;
  const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
  const std::int64_t bundled = bundled_groups(simd, groups, inputs, outputs);
  const GradientForm form =
      tuning.form == GradientForm::kCheaper ? cheapest(simd, offsets, groups, inputs, outputs) : tuning.form;
  Layer<T> layer{simd, gradients, update, out, geometry, x.batch, x.height, x.width, geometry.horizontal.kernel,
                 1,    x.type};
  const auto add = [&](const ImageView& x, const ImageView& g) {
    layer.x_packer =
        layer.entries > 1 ? pack_patches(simd, x, geometry, layer.x_tiling) : pack_pixels(simd, x, layer.x_tiling);
    layer.g_packer = pack_pixels(simd, g, layer.g_tiling);
    add_squared_gradients(layer, *run.parallel_for, tuning);
  };
  layer.x_tiling = tile_bundles(simd, groups, inputs, false, bundled);
  layer.g_tiling = tile_bundles(simd, groups, outputs, false, bundled);
  if (offsets == 1 && x.height * x.width == 1 && g.height * g.width == 1 && geometry.vertical.pad == 0 &&
      geometry.horizontal.pad == 0) {
    layer.x_packer = pack_pixels(simd, in_one_image(x), layer.x_tiling);
    layer.g_packer = pack_pixels(simd, in_one_image(g), layer.g_tiling);
    add_squared_rows(layer, *run.parallel_for, tuning);
  } else if (form == GradientForm::kLanes) {
    // The entries of all groups for one pair of channels are those of a single row.
    layer.products = Products::kLanes;
    layer.x_tiling = layer.g_tiling = tile_bundles(simd, 1, groups, false, 1);
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t i = 0; i < inputs; ++i) {
        layer.out = {static_cast<T*>(out.data) + o * out.output_stride + i * out.input_stride,
                     out.type,
                     1,
                     groups,
                     0,
                     outputs * out.output_stride,
                     out.row_stride,
                     out.column_stride};
        add(of_every_group(x, i, groups), of_every_group(g, o, groups));
      }
    }
  } else if (form == GradientForm::kPatches && groups == 1 && offsets > 1) {
    layer.entries = offsets;
    layer.x_tiling = tile_bundles(simd, 1, inputs * offsets, false, 1);
    layer.geometry = pointwise(geometry.vertical.output, geometry.horizontal.output);
    layer.x_height = geometry.vertical.output;
    layer.x_width = geometry.horizontal.output;
    add(x, g);
  } else {
    add(x, g);
  }
}

}  // namespace

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run, const GradientTuning& tuning) {
  const InstructionSet& set = instruction_set();
  if (update.beta == 0) {
    const std::int64_t last = (out.outputs - 1) * out.output_stride + (out.inputs - 1) * out.input_stride +
                              (geometry.vertical.kernel - 1) * out.row_stride +
                              (geometry.horizontal.kernel - 1) * out.column_stride;
    use_huge_pages(out.data, static_cast<std::size_t>((last + 1) * bytes_of(out.type)));
  }
  if (x.type == ScalarType::kFloat64) {
    second_moment(set.double_precision, set.double_gradients, x, g, geometry, update, out, run, tuning);
  } else {
    second_moment(set.single_precision, set.single_gradients, x, g, geometry, update, out, run, tuning);
  }
}

}  // namespace eigendamage::cpu
