#pragma once

#include <cstdint>

namespace eigendamage {

enum class ScalarType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

/// A batch of images (N, C, H, W) with any strides, in elements. A matrix of rows is the case H = W = 1.
struct ImageView {
  const void* data;
  ScalarType type;
  std::int64_t batch, channels, height, width;
  std::int64_t batch_stride, channel_stride, height_stride, width_stride;
};

/// One axis of a convolution: output t reads input stride·t + dilation·i − pad for i in [0, kernel).
struct ConvAxis {
  std::int64_t kernel, stride, pad, dilation;
  std::int64_t output;  ///< number of output positions; padding after the image is implied by it
};

struct ConvGeometry {
  ConvAxis vertical, horizontal;
};

/// `groups` square matrices (groups, size, size), rows contiguous; float for every x but kFloat64, else double.
struct FactorView {
  void* data;
  ScalarType type;  ///< kFloat32 or kFloat64
  std::int64_t groups, size;
  std::int64_t group_stride, row_stride;
};

}  // namespace eigendamage
