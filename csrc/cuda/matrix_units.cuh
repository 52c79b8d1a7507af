#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace eigendamage::cuda {

#ifdef __CUDACC__

/// x in TF32: 11 significant bits, half a unit away from zero.
__device__ inline float rounded_to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

/// C += A·B, A (16, 8), B (8, 8), C (16, 8), by all lanes of a warp. Lane 4·i + k holds A[i][k], A[i + 8][k], A[i][k + 4],
/// A[i + 8][k + 4]; lane 4·j + k holds B[k][j], B[k + 4][j]; lane 4·i + j holds C[i][2·j], C[i][2·j + 1] and the same of row
/// i + 8. Of A and B the 13 low bits are ignored; sums are cut off, not rounded.
__device__ inline void multiply_16x8x8(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

/// C += A·B, A (8, 4), B (4, 8), C (8, 8), by all lanes of a warp. Lane 4·i + k holds A[i][k], lane 4·j + k holds B[k][j],
/// lane 4·i + j holds C[i][2·j], C[i][2·j + 1].
__device__ inline void multiply_8x8x4(double (&c)[2], double a, double b) {
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(c[0]), "+d"(c[1])
               : "d"(a), "d"(b));
}

#else
// The stand-in runtime has a twin of each under its name.
using cuda_on_cpu::multiply_16x8x8;
using cuda_on_cpu::multiply_8x8x4;
using cuda_on_cpu::rounded_to_tf32;
#endif

/// How floats become factors of TF32 products; doubles have units of their own.
enum class Factor {
  kExact,    ///< they are TF32 numbers: they were bfloat16 or float16
  kRounded,  ///< to the nearest
  kSplit,    ///< as hi + lo of 11 bits each, at the price of another product
};

/// How a tile of an operand lies in shared memory. No two lanes use a bank at the same time if the stride is
enum class Order {
  kDepthInside,   ///< [row][k]: an odd multiple of 16 bytes
  kDepthOutside,  ///< [k][row]: for floats 8 more than a multiple of 16, for doubles odd
};

/// x is hi + lo, of which lo has one bit more than the units heed, of either sign. Rounding in integers takes half the
/// instructions: a NaN may lose its hi, but then is in its lo.
struct Halves {
  float hi, lo;
};

__device__ inline Halves split(float x) {
  const float hi = __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
  return {hi, x - hi};
}

/// A tile of an operand in shared memory, aligned to 16 bytes; but for doubles in [k][row] the stride is a multiple of that.
template <class T>
struct Operand {
  const T* tile;
  int stride;  ///< in elements
};

/// 32 × 32 sums of products, held by a warp: lane l has rows 4·(l / 4) … + 3 and columns 8·(l % 4) … + 7. Blocks are of one
/// dimension, so that lane l is thread l modulo 32.
///
/// Products of split or exact floats are those of 22 bits each. The units cut sums off instead of rounding, so they add up
/// only 16 products at a time, which are then rounded to the sum: a sum over 1024 k has the error of 64 additions. Longer
/// sums should be sums of such. Of floats, multiples of 2⁻¹³⁶ count: less is lost than where subnormal numbers are 0.
///
/// What is infinite or NaN, or is rounded to infinity as a TF32 number, makes all sums that it is a factor of infinite or
/// NaN, and no other. For those of plain arithmetic, sum once more with multiply_add_plainly where sums are not finite().
template <class T>
struct WarpTile {
  static constexpr int kSize = 32, kRows = 4, kColumns = 8;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kDepthStep = 4 * kVector;  ///< depths are multiples of it

  T sums[kRows][kColumns];

