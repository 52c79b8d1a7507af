#include "ops.h"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "../kernels.h"
#include "tensors.h"

namespace eigendamage::bindings {
namespace {

/// The entry of the kernels for a device; a backend may lack some.
template <class Kernel>
Kernel kernel_for(const char* op, Kernel Kernels::* entry, c10::Device device) {
  const Kernels* kernels = device.is_cpu() ? cpu_kernels() : device.is_cuda() ? cuda_kernels() : nullptr;
  if (kernels && kernels->*entry) return kernels->*entry;
  throw std::invalid_argument(std::string(op) + ": x must be on a device this build has a kernel for, got " +
                              device.str() + "; move it with .cpu()");
}

ParallelFor torch_threads() {
  return [](std::int64_t count, const std::function<void(std::int64_t, std::int64_t)>& body) {
    at::parallel_for(0, count, 1, body);
  };
}

/// Calls launch(execution) for the device: torch's threads, or its current stream there.
template <class Launch>
void execute(c10::Device device, Launch&& launch) {
  const c10::DeviceGuard guard(device);
  if (device.is_cpu()) {
    const ParallelFor parallel_for = torch_threads();
    return launch(Execution{.parallel_for = &parallel_for});
  }
  std::vector<at::Tensor> kept;  // torch reuses their memory in the order of the stream
  const Scratch scratch = [&](std::int64_t bytes) {
    kept.push_back(at::empty({bytes}, at::TensorOptions(at::kByte).device(device)));
    return kept.back().mutable_data_ptr();
  };
  launch(Execution{.stream = current_stream(device.index()), .scratch = &scratch, .tf32 = may_round_to_tf32()});
}

using Input = std::pair<const char*, const at::Tensor&>;  // its name, itself

/// Calls launch(kernel, execution) on the device and current stream of the inputs.
template <class Kernel, class Launch>
void run(const char* op, Kernel Kernels::* entry, std::initializer_list<Input> inputs, const at::Tensor& out,
         Launch&& launch) {
  if (out.numel() == 0) return;
  const auto refuse = [op](const std::string& what) {
    throw std::invalid_argument(std::string(op) + ": out must not overlap " + what);
  };
  if (may_overlap_itself(out)) refuse("itself, got one whose strides revisit elements; pass out.clone()");
  for (const auto& [name, input] : inputs) {
    if (may_overlap(input, out)) refuse(name + std::string(", got views of the same memory; pass a tensor of its own"));
  }
  const c10::Device device = inputs.begin()->second.device();
  const Kernel kernel = kernel_for(op, entry, device);
  execute(device, [&](const Execution& execution) { launch(kernel, execution); });
}

/// Calls launch(kernel, factor view, execution), on a copy of `out` where its rows are not contiguous.
template <class Kernel, class Launch>
void run_factor(const char* op, Kernel Kernels::* entry, const at::Tensor& x, const at::Tensor& out, Launch&& launch) {
  run(op, entry, {{"x", x}}, out, [&](Kernel kernel, const Execution& execution) {
    if (has_contiguous_rows(out)) return launch(kernel, factor_view(out), execution);
    const at::Tensor rows = out.contiguous();
    launch(kernel, factor_view(rows), execution);
    out.copy_(rows);
  });
}

ConvGeometry geometry(Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size) {
  const auto axis = [&](std::size_t i) {
    return ConvAxis{kernel[i], stride[i], padding[i], dilation[i], output_size[i]};
  };
  return {axis(0), axis(1)};
}

std::vector<std::int64_t> contiguous_strides(at::IntArrayRef sizes) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t dim = strides.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= std::max<std::int64_t>(sizes[dim], 1);
  }
  return strides;
}

/// Strides of a stack (…, n, n) whose columns are contiguous.
std::vector<std::int64_t> columns(const at::Tensor& stack) {
  std::vector<std::int64_t> strides = contiguous_strides(stack.sizes());
  std::swap(strides.end()[-1], strides.end()[-2]);
  return strides;
}

