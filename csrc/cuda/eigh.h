#pragma once

#include "../kernels.h"

namespace eigendamage::cuda {

/// Matrices of at most so many rows are solved; the code of others is kNotAccurate.
constexpr std::int64_t kMaxEighSize = 64;

/// Kernels::eigh, its matrices, results and codes on the current device. Nothing waits for the device.
void eigh(const EighProblem* problems, std::int64_t count, const Execution& run);

}  // namespace eigendamage::cuda
