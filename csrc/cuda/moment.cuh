#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../kernels.h"
#include "elements.cuh"

namespace eigendamage::cuda {

constexpr std::int64_t kTermsInSum = 256;  ///< of what is added up one by one

/// What the kernels of second moments are told. Examples of a single position come as a few examples of many, whose
/// products are squared one by one.
struct Moment {
  ImageView x, g;  ///< x.batch examples
  ConvGeometry geometry;
  Update update;
  WeightView out;
  std::int64_t groups, outputs;            ///< outputs of one group
  std::int64_t offsets;                    ///< of the kernel
  std::int64_t positions, last_positions;  ///< of g in an example, and in the last one
  bool one_by_one;                         ///< the square of every product, instead of that of their sum
  std::int64_t splits;                     ///< of the examples
  std::int64_t examples_in_sum, positions_in_sum;
  void* partials;  ///< [split][output][kernel offset][input]; null if there is one split

  __host__ __device__ std::int64_t weights() const { return out.outputs * offsets * out.inputs; }
  __device__ std::int64_t first_example(std::int64_t split) const { return x.batch * split / splits; }
};

/// out = beta·out + alpha·sum at weight (output, kernel offset, input), or with `again` out += alpha·sum.
template <class T>
__device__ void update_weight(const Moment& m, std::int64_t output, std::int64_t offset, std::int64_t input, double sum,
                              bool again) {
  const std::int64_t width = m.geometry.horizontal.kernel;
  T& out = static_cast<T*>(m.out.data)[output * m.out.output_stride + input * m.out.input_stride +
                                       offset / width * m.out.row_stride + offset % width * m.out.column_stride];
  const double beta = again ? 1 : m.update.beta;
  out = static_cast<T>((beta == 0 ? 0 : beta * static_cast<double>(out)) + m.update.alpha * sum);
}

/// Enters the sum of some examples of a split where it belongs; the first ones, or `again` more.
template <class T>
__device__ void enter(const Moment& m, std::int64_t split, std::int64_t output, std::int64_t offset, std::int64_t input,
                      T sum, bool again) {
  if (m.splits == 1) {
    update_weight<T>(m, output, offset, input, static_cast<double>(sum), again);
  } else {
    T& partial =
        static_cast<T*>(m.partials)[((split * m.out.outputs + output) * m.offsets + offset) * m.out.inputs + input];
    partial = again ? partial + sum : sum;
  }
}

/// Σ_n (Σ_t g_nt a_nt)² of one weight over the examples [begin, end), one term after the other. What leaves the image is
/// no term, whatever g holds there.
template <class Element>
__device__ Sum<Element> plain_moment(const Moment& m, std::int64_t output, std::int64_t offset, std::int64_t input,
                                     std::int64_t begin, std::int64_t end) {
  const ConvAxis &v = m.geometry.vertical, &u = m.geometry.horizontal;
  const std::int64_t down = offset / u.kernel * v.dilation - v.pad, right = offset % u.kernel * u.dilation - u.pad;
  const std::int64_t channel = output / m.outputs * m.out.inputs + input;
  const auto* x = static_cast<const Element*>(m.x.data) + channel * m.x.channel_stride;
  const auto* g = static_cast<const Element*>(m.g.data) + output * m.g.channel_stride;
  Sum<Element> moment = 0;
  for (std::int64_t n = begin; n < end; ++n) {
    const std::int64_t count = n == m.x.batch - 1 ? m.last_positions : m.positions;
    Sum<Element> sum = 0, part = 0;
    std::int64_t row = 0, column = 0;
    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t h = row * v.stride + down, w = column * u.stride + right;
      if (0 <= h && h < m.x.height && 0 <= w && w < m.x.width) {
        const Sum<Element> product =
            widened(g[n * m.g.batch_stride + row * m.g.height_stride + column * m.g.width_stride]) *
            widened(x[n * m.x.batch_stride + h * m.x.height_stride + w * m.x.width_stride]);
        part += m.one_by_one ? product * product : product;
      }
      if (++column == u.output) {
        column = 0;
        ++row;
      }
      if (t % kTermsInSum == kTermsInSum - 1) {
        sum += part;
        part = 0;
      }
    }
    sum += part;
    moment += m.one_by_one ? sum : sum * sum;
  }
  return moment;
}

}  // namespace eigendamage::cuda
