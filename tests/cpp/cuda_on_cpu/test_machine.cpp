#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/launch.cuh"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "on_device.h"

using namespace eigendamage;
using cuda::Grid;
using cuda::launch;
using cuda_on_cpu::DeviceRun;
using cuda_on_cpu::on_device;

namespace {

/// A block sums as many numbers as it has threads; half of them add up at a time.
__global__ void sum_kernel(const float* x, float* sums, int count) {
  float* const partial = cuda::shared_memory<float>();
  const int thread = static_cast<int>(threadIdx.x), i = static_cast<int>(blockIdx.x * blockDim.x) + thread;
  partial[thread] = i < count ? x[i] : 0;
  for (int width = static_cast<int>(blockDim.x) / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width) partial[thread] += partial[thread + width];
  }
  if (thread == 0) sums[blockIdx.x] = partial[0];
}

/// A block transposes a tile of 8 × 8.
__global__ void transpose_kernel(const int* x, int* y, int rows, int columns) {
  int* const tile = cuda::shared_memory<int>();
  const int row = static_cast<int>(blockIdx.y * 8 + threadIdx.y),
            column = static_cast<int>(blockIdx.x * 8 + threadIdx.x);
  if (row < rows && column < columns) tile[threadIdx.y * 9 + threadIdx.x] = x[row * columns + column];
  __syncthreads();
  const int to_row = static_cast<int>(blockIdx.x * 8 + threadIdx.y),
            to_column = static_cast<int>(blockIdx.y * 8 + threadIdx.x);
  if (to_row < columns && to_column < rows) y[to_row * rows + to_column] = tile[threadIdx.x * 9 + threadIdx.y];
}

/// y[i] = x[i − 1] + x[i] + x[i + 1], zeros beside x, twice, from a halo of 2.
__global__ void stencil_kernel(const int* x, int* y, int count) {
  int* const now = cuda::shared_memory<int>();
  const int size = static_cast<int>(blockDim.x), first = static_cast<int>(blockIdx.x) * size;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < size + 4; i += size) {
    const int from = first + i - 2;
    now[i] = from >= 0 && from < count ? x[from] : 0;
  }
  __syncthreads();
  for (int step = 0; step < 2; ++step) {
    int sums[2], found = 0;
    for (int i = thread; i < size + 4; i += size) {
      const int from = first + i - 2;
      const bool inside = i > step && i < size + 3 - step && from >= 0 && from < count;
      sums[found++] = inside ? now[i - 1] + now[i] + now[i + 1] : 0;
    }
    __syncthreads();
    for (int i = thread; i < size + 4; i += size) now[i] = sums[i / size];
    __syncthreads();
  }
  if (first + thread < count) y[first + thread] = now[thread + 2];
}

/// Sums of all numbers up to each, a warp for 32.
__global__ void scan_kernel(const int* x, int* y) {
  const unsigned lane = threadIdx.x % 32;
  int own = x[threadIdx.x];
  for (unsigned delta = 1; delta < 32; delta *= 2) {
    const int before = __shfl_up_sync(0xFFFFFFFF, own, delta);
    if (lane >= delta) own += before;
  }
  y[threadIdx.x] = own;
}

/// Each of two halves of a warp turns by one through shared memory, in its own time.
__global__ void turn_halves_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  const unsigned lane = threadIdx.x, half = lane / 16, mask = 0xFFFFU << 16 * half;
  held[lane] = x[lane];
  for (unsigned turn = 0; turn <= half; ++turn) {
    __syncwarp(mask);
    const int next = held[16 * half + (lane + 1) % 16];
    __syncwarp(mask);
    held[lane] = next;
  }
  y[lane] = held[lane];
}

struct Votes {
  int any, all, ballot, either, both, count;
};

__global__ void vote_kernel(Votes* votes) {
  const int lane = static_cast<int>(threadIdx.x % 32), thread = static_cast<int>(threadIdx.x);
  Votes own{};
  own.any = __any_sync(0xFFFFFFFF, lane == 5);
  own.all = __all_sync(0xFFFFFFFF, lane != 5);
  own.ballot = static_cast<int>(__ballot_sync(0xFFFFFFFF, lane % 8 == 1));
  own.either = __syncthreads_or(thread == 63);
  own.both = __syncthreads_and(thread != 63);
  own.count = __syncthreads_count(thread % 2);
  votes[thread] = own;
}

__global__ void count_kernel(int* counts, const int* x, int* largest) {
  atomicAdd(&counts[x[blockIdx.x * blockDim.x + threadIdx.x]], 1);
  atomicMax(largest, x[blockIdx.x * blockDim.x + threadIdx.x]);
}

template <class T>
const T* input(DeviceRun& device, const std::vector<T>& x) {
  return static_cast<const T*>(device.input(x.data(), x.size() * sizeof(T)));
}

template <class T>
T* output(DeviceRun& device, std::vector<T>& x) {
  return static_cast<T*>(device.output(x.data(), x.size() * sizeof(T)));
}

template <class T>
std::vector<T> counting(std::size_t count) {
  std::vector<T> x(count);
  std::iota(x.begin(), x.end(), T{1});
  return x;
}

}  // namespace

