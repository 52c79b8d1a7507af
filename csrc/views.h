#pragma once

#include <cstdint>

namespace eigendamage {

enum class ScalarType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr std::int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

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

/// A convolution's weight, or a number for each of its entries: (outputs, inputs, kernel height, kernel width) with any
/// strides. `inputs` are those of one group. float for every input but kFloat64, else double.
struct WeightView {
  void* data;
  ScalarType type;  ///< kFloat32 or kFloat64
  std::int64_t outputs, inputs;
  std::int64_t output_stride, input_stride, row_stride, column_stride;
};

/// `groups` square matrices (groups, size, size), rows contiguous; float for every x but kFloat64, else double.
struct FactorView {
  void* data;
  ScalarType type;  ///< kFloat32 or kFloat64
  std::int64_t groups, size;
  std::int64_t group_stride, row_stride;
};

/// What becomes of a matrix in `eigh`.
enum EighCode : std::int32_t {
  kSolved = 0,
  kNotFinite = 1,    ///< its lower triangle holds NaN or infinity
  kNotAccurate = 2,  ///< too large for this kernel, or no result that passes the check: try another
  kOverflow = 3,     ///< an eigenvalue is beyond the range of the type
};

/// A symmetric matrix (size, size) with any strides, in elements, of which the lower triangle is read, and where its
/// eigendecomposition goes, in the same type. None of them overlap.
struct EighProblem {
  const void* matrix;
  ScalarType type;  ///< kFloat32 or kFloat64
  std::int64_t size, row_stride, column_stride;
  void* values;        ///< (size)
  void* vectors_t;     ///< (size, size), contiguous: one eigenvector after the other
  std::int32_t* code;  ///< an EighCode
};

}  // namespace eigendamage