/// Room for a result of every matrix (n, n) of a list, all in one block of memory: a tenth of the time that so many blocks
/// take.
class SharedRoom {
 public:
  /// For numbers_of(n) numbers each.
  template <class NumbersOf>
  SharedRoom(const std::vector<at::Tensor>& matrices, const NumbersOf& numbers_of) {
    constexpr std::int64_t kAlignment = 16;  // in numbers
    std::int64_t end = 0;
    for (const at::Tensor& matrix : matrices) {
      begins_.push_back(end);
      end += (numbers_of(matrix.size(0)) + kAlignment - 1) / kAlignment * kAlignment;
    }
    block_ = at::empty({end}, matrices.front().options());
  }

  void* part(std::size_t i) const {
    const auto bytes = begins_[i] * static_cast<std::int64_t>(block_.element_size());
    return static_cast<char*>(block_.mutable_data_ptr()) + bytes;
  }

  at::Tensor tensor(std::size_t i, at::IntArrayRef sizes, at::IntArrayRef strides) const {
    at::Tensor part =
        at::detail::make_tensor<c10::TensorImpl>(c10::Storage(block_.storage()), block_.key_set(), block_.dtype());
    part.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, begins_[i]);
    return part;
  }

 private:
  at::Tensor block_;
  std::vector<std::int64_t> begins_;
};

/// Appends the matrices of a stack (…, n, n); the codes go to `code` and behind.
void add_problems(const at::Tensor& stack, void* values, void* vectors, std::int32_t* code,
                  std::vector<EighProblem>& problems) {
  const auto bytes = [&](std::int64_t numbers) { return numbers * static_cast<std::int64_t>(stack.element_size()); };
  const auto sizes = stack.sizes(), strides = stack.strides();
  const std::int64_t n = stack.size(-1), count = c10::multiply_integers(sizes.slice(0, stack.dim() - 2));
  const char* from = static_cast<const char*>(stack.const_data_ptr());
  char *to_values = static_cast<char*>(values), *to_vectors = static_cast<char*>(vectors);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t offset = 0, rest = i;
    for (auto dim = static_cast<std::size_t>(stack.dim() - 2); dim-- > 0; rest /= sizes[dim]) {
      offset += rest % sizes[dim] * strides[dim];
    }
    problems.push_back({from + bytes(offset), scalar_type(stack), n, stack.stride(-2), stack.stride(-1),
                        to_values + bytes(i * n), to_vectors + bytes(i * n * n), code + i});
  }
}

}  // namespace

void covariance_(const at::Tensor& x, std::int64_t feature_dim, bool bias, double alpha, double beta,
                 const at::Tensor& out) {
  const auto rows = rows_view(x, feature_dim);
  if (!rows)
    return covariance_(x.movedim(feature_dim, -1).reshape({-1, x.size(feature_dim)}), 1, bias, alpha, beta, out);
  run_factor("covariance", &Kernels::covariance, x, out,
             [&](auto compute, const FactorView& view, const Execution& execution) {
               compute(*rows, bias, {alpha, beta}, view, execution);
             });
}

void channel_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                         double alpha, double beta, const at::Tensor& out) {
  const ConvGeometry window = geometry(kernel, stride, padding, dilation, output_size);
  run_factor("channel_covariance", &Kernels::channel_covariance, x, out,
             [&](auto compute, const FactorView& view, const Execution& execution) {
               compute(image_view(x), window, {alpha, beta}, view, execution);
             });
}

void patch_covariance_(const at::Tensor& x, Pair kernel, Pair stride, Pair padding, Pair dilation, Pair output_size,
                       bool bias, double alpha, double beta, const at::Tensor& out) {
  const ConvGeometry window = geometry(kernel, stride, padding, dilation, output_size);
  run_factor("patch_covariance", &Kernels::patch_covariance, x, out,
             [&](auto compute, const FactorView& view, const Execution& execution) {
               compute(image_view(x), window, bias, {alpha, beta}, view, execution);
             });
}

void gradient_second_moment_(const at::Tensor& x, const at::Tensor& g, Pair kernel, Pair stride, Pair padding,
                             Pair dilation, double alpha, double beta, const at::Tensor& out) {
  if (g.dim() != 4 || out.dim() != 4) throw std::invalid_argument("g and out must be 4-D");
  const ConvGeometry window = geometry(kernel, stride, padding, dilation, {g.size(2), g.size(3)});
  run("gradient_second_moment", &Kernels::gradient_second_moment, {{"x", x}, {"g", g}}, out,
      [&](auto compute, const Execution& execution) {
        compute(image_view(x), image_view(g), window, {alpha, beta}, weight_view(out), execution);
      });
}

