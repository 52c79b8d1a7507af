#pragma once

#include "machine.h"

/// Twins of the instructions in csrc/cuda/matrix_units.cuh and warpgroup_units.cuh, which say who holds what.
namespace cuda_on_cpu {

float rounded_to_tf32(float x);
void multiply_16x8x8(float (&c)[4], const float (&a)[4], const float (&b)[2],
                     const Location& where = Location::current());
void multiply_8x8x4(double (&c)[2], double a, double b, const Location& where = Location::current());
}  // namespace cuda_on_cpu
