#include "direct.h"

#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../kernels.h"
#include "ops.h"
#include "tensors.h"

namespace eigendamage::bindings {
namespace {

constexpr std::int64_t kModest = 1 << 20;      // the largest number that geometry may contain
constexpr double kExact = 9007199254740992.0;  // products of sizes below 2⁵³ are exact
constexpr c10::DispatchKeySet kPlainOnCpu({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                           c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU});
constexpr c10::DispatchKeySet kPlainOnCuda({c10::DispatchKey::CUDA, c10::DispatchKey::ADInplaceOrView,
                                            c10::DispatchKey::AutogradCUDA, c10::DispatchKey::AutocastCUDA});

bool anyone_watches() {
  const c10::DispatchKeySet extra = c10::impl::tls_local_dispatch_key_set().included_ - c10::default_included_set;
  return !(extra - c10::autocast_dispatch_keyset).empty() || at::impl::torch_function_mode_enabled() ||
         at::hasCallbacks();
}

/// A dense tensor where this build has kernels.
const at::Tensor* plain_tensor(py::handle value) {
  static const c10::DispatchKeySet plain = cuda_architectures() ? kPlainOnCpu | kPlainOnCuda : kPlainOnCpu;
  if (!THPVariable_CheckExact(value.ptr())) return nullptr;
  const at::Tensor& tensor = THPVariable_Unpack(value.ptr());
  return plain.has_all(tensor.key_set()) ? &tensor : nullptr;
}

/// The same of the type of x, on its device.
const at::Tensor* plain_tensor_like(const at::Tensor& x, py::handle value) {
  const at::Tensor* tensor = plain_tensor(value);
  return tensor && tensor->scalar_type() == x.scalar_type() && tensor->device() == x.device() ? tensor : nullptr;
}

bool is_float(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

at::ScalarType result_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

std::optional<std::int64_t> integer(py::handle value, std::int64_t least) {
  if (!PyLong_CheckExact(value.ptr())) return {};
  int overflow = 0;
  const std::int64_t number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (overflow != 0 || number < least || number > kModest) return {};
  return number;
}

std::optional<Pair> pair(py::handle value, std::int64_t least) {
  const bool two = PyTuple_CheckExact(value.ptr()) && PyTuple_GET_SIZE(value.ptr()) == 2;
  const auto first = integer(two ? PyTuple_GET_ITEM(value.ptr(), 0) : value, least);
  const auto second = integer(two ? PyTuple_GET_ITEM(value.ptr(), 1) : value, least);
  if (!first || !second) return {};
  return Pair{*first, *second};
}

std::optional<double> real(py::handle value) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  const auto number = integer(value, -kModest);
  return number ? std::optional<double>(static_cast<double>(*number)) : std::nullopt;
}

/// alpha over what the sum of `terms` terms is divided by, and beta.
std::optional<Update> scales(py::handle alpha, py::handle beta, py::handle reduction, double terms) {
  const auto a = real(alpha), b = real(beta);
  if (!a || !b || !PyUnicode_Check(reduction.ptr()) || !(terms < kExact)) return {};
  if (PyUnicode_CompareWithASCIIString(reduction.ptr(), "sum") == 0) return Update{*a, *b};
  if (PyUnicode_CompareWithASCIIString(reduction.ptr(), "mean") != 0) return {};
  return Update{*a / std::max(terms, 1.0), *b};
}

/// x (N, C, H, W), the geometry of a convolution over it and its groups.
struct Convolution {
  const at::Tensor& x;
  Pair kernel, stride, padding, dilation, positions;
  std::int64_t groups;

