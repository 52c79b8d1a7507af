#pragma once

#include "device.h"

/// The twin of the unit in csrc/cuda/warpgroup_units.cuh, which says who holds what.
namespace cuda_on_cpu {

/// The thread's part, of what it reads of A (2, 8) and B (16, 8).
void multiply_rows(float (&c)[32], const float (&a)[2][8], const float (&b)[16][8], bool adds);

/// Here for sanitizers to see what is read.
inline void multiply_64x64x8(float (&c)[32], const float* a, const float* b, bool adds) {
  constexpr int kWidth = 4, kChunk = 64 * kWidth + 4;  // as Chunks in warpgroup_units.cuh
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  float rows[2][8], columns[16][8];
  for (int k = 0; k < 8; ++k) {
    const int at = k / kWidth * kChunk + k % kWidth;
    for (int i = 0; i < 2; ++i) rows[i][k] = a[at + (16 * warp + lane / 4 + 8 * i) * kWidth];
    for (int i = 0; i < 16; ++i) columns[i][k] = b[at + (i / 2 * 8 + lane % 4 * 2 + i % 2) * kWidth];
  }
  multiply_rows(c, rows, columns, adds);
}

}  // namespace cuda_on_cpu
