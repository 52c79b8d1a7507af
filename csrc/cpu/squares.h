#pragma once

#include <memory>

#include "../kernels.h"
#include "gradients.h"
#include "panels.h"
#include "second_moment.h"
#include "simd.h"

namespace eigendamage::cpu {

/// What is multiplied of g's channels and x's, and what is squared.
enum class Products {
  kPairs,  ///< each with each; the sum over an example's positions
  kLanes,  ///< each with that of the same number; likewise
};

/// A layer as it is packed, and where its squares go.
template <class T>
struct Layer {
  const PanelKernels<T>& simd;
  const GradientKernels<T>& gradients;
  Update update;
  WeightView out;
  ConvGeometry geometry;  ///< between the grids of positions of g and of x
  std::int64_t examples;
  std::int64_t x_height, x_width;  ///< the grid of x's positions
  std::int64_t kernel_width;       ///< of the weight
  std::int64_t entries;            ///< kernel offsets among the channels of x: 1, or all where `geometry` is pointwise
  ScalarType type;                 ///< of the numbers that are packed
  Products products = Products::kPairs;
  Tiling x_tiling{}, g_tiling{};
  std::unique_ptr<Packer<T>> x_packer{}, g_packer{};
};

/// The geometry of a convolution that reads the pixel at each of its outputs.
constexpr ConvGeometry pointwise(std::int64_t height, std::int64_t width) {
  return {{1, 1, 0, 1, height}, {1, 1, 0, 1, width}};
}

/// out = beta·out + alpha·Σ_n (Σ_t g_nt a_ntᵀ)².
template <class T>
void add_squared_gradients(const Layer<T>& layer, const ParallelFor& parallel_for, const GradientTuning& tuning);

}  // namespace eigendamage::cpu
