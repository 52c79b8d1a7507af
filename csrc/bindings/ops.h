#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

namespace eigendamage::bindings {

using Pair = std::array<std::int64_t, 2>;  // vertical, horizontal

/// kernels.h on tensors: x (N, C, H, W), or (…, F, …) where features are named by their dimension, out (g, F, F), or (F, F)
/// for one group, or g (N, O, Ho, Wo) and out (O, C/g, kh, kw), with any strides, on one device. The callers have checked the
/// arguments against each other; here only overlap and the device are looked at.
void covariance_(const at::Tensor& x, std::int64_t feature_dim, bool bias, double alpha, double beta,
                 const at::Tensor& out);

void channel_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                         double alpha, double beta, const at::Tensor& out);

void patch_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                       bool bias, double alpha, double beta, const at::Tensor& out);

void gradient_second_moment_(const at::Tensor& x, const at::Tensor& g, Pair kernel, Pair stride, Pair padding,
                             Pair dilation, double alpha, double beta, const at::Tensor& out);

/// The same of a Linear layer: x (N, I), g (N, O) or x (N, T, I), g (N, T, O); out (O, I).
void linear_second_moment_(const at::Tensor& x, const at::Tensor& g, double alpha, double beta, const at::Tensor& out);

/// Eigenvalues (…, n) and eigenvectors (…, n, n) as columns, each vector contiguous, of every stack (…, n, n), float or
/// double with any strides, all on one device; int32 codes of all matrices in order; and which of these, by number, were
/// left for another solver. Only a CPU's are listed: nothing waits for another device.
using EighResult = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor, std::vector<std::int64_t>>;

/// Where the results of several stacks go: each into memory of its own, or, where all are matrices of one type, into that
/// of all.
enum class Room { kOwn, kShared };

EighResult eigh(const std::vector<at::Tensor>& stacks, Room room = Room::kOwn);

/// The handle of torch's current stream on an accelerator.
void* current_stream(c10::DeviceIndex device);

/// Whether torch's switches let CUDA round factors of products of floats to TF32.
bool may_round_to_tf32();

const char* cpu_instruction_set();
const char* cuda_architectures();  ///< null where the build has no CUDA
const char* torch_version();       ///< of the headers this was compiled with

}  // namespace eigendamage::bindings
