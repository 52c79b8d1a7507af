#include "../kernels.h"

#include "covariances.h"
#include "eigh/eigh.h"
#include "second_moment.h"
#include "simd.h"

namespace eigendamage {
namespace {

void covariance(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run) {
  cpu::covariance(x, bias, update, out, run, {});
}

void channel_covariance(const ImageView& x, const ConvGeometry& geometry, const Update& update, const FactorView& out,
                        const Execution& run) {
  cpu::channel_covariance(x, geometry, update, out, run, {});
}

void patch_covariance(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                      const FactorView& out, const Execution& run) {
  cpu::patch_covariance(x, geometry, bias, update, out, run, {});
}

void gradient_second_moment(const ImageView& x, const ImageView& g, const ConvGeometry& geometry, const Update& update,
                            const WeightView& out, const Execution& run) {
  cpu::gradient_second_moment(x, g, geometry, update, out, run, {});
}

const char* instruction_set() { return cpu::instruction_set().name; }

}  // namespace

const Kernels* cpu_kernels() {
  static const Kernels kernels{covariance, channel_covariance, patch_covariance, gradient_second_moment,
                               cpu::eigh,  instruction_set};
  return &kernels;
}

}  // namespace eigendamage
