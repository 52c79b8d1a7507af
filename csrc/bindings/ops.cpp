#include "ops.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <c10/core/DeviceGuard.h>
#include <torch/headeronly/version.h>

#include <stdexcept>
#include <string>

#include "../kernels.h"
#include "tensors.h"

namespace eigendamage::bindings {
namespace {

const Kernels& kernels_for(c10::Device device) {
  const Kernels* kernels = device.is_cpu() ? cpu_kernels() : device.is_cuda() ? cuda_kernels() : nullptr;
  if (!kernels) throw std::invalid_argument("this build has no kernels for device " + device.str());
  return *kernels;
}

/// Calls launch(kernels, out view, execution) on x's device and current stream.
template <class Launch>
void run(const char* op, const at::Tensor& x, const at::Tensor& out, Launch&& launch) {
  if (out.numel() == 0) return;
  const auto refuse = [op](const char* what) {
    throw std::invalid_argument(std::string(op) + ": out must not overlap " + what);
  };
  if (may_overlap_itself(out)) refuse("itself, got one whose strides revisit elements; pass out.clone()");
  if (may_overlap(x, out)) refuse("x, got views of the same memory; pass a tensor of its own");
  const c10::DeviceGuard guard(x.device());
  const Kernels& kernels = kernels_for(x.device());
  const ParallelFor parallel_for = [](std::int64_t count, const std::function<void(std::int64_t, std::int64_t)>& body) {
    at::parallel_for(0, count, 1, body);
  };
  void* stream = x.is_cpu() ? nullptr : at::accelerator::getCurrentStream(x.device().index()).native_handle();
  const Execution execution{&parallel_for, stream};
  if (has_contiguous_rows(out)) {
    launch(kernels, factor_view(out), execution);
  } else {
    const at::Tensor rows = out.contiguous();
    launch(kernels, factor_view(rows), execution);
    out.copy_(rows);
  }
}

ConvGeometry geometry(Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size) {
  const auto axis = [&](std::size_t i) {
    return ConvAxis{kernel[i], stride[i], padding[i], dilation[i], output_size[i]};
  };
  return {axis(0), axis(1)};
}

}  // namespace

void covariance_(const at::Tensor& x, bool bias, double alpha, double beta, const at::Tensor& out) {
  run("covariance", x, out, [&](const Kernels& kernels, const FactorView& view, const Execution& execution) {
    kernels.covariance(image_view(x), bias, {alpha, beta}, view, execution);
  });
}

void channel_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                         double alpha, double beta, const at::Tensor& out) {
  const ConvGeometry window = geometry(kernel, stride, padding, dilation, output_size);
  run("channel_covariance", x, out, [&](const Kernels& kernels, const FactorView& view, const Execution& execution) {
    kernels.channel_covariance(image_view(x), window, {alpha, beta}, view, execution);
  });
}

void patch_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                       bool bias, double alpha, double beta, const at::Tensor& out) {
  const ConvGeometry window = geometry(kernel, stride, padding, dilation, output_size);
  run("patch_covariance", x, out, [&](const Kernels& kernels, const FactorView& view, const Execution& execution) {
    kernels.patch_covariance(image_view(x), window, bias, {alpha, beta}, view, execution);
  });
}

const char* cpu_instruction_set() { return cpu_kernels()->instruction_set(); }
bool has_cuda() { return cuda_kernels() != nullptr; }
const char* torch_version() { return TORCH_VERSION; }

}  // namespace eigendamage::bindings
