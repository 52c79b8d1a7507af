#pragma once

#include <math.h>  // names without std::

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "accesses.h"
#include "machine.h"

/// What kernels call: indices, barriers, shuffles, votes, atomics, and functions that C++ lacks.

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

#define CUDA_ON_CPU_HERE const cuda_on_cpu::Location& where = cuda_on_cpu::Location::current()

struct alignas(8) float2 {
  float x, y;
};
struct float3 {
  float x, y, z;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads(CUDA_ON_CPU_HERE) { cuda_on_cpu::block_barrier("__syncthreads", false, where); }
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::block_barrier("__syncthreads_count", predicate != 0, where);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::block_barrier("__syncthreads_or", predicate != 0, where) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_HERE) {
  return cuda_on_cpu::block_barrier("__syncthreads_and", predicate == 0, where) == 0;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace cuda_on_cpu {

template <class T>
struct Exchange {
  T value, result;
  int source;  ///< the lane whose value is the result
};

template <class T>
T exchange(const char* name, unsigned mask, T value, int source, const Location& where) {
  if (!(mask >> source & 1)) fail("a shuffle reads a lane that its mask does not name");
  Exchange<T> mine{value, value, source};
  warp_collective(
      name, mask, &mine,
      [](void* const* lanes) {
        for (int i = 0; i < 32; ++i) {
          if (!lanes[i]) continue;
          auto& own = *static_cast<Exchange<T>*>(lanes[i]);
          own.result = static_cast<const Exchange<T>*>(lanes[own.source])->value;
        }
      },
      where);
  return mine.result;
}

}  // namespace cuda_on_cpu

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, CUDA_ON_CPU_HERE) {
  int nothing = 0;
  cuda_on_cpu::warp_collective("__syncwarp", mask, &nothing, nullptr, where);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_ON_CPU_HERE) {
  const int own = static_cast<int>(cuda_on_cpu::lane());
  return cuda_on_cpu::exchange("__shfl_sync", mask, value, (own & -width) | (lane & (width - 1)), where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_HERE) {
  const int own = static_cast<int>(cuda_on_cpu::lane()), source = own - static_cast<int>(delta);
  return cuda_on_cpu::exchange("__shfl_up_sync", mask, value, source < (own & -width) ? own : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_HERE) {
  const int own = static_cast<int>(cuda_on_cpu::lane()), source = own + static_cast<int>(delta);
  return cuda_on_cpu::exchange("__shfl_down_sync", mask, value, source > (own | (width - 1)) ? own : source, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_CPU_HERE) {
  const int own = static_cast<int>(cuda_on_cpu::lane()), source = own ^ lanes;
  return cuda_on_cpu::exchange("__shfl_xor_sync", mask, value, source > (own | (width - 1)) ? own : source, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  struct Vote {
    bool yes;
    unsigned all;
  } mine{predicate != 0, 0};
  cuda_on_cpu::warp_collective(
      "__ballot_sync", mask, &mine,
      [](void* const* lanes) {
        unsigned all = 0;
        for (int i = 0; i < 32; ++i) all |= lanes[i] && static_cast<const Vote*>(lanes[i])->yes ? 1U << i : 0;
        for (int i = 0; i < 32; ++i) {
          if (lanes[i]) static_cast<Vote*>(lanes[i])->all = all;
        }
      },
      where);
  return mine.all;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_HERE) {
  return __ballot_sync(mask, predicate, where) == mask;
}

namespace cuda_on_cpu {

/// Replaces what is at an address by next(it); returns what it was.
template <class T, class Next>
[[gnu::no_sanitize_thread]] T atomically(T* address, const Next& next) {
  watch_atomic(address, sizeof(T));
  const T before = *address;
  *address = next(before);
  return before;
}

}  // namespace cuda_on_cpu

template <class T, class U>
T atomicExch(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T) { return static_cast<T>(static_cast<T>(value)); });
}
template <class T, class U>
T atomicAdd(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T before) { return static_cast<T>(before + static_cast<T>(value)); });
}
template <class T, class U>
T atomicMax(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T before) {
    return static_cast<T>(before < static_cast<T>(value) ? static_cast<T>(value) : before);
  });
}
template <class T, class U>
T atomicMin(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T before) {
    return static_cast<T>(static_cast<T>(value) < before ? static_cast<T>(value) : before);
  });
}
template <class T, class U>
T atomicOr(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T before) { return static_cast<T>(before | static_cast<T>(value)); });
}
template <class T, class U>
T atomicAnd(T* address, U value) {
  return cuda_on_cpu::atomically(address, [=](T before) { return static_cast<T>(before & static_cast<T>(value)); });
}
template <class T, class U, class V>
T atomicCAS(T* address, U expected, V value) {
  return cuda_on_cpu::atomically(
      address, [=](T before) { return before == static_cast<T>(expected) ? static_cast<T>(value) : before; });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return cuda_on_cpu::atomically(address, [=](unsigned before) { return before >= last ? 0 : before + 1; });
}

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

template <class A, class B>
  requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr auto min(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(b) < static_cast<Both>(a) ? static_cast<Both>(b) : static_cast<Both>(a);
}
template <class A, class B>
  requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr auto max(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(a) < static_cast<Both>(b) ? static_cast<Both>(b) : static_cast<Both>(a);
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
/// As far off, and to the same side, as a GPU's may be.
inline double rsqrt(double x) {
  return static_cast<double>(1 / std::sqrt(static_cast<long double>(x)) * (1 + 1.5e-16L));
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return 1 / std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1 / a; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline int __ffsll(long long x) { return x ? std::countr_zero(static_cast<unsigned long long>(x)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
