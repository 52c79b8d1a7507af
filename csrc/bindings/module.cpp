#include <torch/csrc/utils/pybind.h>

#include <cstdint>

#include "direct.h"
#include "ops.h"

namespace bindings = eigendamage::bindings;

PYBIND11_MODULE(_C, m) {
  using py::arg;
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("covariance", &bindings::covariance);
  m.def("channel_covariance", &bindings::channel_covariance);
  m.def("patch_covariance", &bindings::patch_covariance);
  m.def("gradient_second_moment", &bindings::gradient_second_moment);
  m.def("eigh_directly", &bindings::eigh_directly);
  m.def("covariance_", &bindings::covariance_, unlocked, arg("x"), arg("feature_dim"), arg("bias"), arg("alpha"),
        arg("beta"), arg("out"));
  m.def("channel_covariance_", &bindings::channel_covariance_, unlocked, arg("x"), arg("kernel"), arg("stride"),
        arg("padding"), arg("dilation"), arg("output_size"), arg("alpha"), arg("beta"), arg("out"));
  m.def("patch_covariance_", &bindings::patch_covariance_, unlocked, arg("x"), arg("kernel"), arg("stride"),
        arg("padding"), arg("dilation"), arg("output_size"), arg("bias"), arg("alpha"), arg("beta"), arg("out"));
  m.def("eigh", [](const std::vector<at::Tensor>& stacks) { return bindings::eigh(stacks); }, unlocked, arg("stacks"));
  m.def("gradient_second_moment_", &bindings::gradient_second_moment_, unlocked, arg("x"), arg("g"), arg("kernel"),
        arg("stride"), arg("padding"), arg("dilation"), arg("alpha"), arg("beta"), arg("out"));
  m.def("current_stream", [](int device) {
    return reinterpret_cast<std::uintptr_t>(bindings::current_stream(static_cast<c10::DeviceIndex>(device)));
  });
  m.def("may_round_to_tf32", &bindings::may_round_to_tf32);
  m.def("build_info", [] {
    return py::dict(arg("simd") = bindings::cpu_instruction_set(), arg("cuda") = bindings::cuda_architectures(),
                    arg("torch") = bindings::torch_version());
  });
}