  __device__ static int first_row() { return static_cast<int>(threadIdx.x % 32) / 4 * kRows; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x % 4) * kColumns; }

  /// Calls body(row, column, sum) for each of the lane's sums, counted from its first row and column.
  template <class Body>
  __device__ void for_each(const Body& body) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int column = 0; column < kColumns; ++column) body(row, column, sums[row][column]);
    }
  }

  __device__ void zero() {
    for_each([](int, int, T& sum) { sum = 0; });
  }

  __device__ void add(const WarpTile& other) {
    for_each([&](int row, int column, T& sum) { sum += other.sums[row][column]; });
  }

  /// Whether the lane's sums are all finite.
  __device__ bool finite() {
    T probe = 0;
    for_each([&](int, int, T& sum) { probe += sum * T{0}; });
    return probe == T{0};
  }

  /// sums[i][j] += Σ_k a[i][k]·b[j][k] over `depth` k, by matrix units.
  template <Order order, Factor a_factor, Factor b_factor>
  __device__ void multiply_add(const Operand<T>& a, const Operand<T>& b, int depth) {
    for (int k = 0; k < depth; k += kDepthStep) {
      Fragment left, right;
      left.template load<order>(a, k);
      right.template load<order>(b, k);
      add_products<a_factor, b_factor>(left, right);
    }
  }

  /// The same in plain arithmetic.
  template <Order order>
  __device__ void multiply_add_plainly(const Operand<T>& a, const Operand<T>& b, int depth) {
    const auto at = [](const Operand<T>& from, int row, int k) {
      return from.tile[order == Order::kDepthInside ? row * from.stride + k : k * from.stride + row];
    };
#pragma unroll 1
    for (int k = 0; k < depth; ++k) {
      T right[kColumns];
#pragma unroll
      for (int column = 0; column < kColumns; ++column) right[column] = at(b, first_column() + column, k);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const T left = at(a, first_row() + row, k);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) sums[row][column] += left * right[column];
      }
    }
  }

 private:
  struct alignas(16) Vector {
    T elements[kVector];
  };

  /// A lane's part of 32 rows and kDepthStep k: element [i][j] is of row 4·(lane / 4) + i, and of the same k in every
  /// fragment of an order. The units take them as if rows i lay one after another, and so do their results.
  struct Fragment {
    T elements[kRows][kVector];

    template <Order order>
    __device__ void load(const Operand<T>& from, int k) {
      const int lane = static_cast<int>(threadIdx.x % 4);
      if constexpr (order == Order::kDepthInside) {
        const T* at = from.tile + first_row() * from.stride + k + lane * kVector;
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const Vector vector = *reinterpret_cast<const Vector*>(at + row * from.stride);
#pragma unroll
          for (int j = 0; j < kVector; ++j) elements[row][j] = vector.elements[j];
        }
      } else {
        const T* at = from.tile + (k + lane) * from.stride + first_row();
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          if constexpr (kVector == kRows) {
            const Vector vector = *reinterpret_cast<const Vector*>(at + 4 * j * from.stride);
#pragma unroll
            for (int row = 0; row < kRows; ++row) elements[row][j] = vector.elements[row];
          } else {
#pragma unroll
            for (int row = 0; row < kRows; ++row) elements[row][j] = at[4 * j * from.stride + row];
          }
        }
      }
    }
  };

  template <Factor, Factor>
  __device__ void add_products(const Fragment& left, const Fragment& right)
    requires(sizeof(T) == sizeof(double))
  {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int column = 0; column < 4; ++column) {
          double products[2] = {sums[row][column], sums[row][column + 4]};
          multiply_8x8x4(products, left.elements[row][j], right.elements[column][j]);
          sums[row][column] = products[0];
          sums[row][column + 4] = products[1];
        }
      }
    }
  }

  template <Factor factor>
  __device__ static void factors(float x, float& hi, float& lo) {
    if constexpr (factor == Factor::kSplit) {
      const Halves halves = split(x);
      hi = halves.hi;
      lo = halves.lo;
    } else {
      hi = factor == Factor::kExact ? x : rounded_to_tf32(x);
    }
  }

  /// Small products first: cut off before the large ones, they lose nothing that counts.
  template <Factor a_factor, Factor b_factor>
  __device__ void add_products(const Fragment& left, const Fragment& right)
    requires(sizeof(T) == sizeof(float))
  {
    float b_hi[4][2][2], b_lo[4][2][2];
#pragma unroll
    for (int column = 0; column < 4; ++column) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        factors<b_factor>(right.elements[column][k], b_hi[column][k / 2][k % 2], b_lo[column][k / 2][k % 2]);
      }
    }
#pragma unroll
    for (int rows = 0; rows < kRows; rows += 2) {
      float a_hi[2][4], a_lo[2][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          factors<a_factor>(left.elements[rows + row][k], a_hi[k / 2][k % 2 * 2 + row], a_lo[k / 2][k % 2 * 2 + row]);
        }
      }
      float products[4][4] = {};  // in steps that do not wait for each other
      const auto add = [&](const float (&a)[2][4], const float (&b)[4][2][2]) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
#pragma unroll
          for (int column = 0; column < 4; ++column) multiply_16x8x8(products[column], a[k], b[column][k]);
        }
      };
      if constexpr (a_factor == Factor::kSplit) add(a_lo, b_hi);
      if constexpr (b_factor == Factor::kSplit) add(a_hi, b_lo);
      add(a_hi, b_hi);
#pragma unroll
      for (int column = 0; column < 4; ++column) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          sums[rows + row][column] += products[column][2 * row];
          sums[rows + row][column + 4] += products[column][2 * row + 1];
        }
      }
    }
  }
};

}  // namespace eigendamage::cuda
