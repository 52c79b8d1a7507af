#pragma once

#include <cstdint>

#include "../../kernels.h"

namespace eigendamage::cpu {

/// The largest matrix that `eigh` solves itself; beyond, a library with large blocks is faster.
constexpr std::int64_t kMaxEighSize = 2304;

/// See Kernels::eigh.
void eigh(const EighProblem* problems, std::int64_t count, const Execution& run);

}  // namespace eigendamage::cpu
