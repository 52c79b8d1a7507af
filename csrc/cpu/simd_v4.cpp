#include "simd.h"

#if EIGENDAMAGE_X86_LEVELS
#pragma GCC target("arch=x86-64-v4")

#define EIGENDAMAGE_LEVEL v4
#define EIGENDAMAGE_VECTOR_BYTES 64
#define EIGENDAMAGE_TILE_ROWS 8
#include "eigh/certificate_text.h"
#include "eigh/group_text.h"
#include "eigh/hybrid_text.h"
#include "eigh/lanes_text.h"
#include "eigh/triangle_text.h"
#include "gradients_text.h"
#include "spectral_text.h"

namespace eigendamage::cpu {

const InstructionSet kX86V4{
    "v4",
    v4::kPanelKernels<float>,
    v4::kPanelKernels<double>,
    v4::kGradientKernels<float>,
    v4::kGradientKernels<double>,
    v4::kSpectralKernels<float>,
    v4::kSpectralKernels<double>,
    v4::kEighKernels<float>,
    v4::kEighKernels<double>,
    v4::group::kGroupSolver<float>,
    v4::group::kGroupSolver<double>,
    v4::lanes::kLaneSolver<float>,
    v4::lanes::kLaneSolver<double>,
    v4::kCertificate<float>,
    v4::kCertificate<double>,
    v4::triangle::kTriangleReader<float>,
    v4::triangle::kTriangleReader<double>,
};

}  // namespace eigendamage::cpu
#endif
