#include "simd.h"

#if EIGENDAMAGE_X86_LEVELS
#pragma GCC target("arch=x86-64-v2")

#define EIGENDAMAGE_LEVEL v2
#define EIGENDAMAGE_VECTOR_BYTES 16
#define EIGENDAMAGE_TILE_ROWS 4
#include "eigh/certificate_text.h"
#include "eigh/group_text.h"
#include "eigh/hybrid_text.h"
#include "eigh/lanes_text.h"
#include "eigh/triangle_text.h"
#include "gradients_text.h"
#include "spectral_text.h"

namespace eigendamage::cpu {

const InstructionSet kX86V2{
    "v2",
    v2::kPanelKernels<float>,
    v2::kPanelKernels<double>,
    v2::kGradientKernels<float>,
    v2::kGradientKernels<double>,
    v2::kSpectralKernels<float>,
    v2::kSpectralKernels<double>,
    v2::kEighKernels<float>,
    v2::kEighKernels<double>,
    v2::group::kGroupSolver<float>,
    v2::group::kGroupSolver<double>,
    v2::lanes::kLaneSolver<float>,
    v2::lanes::kLaneSolver<double>,
    v2::kCertificate<float>,
    v2::kCertificate<double>,
    v2::triangle::kTriangleReader<float>,
    v2::triangle::kTriangleReader<double>,
};

}  // namespace eigendamage::cpu
#endif
