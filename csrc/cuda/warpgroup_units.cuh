#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// Matrix units that four warps use together, on operands in shared memory: those of sm_90a.
namespace eigendamage::cuda {

/// 64 rows of an operand in shared memory: chunks of four k, in each of which row follows row. No two of eight neighbouring
/// chunks begin in the same banks.
struct Chunks {
  static constexpr int kRows = 64, kWidth = 4, kStride = kRows * kWidth + 4;  ///< from chunk to chunk

  __host__ __device__ static constexpr int size(int depth) { return depth / kWidth * kStride; }
  __device__ static int at(int row, int k) { return k / kWidth * kStride + row * kWidth + k % kWidth; }
};

#ifdef __CUDACC__
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EIGENDAMAGE_WARPGROUP_ASM(...) __trap()  // nobody launches what has other units
#else
#define EIGENDAMAGE_WARPGROUP_ASM(...) asm volatile(__VA_ARGS__)
#endif

/// What a matrix descriptor says of Chunks: address, bytes from chunk to chunk and from eight rows to the next, in sixteens.
__device__ inline std::uint64_t describe_chunks(const float* tile) {
  constexpr std::uint64_t kChunk = Chunks::kStride * 4 / 16, kEightRows = 8;
  return (__cvta_generic_to_shared(tile) >> 4 & 0x3FFF) | kChunk << 16 | kEightRows << 32;
}

/// C (64, 64) = A·Bᵀ, or with `adds` C += A·Bᵀ, A and B (64, 8): two Chunks from `a` and `b` on. Lane 4·i + j of warp w holds
/// C[16·w + i][8·n + 2·j] and its right neighbour in c[4·n] and c[4·n + 1], and the same of row + 8 in c[4·n + 2] and
/// c[4·n + 3]. Of A and B the 13 low bits are ignored; sums are cut off, not rounded. It runs on by itself: until
/// wait_for_products(), c and the operands are its own.
__device__ inline void multiply_64x64x8(float (&c)[32], const float* a, const float* b, bool adds) {
  EIGENDAMAGE_WARPGROUP_ASM(
      "{\n"
      ".reg .pred adds;\n"
      "setp.ne.b32 adds, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, adds, 1, 1;\n"
      "}\n" : "+f"(c[0]),
      "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]),
      "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]),
      "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]),
      "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]) : "l"(describe_chunks(a)),
      "l"(describe_chunks(b)), "r"(static_cast<int>(adds)));
}

/// What the thread has written to shared memory becomes visible to the units, after a barrier.
__device__ inline void show_to_units() { EIGENDAMAGE_WARPGROUP_ASM("fence.proxy.async.shared::cta;" :: : "memory"); }
/// Goes before the first of some products.
__device__ inline void begin_products() { EIGENDAMAGE_WARPGROUP_ASM("wgmma.fence.sync.aligned;" :: : "memory"); }
/// Ends a group of them.
__device__ inline void end_products() { EIGENDAMAGE_WARPGROUP_ASM("wgmma.commit_group.sync.aligned;" :: : "memory"); }
/// Waits until no more than so many groups are under way.
template <int kGroups>
__device__ void wait_for_products() {
  EIGENDAMAGE_WARPGROUP_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
/// Keeps the compiler from moving what reads or writes c over this place.
__device__ inline void hold(float (&c)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

#undef EIGENDAMAGE_WARPGROUP_ASM
#else
using cuda_on_cpu::multiply_64x64x8;  // it is done at once, for the running thread
inline void show_to_units() {}
inline void begin_products() {}
inline void end_products() {}
template <int kGroups>
void wait_for_products() {}
inline void hold(float (&)[32]) {}
#endif

/// A thread's part of C: calls body(row, column, i) for c[i] and c[i + 1], which are neighbours.
template <class Body>
__device__ void for_each_pair(const Body& body) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
#pragma unroll
  for (int i = 0; i < 32; i += 2) body(16 * warp + lane / 4 + i % 4 * 4, i / 4 * 8 + lane % 4 * 2, i);
}

}  // namespace eigendamage::cuda
