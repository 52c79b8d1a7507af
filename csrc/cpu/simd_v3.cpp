#include "simd.h"

#if EIGENDAMAGE_X86_LEVELS
#pragma GCC target("arch=x86-64-v3")

#define EIGENDAMAGE_LEVEL v3
#define EIGENDAMAGE_VECTOR_BYTES 32
#define EIGENDAMAGE_TILE_ROWS 4
#include "eigh/certificate_text.h"
#include "eigh/group_text.h"
#include "eigh/hybrid_text.h"
#include "eigh/lanes_text.h"
#include "eigh/triangle_text.h"
#include "gradients_text.h"
#include "spectral_text.h"

namespace eigendamage::cpu {

const InstructionSet kX86V3{
    "v3",
    v3::kPanelKernels<float>,
    v3::kPanelKernels<double>,
    v3::kGradientKernels<float>,
    v3::kGradientKernels<double>,
    v3::kSpectralKernels<float>,
    v3::kSpectralKernels<double>,
    v3::kEighKernels<float>,
    v3::kEighKernels<double>,
    v3::group::kGroupSolver<float>,
    v3::group::kGroupSolver<double>,
    v3::lanes::kLaneSolver<float>,
    v3::lanes::kLaneSolver<double>,
    v3::kCertificate<float>,
    v3::kCertificate<double>,
    v3::triangle::kTriangleReader<float>,
    v3::triangle::kTriangleReader<double>,
};

}  // namespace eigendamage::cpu
#endif
