#include "matrix_units.h"

#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace cuda_on_cpu {
namespace {

/// Units take the upper 19 bits of a float, rounded or not.
double heeded(float x) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFFE000U); }

/// Units cut sums off where a float ends.
float cut_off(double x) {
  return static_cast<float>(std::bit_cast<double>(std::bit_cast<std::uint64_t>(x) & ~0x1FFFFFFFULL));
}

struct FloatFragments {
  float* c;
  const float *a, *b;
};

void multiply_floats(void* const* lanes) {
  double a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const FloatFragments*>(lanes[lane]);
    const int row = lane / 4, k = lane % 4;
    a[row][k] = heeded(own.a[0]), a[row + 8][k] = heeded(own.a[1]);
    a[row][k + 4] = heeded(own.a[2]), a[row + 8][k + 4] = heeded(own.a[3]);
    b[k][row] = heeded(own.b[0]), b[k + 4][row] = heeded(own.b[1]);
  }
  for (int row = 0; row < 16; ++row) {
    double sums[8];
    for (int column = 0; column < 8; ++column) {
      const auto& own = *static_cast<const FloatFragments*>(lanes[row % 8 * 4 + column / 2]);
      sums[column] = own.c[row / 8 * 2 + column % 2];
    }
    for (int k = 0; k < 8; ++k) {
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    }
    for (int column = 0; column < 8; ++column) {
      const auto& own = *static_cast<const FloatFragments*>(lanes[row % 8 * 4 + column / 2]);
      own.c[row / 8 * 2 + column % 2] = cut_off(sums[column]);
    }
  }
}

struct DoubleFragments {
  double *c, a, b;
};

void multiply_doubles(void* const* lanes) {
  const auto of = [&](int lane) -> const DoubleFragments& { return *static_cast<const DoubleFragments*>(lanes[lane]); };
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; ++column) {
      double& sum = of(row * 4 + column / 2).c[column % 2];
      for (int k = 0; k < 4; ++k) sum = std::fma(of(row * 4 + k).a, of(column * 4 + k).b, sum);
    }
  }
}

}  // namespace

float rounded_to_tf32(float x) {
  if (x != x) return std::bit_cast<float>(0x7FFFFFFFU);
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>(std::isinf(x) ? bits : (bits + 0x1000U) & 0xFFFFE000U);
}

void multiply_16x8x8(float (&c)[4], const float (&a)[4], const float (&b)[2], const Location& where) {
  FloatFragments mine{c, a, b};
  warp_collective("multiply_16x8x8", 0xFFFFFFFF, &mine, multiply_floats, where);
}

void multiply_rows(float (&c)[32], const float (&a)[2][8], const float (&b)[16][8], bool adds) {
  for (int i = 0; i < 32; ++i) {
    const int row = i / 2 % 2, column = i / 4 * 2 + i % 2;
    double sum = adds ? c[i] : 0;
    for (int k = 0; k < 8; ++k) sum += heeded(a[row][k]) * heeded(b[column][k]);
    c[i] = cut_off(sum);
  }
}

void multiply_8x8x4(double (&c)[2], double a, double b, const Location& where) {
  DoubleFragments mine{c, a, b};
  warp_collective("multiply_8x8x4", 0xFFFFFFFF, &mine, multiply_doubles, where);
}

}  // namespace cuda_on_cpu
