#include "second_moment.h"

#include <vector>

#include "simd.h"

namespace eigendamage::cpu {
namespace {

/// All of x as T, in the order (N, C, H, W).
template <class T>
std::vector<T> widened(const PanelKernels<T>& simd, const ImageView& x) {
  const std::int64_t bytes = x.type == ScalarType::kFloat64 ? 8 : x.type == ScalarType::kFloat32 ? 4 : 2;
  std::vector<T> values(static_cast<std::size_t>(x.batch * x.channels * x.height * x.width));
  T* line = values.data();
  for (std::int64_t n = 0; n < x.batch; ++n) {
    for (std::int64_t c = 0; c < x.channels; ++c) {
      for (std::int64_t h = 0; h < x.height; ++h, line += x.width) {
        const std::int64_t i = n * x.batch_stride + c * x.channel_stride + h * x.height_stride;
        simd.widen(static_cast<const char*>(x.data) + i * bytes, x.type, x.width_stride, x.width, line);
      }
    }
  }
  return values;
}

template <class T>
void sum_squares(const PanelKernels<T>& simd, const ImageView& x, const ImageView& g, const ConvGeometry& geometry,
                 const Update& update, const WeightView& out, const Execution& run) {
  const ConvAxis &v = geometry.vertical, &u = geometry.horizontal;
  const std::vector<T> pixels = widened(simd, x), gradients = widened(simd, g);
  const std::int64_t groups = x.channels / out.inputs, entries = out.inputs * v.kernel * u.kernel;
  (*run.parallel_for)(out.outputs* entries, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t entry = begin; entry < end; ++entry) {
      const std::int64_t o = entry / entries, c = entry % entries / (v.kernel * u.kernel);
      const std::int64_t i = entry / u.kernel % v.kernel, j = entry % u.kernel;
      const std::int64_t channel = o / (out.outputs / groups) * out.inputs + c;
      double sum = 0;
      for (std::int64_t n = 0; n < x.batch; ++n) {
        double gradient = 0;
        for (std::int64_t th = 0; th < v.output; ++th) {
          for (std::int64_t tw = 0; tw < u.output; ++tw) {
            const std::int64_t h = v.stride * th + v.dilation * i - v.pad, w = u.stride * tw + u.dilation * j - u.pad;
            if (h < 0 || h >= x.height || w < 0 || w >= x.width) continue;
            gradient +=
                static_cast<double>(
                    gradients[static_cast<std::size_t>(((n * g.channels + o) * v.output + th) * u.output + tw)]) *
                static_cast<double>(
                    pixels[static_cast<std::size_t>(((n * x.channels + channel) * x.height + h) * x.width + w)]);
          }
        }
        sum += gradient * gradient;
      }
      T& value = static_cast<T*>(
          out.data)[o * out.output_stride + c * out.input_stride + i * out.row_stride + j * out.column_stride];
      value = static_cast<T>(update.alpha * sum + (update.beta == 0 ? 0 : update.beta * static_cast<double>(value)));
    }
  });
}

}  // namespace

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run) {
  const InstructionSet& set = instruction_set();
  if (x.type == ScalarType::kFloat64) {
    sum_squares(set.double_precision, x, g, geometry, update, out, run);
  } else {
    sum_squares(set.single_precision, x, g, geometry, update, out, run);
  }
}

}  // namespace eigendamage::cpu
