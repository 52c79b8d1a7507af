#include <string>

#include "../kernels.h"

#ifndef __CUDA_ARCH_LIST__  // compiled for the CPU
#define __CUDA_ARCH_LIST__ 0
#endif

namespace eigendamage {
namespace {

const char* instruction_set() {
  static const std::string names = [] {
    std::string found;
    for (const int arch : {__CUDA_ARCH_LIST__}) found += (found.empty() ? "sm_" : " sm_") + std::to_string(arch / 10);
    return found;
  }();
  return names.c_str();
}

}  // namespace

const Kernels* cuda_kernels() {
  static const Kernels kernels{.instruction_set = instruction_set};
  return &kernels;
}

}  // namespace eigendamage