void linear_second_moment_(const at::Tensor& x, const at::Tensor& g, double alpha, double beta, const at::Tensor& out) {
  const ImageView pixels = features_view(x);
  const WeightView weight{out.mutable_data_ptr(), scalar_type(out), out.size(0), out.size(1),
                          out.stride(0),          out.stride(1),    1,           1};
  const ConvGeometry window = geometry({1, 1}, {1, 1}, {0, 0}, {1, 1}, {pixels.height, pixels.width});
  run("gradient_second_moment", &Kernels::gradient_second_moment, {{"x", x}, {"g", g}}, out,
      [&](auto compute, const Execution& execution) {
        compute(pixels, features_view(g), window, {alpha, beta}, weight, execution);
      });
}

EighResult eigh(const std::vector<at::Tensor>& stacks, Room room) {
  std::int64_t count = 0;
  for (const at::Tensor& stack : stacks) count += c10::multiply_integers(stack.sizes().slice(0, stack.dim() - 2));
  const c10::Device device = stacks.empty() ? c10::Device(at::kCPU) : stacks.front().device();
  const auto kernel = kernel_for("eigh", &Kernels::eigh, device);
  std::vector<at::Tensor> values, vectors;
  values.reserve(stacks.size());
  vectors.reserve(stacks.size());
  at::Tensor codes = at::empty({count}, at::TensorOptions(at::kInt).device(device));
  auto* code = codes.mutable_data_ptr<std::int32_t>();
  std::vector<EighProblem> problems;
  problems.reserve(static_cast<std::size_t>(count));
  const auto solve = [&](const auto& values_of, const auto& vectors_of) {
    for (std::size_t i = 0; i < stacks.size(); ++i) {
      add_problems(stacks[i], values_of(i), vectors_of(i), code + problems.size(), problems);
    }
    execute(device, [&](const Execution& execution) { kernel(problems.data(), count, execution); });
  };
  if (room == Room::kShared) {
    const SharedRoom of_values(stacks, [](std::int64_t n) { return n; });
    const SharedRoom of_vectors(stacks, [](std::int64_t n) { return n * n; });
    solve([&](std::size_t i) { return of_values.part(i); }, [&](std::size_t i) { return of_vectors.part(i); });
    for (std::size_t i = 0; i < stacks.size(); ++i) {  // while a GPU is at work
      const std::int64_t n = stacks[i].size(0);
      values.push_back(of_values.tensor(i, {n}, {1}));
      vectors.push_back(of_vectors.tensor(i, {n, n}, {1, std::max<std::int64_t>(n, 1)}));
    }
  } else {
    for (const at::Tensor& stack : stacks) {
      values.push_back(at::empty(stack.sizes().slice(0, stack.dim() - 1), stack.options()));
      vectors.push_back(at::empty_strided(stack.sizes(), columns(stack), stack.options()));
    }
    solve([&](std::size_t i) { return values[i].mutable_data_ptr(); },
          [&](std::size_t i) { return vectors[i].mutable_data_ptr(); });
  }
  std::vector<std::int64_t> left;
  for (std::int64_t i = 0; device.is_cpu() && i < count; ++i) {
    if (code[i] == kNotAccurate) left.push_back(i);
  }
  return {std::move(values), std::move(vectors), std::move(codes), std::move(left)};
}

void* current_stream(c10::DeviceIndex device) { return at::accelerator::getCurrentStream(device).native_handle(); }

bool may_round_to_tf32() {  // allowTF32CuBLAS() throws where both the old and the new switches were set
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

const char* cpu_instruction_set() { return cpu_kernels()->instruction_set(); }
const char* cuda_architectures() { return cuda_kernels() ? cuda_kernels()->instruction_set() : nullptr; }
const char* torch_version() { return TORCH_VERSION; }

}  // namespace eigendamage::bindings
