#include "../kernels.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace eigendamage::cpu {
namespace {

float from_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float value;
  if (exponent == 0) value = std::ldexp(static_cast<float>(mantissa), -24);
  else if (exponent == 31) value = mantissa ? NAN : INFINITY;
  else value = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return bits & 0x8000 ? -value : value;
}

double load(const ImageView& x, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const std::int64_t i = n * x.batch_stride + c * x.channel_stride + h * x.height_stride + w * x.width_stride;
  switch (x.type) {
    case ScalarType::kFloat64: return static_cast<const double*>(x.data)[i];
    case ScalarType::kFloat32: return static_cast<const float*>(x.data)[i];
    case ScalarType::kFloat16: return from_half(static_cast<const std::uint16_t*>(x.data)[i]);
    case ScalarType::kBFloat16: break;
  }
  const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(x.data)[i]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void add_outer(std::vector<double>& sum, const std::vector<double>& row) {
  const std::size_t size = row.size();
  for (std::size_t i = 0; i < size; ++i) {
    const double a = row[i];
    if (a == 0) continue;
    for (std::size_t j = 0; j <= i; ++j) sum[i * size + j] += a * row[j];
  }
}

void store(const std::vector<double>& sum, std::int64_t group, const Update& update, const FactorView& out) {
  for (std::int64_t i = 0; i < out.size; ++i) {
    for (std::int64_t j = 0; j < out.size; ++j) {
      const std::int64_t hi = i > j ? i : j, lo = i > j ? j : i;
      const double value = update.alpha * sum[static_cast<std::size_t>(hi * out.size + lo)];
      const std::int64_t at = group * out.group_stride + i * out.row_stride + j;
      if (out.type == ScalarType::kFloat64) {
        double& o = static_cast<double*>(out.data)[at];
        o = update.beta == 0 ? value : update.beta * o + value;
      } else {
        float& o = static_cast<float*>(out.data)[at];
        o = static_cast<float>(update.beta == 0 ? value : update.beta * static_cast<double>(o) + value);
      }
    }
  }
}

struct Pixel {
  bool inside;
  std::int64_t h, w;
};

Pixel pixel(const ImageView& x, const ConvGeometry& geometry, std::int64_t th, std::int64_t tw, std::int64_t ih,
            std::int64_t iw) {
  const ConvAxis& v = geometry.vertical;
  const ConvAxis& u = geometry.horizontal;
  const std::int64_t h = v.stride * th + v.dilation * ih - v.pad;
  const std::int64_t w = u.stride * tw + u.dilation * iw - u.pad;
  return {h >= 0 && h < x.height && w >= 0 && w < x.width, h, w};
}

void patch_rows(const ImageView& x, const ConvGeometry& geometry, bool bias, bool per_offset, const Update& update,
                const FactorView& out) {
  const std::int64_t channels = x.channels / out.groups;
  const std::int64_t kh = geometry.vertical.kernel, kw = geometry.horizontal.kernel;
  for (std::int64_t g = 0; g < out.groups; ++g) {
    std::vector<double> sum(static_cast<std::size_t>(out.size * out.size));
    std::vector<double> row(static_cast<std::size_t>(out.size));
    for (std::int64_t n = 0; n < x.batch; ++n)
      for (std::int64_t th = 0; th < geometry.vertical.output; ++th)
        for (std::int64_t tw = 0; tw < geometry.horizontal.output; ++tw) {
          if (bias) row.back() = 1;
          for (std::int64_t ih = 0; ih < kh; ++ih)
            for (std::int64_t iw = 0; iw < kw; ++iw) {
              const Pixel p = pixel(x, geometry, th, tw, ih, iw);
              for (std::int64_t c = 0; c < channels; ++c) {
                const double value = p.inside ? load(x, n, g * channels + c, p.h, p.w) : 0;
                row[static_cast<std::size_t>(per_offset ? c : (c * kh + ih) * kw + iw)] = value;
              }
              if (per_offset) add_outer(sum, row);
            }
          if (!per_offset) add_outer(sum, row);
        }
    store(sum, g, update, out);
  }
}

void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution&) {
  patch_rows(x, {{1, 1, 0, 1, x.height}, {1, 1, 0, 1, x.width}}, bias, false, update, out);
}

void channel_covariance(const ImageView& x, const ConvGeometry& geometry, const Update& update, const FactorView& out,
                        const Execution&) {
  patch_rows(x, geometry, false, true, update, out);
}

void patch_covariance(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                      const FactorView& out, const Execution&) {
  patch_rows(x, geometry, bias, false, update, out);
}

const char* instruction_set() { return "generic"; }

}  // namespace
}  // namespace eigendamage::cpu

namespace eigendamage {

const Kernels* cpu_kernels() {
  static const Kernels kernels{cpu::covariance, cpu::channel_covariance, cpu::patch_covariance, cpu::instruction_set};
  return &kernels;
}

}  // namespace eigendamage