TEST(blocks_sum) {
  const auto x = counting<float>(1000);
  std::vector<float> sums(4);
  on_device([&](DeviceRun& device) {
    launch(sum_kernel, Grid{4, 256, 1024}, device.execution(), input(device, x), output(device, sums), 1000);
  });
  CHECK(sums[0] == 256 * 257 / 2, std::to_string(sums[0]));
  CHECK(sums[0] + sums[1] + sums[2] + sums[3] == 500500, "all");
}

TEST(blocks_transpose) {
  const auto x = counting<int>(11 * 21);
  std::vector<int> y(21 * 11);
  on_device([&](DeviceRun& device) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(3, 2), config.blockDim = dim3(8, 8), config.dynamicSmemBytes = 9 * 8 * sizeof(int);
    cuda::check(cudaLaunchKernelEx(&config, transpose_kernel, input(device, x), output(device, y), 11, 21), "launch");
  });
  for (int i = 0; i < 11 * 21; ++i) CHECK(y[i % 21 * 11 + i / 21] == i + 1, std::to_string(i));
}

TEST(blocks_share_halos) {
  const auto x = counting<int>(50);
  std::vector<int> y(50);
  on_device([&](DeviceRun& device) {
    launch(stencil_kernel, Grid{4, 16, 20 * sizeof(int)}, device.execution(), input(device, x), output(device, y), 50);
  });
  for (int i = 2; i < 48; ++i) CHECK(y[i] == 9 * (i + 1), std::to_string(i) + ": " + std::to_string(y[i]));
  CHECK(y[0] == (1 + 2) + (1 + 2 + 3), std::to_string(y[0]));
}

TEST(warps_scan) {
  const auto x = counting<int>(64);
  std::vector<int> y(64);
  on_device([&](DeviceRun& device) {
    launch(scan_kernel, Grid{1, 64}, device.execution(), input(device, x), output(device, y));
  });
  for (int i = 0; i < 32; ++i) CHECK(y[i] == (i + 1) * (i + 2) / 2, std::to_string(i));
  CHECK(y[63] == 64 * 65 / 2 - 32 * 33 / 2, std::to_string(y[63]));
}

TEST(parts_of_a_warp_wait_for_themselves) {
  const auto x = counting<int>(32);
  std::vector<int> y(32);
  on_device([&](DeviceRun& device) {
    launch(turn_halves_kernel, Grid{1, 32, 128}, device.execution(), input(device, x), output(device, y));
  });
  for (int i = 0; i < 32; ++i) CHECK(y[i] == 1 + i / 16 * 16 + (i + 1 + i / 16) % 16, std::to_string(i));
}

TEST(threads_vote) {
  std::vector<Votes> votes(64);
  on_device([&](DeviceRun& device) { launch(vote_kernel, Grid{1, 64}, device.execution(), output(device, votes)); });
  for (const Votes& v : votes) {
    CHECK(v.any == 1 && v.all == 0 && v.ballot == 0x02020202, "warps");
    CHECK(v.either == 1 && v.both == 0 && v.count == 32, "blocks");
  }
}

TEST(atomics_count) {
  std::vector<int> x(96), counts(5), largest(1, -1);
  for (int i = 0; i < 96; ++i) x[static_cast<std::size_t>(i)] = i * i % 5;
  on_device([&](DeviceRun& device) {
    launch(count_kernel, Grid{3, 32}, device.execution(), output(device, counts), input(device, x),
           output(device, largest));
  });
  CHECK((counts == std::vector<int>{20, 38, 0, 0, 38}), "counts");
  CHECK(largest[0] == 4, std::to_string(largest[0]));
}

TEST(halves_convert_as_on_a_gpu) {
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const auto pattern = static_cast<unsigned short>(bits);
    const float half = __half2float(__ushort_as_half(pattern)), brain = __bfloat162float(__ushort_as_bfloat16(pattern));
    if (half == half) CHECK(__half_as_ushort(__float2half(half)) == bits, std::to_string(bits));
    if (brain == brain) CHECK(__bfloat16_as_ushort(__float2bfloat16(brain)) == bits, std::to_string(bits));
  }
  struct Rounded {
    float from, half, brain;
  };
  constexpr float kInf = INFINITY;
  for (const auto& [from, half, brain] :
       {Rounded{1 + 0x1p-11F, 1, 1}, Rounded{1 + 0x3p-11F, 1 + 0x1p-9F, 1}, Rounded{1 + 0x1p-8F, 1 + 0x1p-8F, 1},
        Rounded{65519.996F, 65504, 65536}, Rounded{65520, kInf, 65536}, Rounded{0x1p-25F, 0, 0x1p-25F},
        Rounded{-0x1.8p-24F, -0x1p-23F, -0x1.8p-24F}, Rounded{3.4e38F, kInf, kInf}}) {
    CHECK(__half2float(__float2half(from)) == half, std::to_string(from));
    CHECK(__bfloat162float(__float2bfloat16(from)) == brain, std::to_string(from));
  }
}

int main() { return check::run_tests(); }