  std::int64_t group_channels() const { return x.size(1) / groups; }
  std::int64_t offsets() const { return kernel[0] * kernel[1]; }
  double outputs() const {
    return static_cast<double>(x.size(0)) * static_cast<double>(positions[0]) * static_cast<double>(positions[1]);
  }
};

std::optional<Convolution> convolution(py::handle images, py::handle kernel_size, py::handle strides,
                                       py::handle paddings, py::handle dilations, py::handle group_count) {
  if (anyone_watches()) return {};
  const at::Tensor* x = plain_tensor(images);
  const auto kernel = pair(kernel_size, 1), stride = pair(strides, 1), padding = pair(paddings, 0),
             dilation = pair(dilations, 1);
  const auto groups = integer(group_count, 1);
  if (!x || !is_float(*x) || x->dim() != 4 || !kernel || !stride || !padding || !dilation || !groups) return {};
  if (x->size(1) == 0 || x->size(1) % *groups != 0) return {};
  Convolution found{*x, *kernel, *stride, *padding, *dilation, {}, *groups};
  for (const std::size_t axis : {0, 1}) {
    const std::int64_t pixels = x->size(static_cast<std::int64_t>(axis) + 2);
    const std::int64_t room = pixels + 2 * (*padding)[axis] - (*dilation)[axis] * ((*kernel)[axis] - 1) - 1;
    if (pixels == 0 || room < 0) return {};
    found.positions[axis] = room / (*stride)[axis] + 1;
  }
  return found;
}

/// A result, and the Python object to return: a new tensor of that shape, or `out` where it is one that can take it.
struct Result {
  at::Tensor tensor;
  py::object object;
};

std::optional<Result> result(py::handle out, const at::Tensor& x, at::IntArrayRef shape, double beta) {
  double bytes = 8;
  for (const std::int64_t size : shape) bytes *= static_cast<double>(size);
  if (!(bytes < kExact)) return {};
  if (out.is_none()) {
    if (beta != 0) return {};
    at::Tensor tensor = x.is_cpu() ? at::Tensor(at::detail::empty_cpu(shape, result_type(x)))
                                   : at::empty(shape, x.options().dtype(result_type(x)));
    py::object object = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
    return Result{std::move(tensor), std::move(object)};
  }
  const at::Tensor* tensor = plain_tensor(out);
  if (!tensor || tensor->scalar_type() != result_type(x) || tensor->device() != x.device()) return {};
  if (tensor->sizes() != shape || tensor->requires_grad()) return {};
  if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();  // autograd does not see the kernel write
  return Result{*tensor, py::reinterpret_borrow<py::object>(out)};
}

std::optional<Result> factor(py::handle out, const at::Tensor& x, std::int64_t groups, std::int64_t size, double beta) {
  const std::array<std::int64_t, 3> shape{groups, size, size};
  return result(out, x, at::IntArrayRef(shape).slice(groups == 1 ? 1 : 0), beta);
}

bool is(py::handle value, std::int64_t number) { return integer(value, number) == number; }

/// `gradient_second_moment` of a Linear layer, x (N, I) or (N, T, I).
py::object linear_second_moment(py::handle x, py::handle g, py::handle reduction, py::handle out, py::handle alpha,
                                py::handle beta) {
  if (anyone_watches()) return py::none();
  const at::Tensor* rows = plain_tensor(x);
  const at::Tensor* gradient = rows ? plain_tensor_like(*rows, g) : nullptr;
  if (!gradient || !is_float(*rows)) return py::none();
  const std::int64_t dims = rows->dim();
  if ((dims != 2 && dims != 3) || gradient->dim() != dims) return py::none();
  const auto positions = static_cast<std::size_t>(dims - 1);  // and the batch
  if (rows->sizes().slice(0, positions) != gradient->sizes().slice(0, positions)) return py::none();
  for (std::int64_t dim = 1; dim < dims; ++dim) {
    if (rows->size(dim) == 0 || gradient->size(dim) == 0) return py::none();
  }
  const auto update = scales(alpha, beta, reduction, static_cast<double>(rows->size(0)));
  if (!update) return py::none();
  const std::array<std::int64_t, 2> shape{gradient->size(-1), rows->size(-1)};
  const auto to = result(out, *rows, shape, update->beta);
  if (!to) return py::none();
  {
    const py::gil_scoped_release unlocked;
    linear_second_moment_(*rows, *gradient, update->alpha, update->beta, to->tensor);
  }
  return to->object;
}

}  // namespace

py::object covariance(py::handle x, py::handle feature_dim, py::handle groups, py::handle bias, py::handle reduction,
                      py::handle out, py::handle alpha, py::handle beta) {
  const at::Tensor* rows = anyone_watches() ? nullptr : plain_tensor(x);
  const auto count = integer(groups, 1);
  if (!rows || !is_float(*rows) || rows->dim() == 0 || !count || !PyBool_Check(bias.ptr())) return py::none();
  auto dim = integer(feature_dim, -rows->dim());
  if (!dim || *dim >= rows->dim()) return py::none();
  if (*dim < 0) *dim += rows->dim();
  const std::int64_t features = rows->size(*dim);
  if (features == 0 || features % *count != 0) return py::none();
  double terms = 1;
  for (std::int64_t i = 0; i < rows->dim(); ++i) terms *= i == *dim ? 1.0 : static_cast<double>(rows->size(i));
  const auto update = scales(alpha, beta, reduction, terms);
  if (!update) return py::none();
  const bool constant = bias.ptr() == Py_True;
  const auto to = factor(out, *rows, *count, features / *count + constant, update->beta);
  if (!to) return py::none();
  {
    const py::gil_scoped_release unlocked;
    covariance_(*rows, *dim, constant, update->alpha, update->beta, to->tensor);
  }
  return to->object;
}

py::object channel_covariance(py::handle x, py::handle kernel_size, py::handle stride, py::handle padding,
                              py::handle dilation, py::handle groups, py::handle reduction, py::handle out,
                              py::handle alpha, py::handle beta) {
  const auto conv = convolution(x, kernel_size, stride, padding, dilation, groups);
  if (!conv) return py::none();
  const auto update = scales(alpha, beta, reduction, conv->outputs() * static_cast<double>(conv->offsets()));
  if (!update) return py::none();
  const auto to = factor(out, conv->x, conv->groups, conv->group_channels(), update->beta);
  if (!to) return py::none();
  {
    const py::gil_scoped_release unlocked;
    channel_covariance_(conv->x, conv->kernel, conv->stride, conv->padding, conv->dilation, conv->positions,
                        update->alpha, update->beta, to->tensor);
  }
  return to->object;
}

py::object patch_covariance(py::handle x, py::handle kernel_size, py::handle stride, py::handle padding,
                            py::handle dilation, py::handle groups, py::handle bias, py::handle reduction,
                            py::handle out, py::handle alpha, py::handle beta) {
  const auto conv = convolution(x, kernel_size, stride, padding, dilation, groups);
  if (!conv || !PyBool_Check(bias.ptr())) return py::none();
  const auto update = scales(alpha, beta, reduction, conv->outputs());
  if (!update) return py::none();
  const bool constant = bias.ptr() == Py_True;
  const auto to = factor(out, conv->x, conv->groups, conv->group_channels() * conv->offsets() + constant, update->beta);
  if (!to) return py::none();
  {
    const py::gil_scoped_release unlocked;
    patch_covariance_(conv->x, conv->kernel, conv->stride, conv->padding, conv->dilation, conv->positions, constant,
                      update->alpha, update->beta, to->tensor);
  }
  return to->object;
}

py::object gradient_second_moment(py::handle x, py::handle g, py::handle kernel_size, py::handle stride,
                                  py::handle padding, py::handle dilation, py::handle groups, py::handle reduction,
                                  py::handle out, py::handle alpha, py::handle beta) {
  if (kernel_size.is_none()) {
    const bool usual = is(stride, 1) && is(padding, 0) && is(dilation, 1) && is(groups, 1);
    return usual ? linear_second_moment(x, g, reduction, out, alpha, beta) : py::none();
  }
  const auto conv = convolution(x, kernel_size, stride, padding, dilation, groups);
  const at::Tensor* gradient = conv ? plain_tensor_like(conv->x, g) : nullptr;
  if (!gradient || gradient->dim() != 4) return py::none();
  const std::int64_t outputs = gradient->size(1);
  const std::array<std::int64_t, 4> expected{conv->x.size(0), outputs, conv->positions[0], conv->positions[1]};
  if (outputs == 0 || outputs % conv->groups != 0 || gradient->sizes() != at::IntArrayRef(expected)) return py::none();
  const auto update = scales(alpha, beta, reduction, static_cast<double>(conv->x.size(0)));
  if (!update) return py::none();
  const std::array<std::int64_t, 4> shape{outputs, conv->group_channels(), conv->kernel[0], conv->kernel[1]};
  const auto to = result(out, conv->x, shape, update->beta);
  if (!to) return py::none();
  {
    const py::gil_scoped_release unlocked;
    gradient_second_moment_(conv->x, *gradient, conv->kernel, conv->stride, conv->padding, conv->dilation,
                            update->alpha, update->beta, to->tensor);
  }
  return to->object;
}

py::object eigh_directly(py::handle matrices, std::int64_t most_rows, bool informs) {
  if (anyone_watches()) return py::none();
  const bool listed = PyList_CheckExact(matrices.ptr());
  const auto list = listed ? py::reinterpret_borrow<py::list>(matrices) : py::list();
  const auto count = listed ? list.size() : 1;
  std::vector<at::Tensor> stacks;
  stacks.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const py::handle item = listed ? py::handle(PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i))) : matrices;
    const at::Tensor* stack = stacks.empty() ? plain_tensor(item) : plain_tensor_like(stacks.front(), item);
    if (!stack || (stack->scalar_type() != at::kFloat && stack->scalar_type() != at::kDouble)) return py::none();
    if (stack->dim() < 2 || (listed && stack->dim() > 2) || stack->size(-1) != stack->size(-2)) return py::none();
    if (stack->size(-1) > most_rows && (listed || !stack->is_cpu())) return py::none();
    stacks.push_back(*stack);
  }
  if (stacks.empty()) return py::none();
  const auto [values, vectors, codes, solved] = [&] {
    const py::gil_scoped_release unlocked;
    auto [of_values, of_vectors, of_codes, left] = eigh(stacks, listed ? Room::kShared : Room::kOwn);
    bool all = true;
    if (stacks.front().is_cpu() || !informs) {
      const at::Tensor on_cpu = of_codes.cpu();  // waits for a GPU
      const auto* code = on_cpu.const_data_ptr<std::int32_t>();
      all = std::all_of(code, code + on_cpu.numel(), [](std::int32_t found) { return found == kSolved; });
    }
    return std::tuple{std::move(of_values), std::move(of_vectors), std::move(of_codes), all};
  }();
  if (!solved) return py::none();
  const auto wrap = [](const at::Tensor& tensor) {
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
  };
  const auto wrap_all = [&](const std::vector<at::Tensor>& tensors) {
    py::list wrapped(tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) wrapped[i] = wrap(tensors[i]);
    return wrapped;
  };
  if (listed) return py::make_tuple(wrap_all(values), wrap_all(vectors), wrap(codes));
  const at::IntArrayRef batch = stacks.front().sizes().slice(0, stacks.front().dim() - 2);
  return py::make_tuple(wrap(values[0]), wrap(vectors[0]), wrap(batch.size() == 1 ? codes : codes.view(batch)));
}

}  // namespace eigendamage::bindings
