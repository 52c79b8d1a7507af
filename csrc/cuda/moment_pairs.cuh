#pragma once

#include <cstdint>

#include "moment.cuh"

namespace eigendamage::cuda {

constexpr int kPairThreads = 128;
constexpr int kPairOffsets = 9;  ///< kernel offsets that a warp sums at a time

/// The warps of a launch: for each split, part of the kernel, input of a group and output.
struct PairLayout {
  std::int64_t parts;
  int lanes;  ///< of a warp that share an example; a power of two

  __host__ __device__ std::int64_t warps(const Moment& m) const {
    return m.splits * parts * m.out.inputs * m.out.outputs;
  }
};

/// The weights between an output and an input at some kernel offsets. A lane sums every few positions of an example.
template <class Element>
class MomentPair {
 public:
  using T = Sum<Element>;

  __device__ MomentPair(const Moment& m, int lanes, std::int64_t output, std::int64_t input, std::int64_t first_offset)
      : m_(m), lanes_(lanes), output_(output), input_(input), first_offset_(first_offset) {
    count_ = static_cast<int>(min(m.offsets - first_offset, static_cast<std::int64_t>(kPairOffsets)));
    const ConvAxis &v = m.geometry.vertical, &u = m.geometry.horizontal;
#pragma unroll
    for (int k = 0; k < kPairOffsets; ++k) {
      const std::int64_t offset = first_offset + min(k, count_ - 1);
      down_[k] = static_cast<int>(offset / u.kernel * v.dilation - v.pad);
      right_[k] = static_cast<int>(offset % u.kernel * u.dilation - u.pad);
      offsets_[k] = down_[k] * m.x.height_stride + right_[k] * m.x.width_stride;
    }
  }

  /// The sums over the examples of a split.
  __device__ void run(std::int64_t split) {
    const int lane = static_cast<int>(threadIdx.x) % 32, together = 32 / lanes_;
    const std::int64_t first = m_.first_example(split), last = m_.first_example(split + 1);
    std::int64_t begin = first;
    do {
      const std::int64_t end = min(begin + m_.examples_in_sum, last);
      T squares[kPairOffsets] = {};
      for (std::int64_t n = begin; n < end; n += together) add_squares(n + lane / lanes_, end, squares);
      T own = 0;
#pragma unroll
      for (int k = 0; k < kPairOffsets; ++k) {
        for (int distance = lanes_; distance < 32; distance *= 2) {
          squares[k] += __shfl_xor_sync(0xFFFFFFFF, squares[k], distance);
        }
        if (lane == k) own = squares[k];
      }
      if (lane < count_) enter<T>(m_, split, output_, first_offset_ + lane, input_, own, begin > first);
      begin = end;
    } while (begin < last);
  }

 private:
  /// squares += (Σ_t g_nt a_nt)² if n < end.
  __device__ void add_squares(std::int64_t n, std::int64_t end, T (&squares)[kPairOffsets]) const {
    const std::int64_t all = n == m_.x.batch - 1 ? m_.last_positions : m_.positions;
    const int positions = n < end ? static_cast<int>(all) : 0;
    T sums[kPairOffsets] = {};
    for (int position = static_cast<int>(threadIdx.x) % lanes_; position < positions;) {
      const int until = min(positions, position + static_cast<int>(kTermsInSum) * lanes_);
      T parts[kPairOffsets] = {};
      for (; position < until; position += lanes_) add_products(n, position, parts);
#pragma unroll
      for (int k = 0; k < kPairOffsets; ++k) sums[k] += parts[k];
    }
#pragma unroll
    for (int k = 0; k < kPairOffsets; ++k) {
      for (int distance = 1; distance < lanes_; distance *= 2) {
        sums[k] += __shfl_xor_sync(0xFFFFFFFF, sums[k], distance);
      }
      squares[k] += m_.one_by_one ? sums[k] : sums[k] * sums[k];
    }
  }

  /// What leaves the image is no product, whatever g holds there.
  __device__ void add_products(std::int64_t n, int position, T (&sums)[kPairOffsets]) const {
    const int width = static_cast<int>(m_.geometry.horizontal.output), row = position / width,
              column = position % width;
    const int h = row * static_cast<int>(m_.geometry.vertical.stride);
    const int w = column * static_cast<int>(m_.geometry.horizontal.stride);
    const std::int64_t channel = output_ / m_.outputs * m_.out.inputs + input_;
    const Element* x = static_cast<const Element*>(m_.x.data) + (n * m_.x.batch_stride + channel * m_.x.channel_stride +
                                                                 h * m_.x.height_stride + w * m_.x.width_stride);
    const T g = widened(static_cast<const Element*>(m_.g.data)[n * m_.g.batch_stride + output_ * m_.g.channel_stride +
                                                               row * m_.g.height_stride + column * m_.g.width_stride]);
#pragma unroll
    for (int k = 0; k < kPairOffsets; ++k) {
      const auto down = static_cast<unsigned>(h + down_[k]), right = static_cast<unsigned>(w + right_[k]);
      if (down >= static_cast<unsigned>(m_.x.height) || right >= static_cast<unsigned>(m_.x.width)) continue;
      const T product = g * widened(x[offsets_[k]]);
      sums[k] += m_.one_by_one ? product * product : product;
    }
  }

  const Moment& m_;
  int lanes_, count_;
  std::int64_t output_, input_, first_offset_;
  int down_[kPairOffsets], right_[kPairOffsets];
  std::int64_t offsets_[kPairOffsets];  ///< of a pixel from that of the first kernel offset, were there no padding
};

template <class Element>
__global__ void __launch_bounds__(kPairThreads)
    moment_pairs_kernel(const __grid_constant__ Moment m, const __grid_constant__ PairLayout layout) {
  std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * (kPairThreads / 32) + threadIdx.x / 32;
  if (index >= layout.warps(m)) return;
  const std::int64_t output = index % m.out.outputs;
  index /= m.out.outputs;
  const std::int64_t input = index % m.out.inputs;
  index /= m.out.inputs;
  MomentPair<Element>(m, layout.lanes, output, input, index % layout.parts * kPairOffsets).run(index / layout.parts);
}

}  // namespace eigendamage::cuda
