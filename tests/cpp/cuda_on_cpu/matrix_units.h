#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "machine.h"

/// Twins of the instructions in csrc/cuda/matrix_units.cuh, which says who holds what.
namespace cuda_on_cpu {

/// x in TF32: 11 significant bits, half a unit away from zero.
inline float rounded_to_tf32(float x) {
  if (x != x) return std::bit_cast<float>(0x7FFFFFFFU);
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>(std::isinf(x) ? bits : (bits + 0x1000U) & 0xFFFFE000U);
}

/// What a unit that takes the upper 19 bits makes of x, rounded or not.
inline float heeded_by_units(float x) { return std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFFE000U); }

/// Units cut sums off.
inline float cut_off(double x) {
  const float nearest = static_cast<float>(x);
  return std::isfinite(nearest) && std::fabs(nearest) > std::fabs(x) ? std::nextafter(nearest, 0.0F) : nearest;
}

inline void multiply_16x8x8(float (&c)[4], const float (&a)[4], const float (&b)[2],
                            const Location& where = Location::current()) {
  struct Fragments {
    float* c;
    const float *a, *b;
  } mine{c, a, b};
  warp_collective(
      "multiply_16x8x8", 0xFFFFFFFF, &mine,
      [](void* const* lanes) {
        const auto of = [&](int lane) -> const Fragments& { return *static_cast<const Fragments*>(lanes[lane]); };
        for (int row = 0; row < 16; ++row) {
          for (int column = 0; column < 8; ++column) {
            float& sum = of(row % 8 * 4 + column / 2).c[row / 8 * 2 + column % 2];
            double exact = sum;
            for (int k = 0; k < 8; ++k) {
              const float left = of(row % 8 * 4 + k % 4).a[k / 4 * 2 + row / 8],
                          right = of(column * 4 + k % 4).b[k / 4];
              exact += static_cast<double>(heeded_by_units(left)) * heeded_by_units(right);
            }
            sum = cut_off(exact);
          }
        }
      },
      where);
}

inline void multiply_8x8x4(double (&c)[2], double a, double b, const Location& where = Location::current()) {
  struct Fragments {
    double *c, a, b;
  } mine{c, a, b};
  warp_collective(
      "multiply_8x8x4", 0xFFFFFFFF, &mine,
      [](void* const* lanes) {
        const auto of = [&](int lane) -> const Fragments& { return *static_cast<const Fragments*>(lanes[lane]); };
        for (int row = 0; row < 8; ++row) {
          for (int column = 0; column < 8; ++column) {
            double& sum = of(row * 4 + column / 2).c[column % 2];
            for (int k = 0; k < 4; ++k) sum = std::fma(of(row * 4 + k).a, of(column * 4 + k).b, sum);
          }
        }
      },
      where);
}

}  // namespace cuda_on_cpu
