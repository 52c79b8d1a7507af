#include "reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace reference {
namespace {

using eigendamage::ConvGeometry;
using eigendamage::ImageView;
using eigendamage::ScalarType;

double widen_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double magnitude = std::ldexp(mantissa + 1024, exponent - 25);
  if (exponent == 0) magnitude = std::ldexp(mantissa, -24);
  if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
  return bits >> 15 ? -magnitude : magnitude;
}

double widen_bfloat16(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return static_cast<double>(value);
}

/// All patches of group g, one row of `columns` numbers for each (n, t): order (c, kh, kw), 0 outside the image.
struct Patches {
  std::size_t rows, columns;
  std::vector<double> values;
};

Patches unfold(const ImageView& x, const ConvGeometry& geometry, std::int64_t groups, std::int64_t g, bool bias) {
  const auto &v = geometry.vertical, &u = geometry.horizontal;
  const std::int64_t channels = x.channels / groups;
  Patches patches{};
  patches.rows = static_cast<std::size_t>(x.batch * v.output * u.output);
  patches.columns = static_cast<std::size_t>(channels * v.kernel * u.kernel + bias);
  for (std::int64_t n = 0; n < x.batch; ++n) {
    for (std::int64_t th = 0; th < v.output; ++th) {
      for (std::int64_t tw = 0; tw < u.output; ++tw) {
        for (std::int64_t c = 0; c < channels; ++c) {
          for (std::int64_t i = 0; i < v.kernel; ++i) {
            for (std::int64_t j = 0; j < u.kernel; ++j) {
              const std::int64_t h = v.stride * th + v.dilation * i - v.pad;
              const std::int64_t w = u.stride * tw + u.dilation * j - u.pad;
              const bool inside = 0 <= h && h < x.height && 0 <= w && w < x.width;
              patches.values.push_back(inside ? element(x, n, g * channels + c, h, w) : 0.0);
            }
          }
        }
        if (bias) patches.values.push_back(1.0);
      }
    }
  }
  return patches;
}

/// sum (columns, columns) += Σ_row rowᵀ row, the products and sums in T.
template <class T>
void add_gram(const Patches& patches, T* sum) {
  std::vector<T> values;
  for (const double value : patches.values) values.push_back(static_cast<T>(value));
  const std::size_t columns = patches.columns;
  for (std::size_t i = 0; i < columns; ++i) {
    for (std::size_t j = i; j < columns; ++j) {
      T entry = 0;
      for (std::size_t at = 0; at < values.size(); at += columns) entry += values[at + i] * values[at + j];
      sum[i * columns + j] += entry;
      if (i != j) sum[j * columns + i] += entry;
    }
  }
}

}  // namespace

double element(const ImageView& x, std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w) {
  const std::int64_t i = n * x.batch_stride + c * x.channel_stride + h * x.height_stride + w * x.width_stride;
  switch (x.type) {
    case ScalarType::kFloat32: return static_cast<double>(static_cast<const float*>(x.data)[i]);
    case ScalarType::kFloat64: return static_cast<const double*>(x.data)[i];
    case ScalarType::kBFloat16: return widen_bfloat16(static_cast<const std::uint16_t*>(x.data)[i]);
    case ScalarType::kFloat16: return widen_half(static_cast<const std::uint16_t*>(x.data)[i]);
  }
  return NAN;
}

std::vector<double> covariance(const ImageView& x, std::int64_t groups, bool bias) {
  return patch_covariance(x, {{1, 1, 0, 1, x.height}, {1, 1, 0, 1, x.width}}, groups, bias);
}

std::vector<double> channel_covariance(const ImageView& x, const ConvGeometry& geometry, std::int64_t groups) {
  const auto channels = static_cast<std::size_t>(x.channels / groups);
  const auto offsets = static_cast<std::size_t>(geometry.vertical.kernel * geometry.horizontal.kernel);
  std::vector<double> result;
  for (std::int64_t g = 0; g < groups; ++g) {
    const Patches patches = unfold(x, geometry, groups, g, false);
    std::vector<double> sum(channels * channels, 0.0);
    // Padding, too, is among the rows, as zeros that add nothing.
    for (const double* row = patches.values.data(); row != patches.values.data() + patches.values.size();
         row += patches.columns) {
      for (std::size_t k = 0; k < offsets; ++k) {
        for (std::size_t i = 0; i < channels; ++i) {
          for (std::size_t j = 0; j < channels; ++j) {
            sum[i * channels + j] += row[i * offsets + k] * row[j * offsets + k];
          }
        }
      }
    }
    result.insert(result.end(), sum.begin(), sum.end());
  }
  return result;
}

std::vector<double> patch_covariance(const ImageView& x, const ConvGeometry& geometry, std::int64_t groups, bool bias) {
  std::vector<double> result;
  for (std::int64_t g = 0; g < groups; ++g) {
    const Patches patches = unfold(x, geometry, groups, g, bias);
    std::vector<double> sum(patches.columns * patches.columns, 0.0);
    add_gram(patches, sum.data());
    result.insert(result.end(), sum.begin(), sum.end());
  }
  return result;
}

std::vector<double> gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry,
                                           std::int64_t groups) {
  std::vector<double> result;
  const std::int64_t outputs = g.channels / groups, positions = g.height * g.width;
  for (std::int64_t group = 0; group < groups; ++group) {
    const Patches patches = unfold(x, geometry, groups, group, false);
    for (std::int64_t o = group * outputs; o < (group + 1) * outputs; ++o) {
      for (std::size_t i = 0; i < patches.columns; ++i) {
        double sum = 0;
        for (std::int64_t n = 0; n < x.batch; ++n) {
          double gradient = 0;
          for (std::int64_t t = 0; t < positions; ++t) {
            const auto row = static_cast<std::size_t>(n * positions + t);
            gradient += element(g, n, o, t / g.width, t % g.width) * patches.values[row * patches.columns + i];
          }
          sum += gradient * gradient;
        }
        result.push_back(sum);
      }
    }
  }
  return result;
}

std::vector<double> patch_covariance_in_float(const ImageView& x, const ConvGeometry& geometry) {
  const Patches patches = unfold(x, geometry, 1, 0, false);
  constexpr std::size_t kBlock = 256;  // rows that a matrix product sums at a time
  std::vector<float> total(patches.columns * patches.columns, 0.0f);
  for (std::size_t r = 0; r < patches.rows; r += kBlock) {
    const std::size_t rows = std::min(kBlock, patches.rows - r);
    const auto begin = patches.values.begin() + static_cast<std::ptrdiff_t>(r * patches.columns);
    const Patches block{rows, patches.columns, {begin, begin + static_cast<std::ptrdiff_t>(rows * patches.columns)}};
    std::vector<float> sum(total.size(), 0.0f);
    add_gram(block, sum.data());
    for (std::size_t i = 0; i < sum.size(); ++i) total[i] += sum[i];
  }
  return {total.begin(), total.end()};
}

}  // namespace reference
