#pragma once

#include <string>

namespace cuda_on_cpu {

/// The demangled name of a function of this program.
std::string kernel_name(const void* function);

}  // namespace cuda_on_cpu
