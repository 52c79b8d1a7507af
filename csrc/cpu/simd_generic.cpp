#include "simd.h"

#define EIGENDAMAGE_LEVEL generic
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

const InstructionSet kGeneric{
    "generic",
    generic::kPanelKernels<float>,
    generic::kPanelKernels<double>,
    generic::kGradientKernels<float>,
    generic::kGradientKernels<double>,
    generic::kSpectralKernels<float>,
    generic::kSpectralKernels<double>,
    generic::kEighKernels<float>,
    generic::kEighKernels<double>,
    generic::group::kGroupSolver<float>,
    generic::group::kGroupSolver<double>,
    generic::lanes::kLaneSolver<float>,
    generic::lanes::kLaneSolver<double>,
    generic::kCertificate<float>,
    generic::kCertificate<double>,
    generic::triangle::kTriangleReader<float>,
    generic::triangle::kTriangleReader<double>,
};

}  // namespace eigendamage::cpu
