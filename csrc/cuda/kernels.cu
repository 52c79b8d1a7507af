#include "../kernels.h"

namespace eigendamage {
namespace {

const char* instruction_set() { return "sm_80"; }

}  // namespace

const Kernels* cuda_kernels() {
  static const Kernels kernels{.instruction_set = instruction_set};
  return &kernels;
}

}  // namespace eigendamage
