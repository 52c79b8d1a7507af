#include <string>

#include "../kernels.h"
#include "covariances.h"
#include "eigh.h"
#include "second_moment.h"

#ifndef __CUDA_ARCH_LIST__  // compiled for the CPU
#define __CUDA_ARCH_LIST__ 0
#endif

namespace eigendamage {
namespace {

void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run) {
  cuda::covariance(x, bias, update, out, run, {});
}

void channel_covariance(const ImageView& x, const ConvGeometry& geometry, const Update& update, const FactorView& out,
                        const Execution& run) {
  cuda::channel_covariance(x, geometry, update, out, run, {});
}

void patch_covariance(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                      const FactorView& out, const Execution& run) {
  cuda::patch_covariance(x, geometry, bias, update, out, run, {});
}

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run) {
  cuda::gradient_second_moment(x, g, geometry, update, out, run, {});
}

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
  static const Kernels kernels{.covariance = covariance,
                               .channel_covariance = channel_covariance,
                               .patch_covariance = patch_covariance,
                               .gradient_second_moment = gradient_second_moment,
                               .eigh = cuda::eigh,
                               .instruction_set = instruction_set};
  return &kernels;
}

}  // namespace eigendamage
