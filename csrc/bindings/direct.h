#pragma once

#include <torch/csrc/utils/pybind.h>

namespace eigendamage::bindings {

/// The functions of ops.py with arguments as there, for the ordinary call: dense tensors on one device that has kernels,
/// geometry of modest numbers, and nobody who watches operators, such as a mode, a transform or a profiler. Neither Python's checks nor the
/// dispatcher are run, which take longer than the kernel where x is small. Anything out of the ordinary, and every error,
/// is left to Python: None.
py::object covariance(py::handle x, py::handle feature_dim, py::handle groups, py::handle bias, py::handle reduction,
                      py::handle out, py::handle alpha, py::handle beta);

py::object channel_covariance(py::handle x, py::handle kernel_size, py::handle stride, py::handle padding,
                              py::handle dilation, py::handle groups, py::handle reduction, py::handle out,
                              py::handle alpha, py::handle beta);

py::object patch_covariance(py::handle x, py::handle kernel_size, py::handle stride, py::handle padding,
                            py::handle dilation, py::handle groups, py::handle bias, py::handle reduction,
                            py::handle out, py::handle alpha, py::handle beta);

py::object gradient_second_moment(py::handle x, py::handle g, py::handle kernel_size, py::handle stride,
                                  py::handle padding, py::handle dilation, py::handle groups, py::handle reduction,
                                  py::handle out, py::handle alpha, py::handle beta);

/// eigh of a stack, or of a list of matrices of one type with at most `most_rows`, where all are solved or, with `informs`, a
/// GPU is not waited for. A GPU's stack has at most `most_rows` too. The results of a list lie in one block of memory.
py::object eigh_directly(py::handle matrices, std::int64_t most_rows, bool informs);

}  // namespace eigendamage::bindings
