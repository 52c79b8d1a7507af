#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/launch.cuh"
#include "on_device.h"

using namespace eigendamage;
using cuda::Grid;
using cuda::launch;
using cuda_on_cpu::DeviceRun;
using cuda_on_cpu::Fault;
using cuda_on_cpu::on_device;

namespace {

/// A block sums 256 numbers; the threads halve them.
__global__ void sum_kernel(const float* x, float* sums, int count) {
  float* const partial = cuda::shared_memory<float>();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), thread = static_cast<int>(threadIdx.x);
  partial[thread] = i < count ? x[i] : 0;
  for (int width = static_cast<int>(blockDim.x) / 2; width > 0; width /= 2) {
    __syncthreads();
    if (thread < width) partial[thread] += partial[thread + width];
  }
  if (thread == 0) sums[blockIdx.x] = partial[0];
}

__global__ void sum_by_shuffles_kernel(const float* x, float* sum, int count) {
  float own = static_cast<int>(threadIdx.x) < count ? x[threadIdx.x] : 0;
  for (int lanes = 16; lanes > 0; lanes /= 2) own += __shfl_xor_sync(0xFFFFFFFF, own, lanes);
  if (threadIdx.x == 0) *sum = own;
}

std::vector<float> counting(std::size_t count) {
  std::vector<float> x(count);
  std::iota(x.begin(), x.end(), 1.0F);
  return x;
}

}  // namespace

TEST(blocks_sum) {
  const std::vector<float> x = counting(1000);
  std::vector<float> sums(4);
  on_device([&](DeviceRun& device) {
    launch(sum_kernel, Grid{4, 256, 1024}, device.execution(), static_cast<const float*>(device.input(x.data(), 4000)),
           static_cast<float*>(device.output(sums.data(), 16)), 1000);
  });
  CHECK(sums[0] == 256 * 257 / 2, std::to_string(sums[0]));
  CHECK(sums[0] + sums[1] + sums[2] + sums[3] == 500500, "all");
}

TEST(warps_sum) {
  const std::vector<float> x = counting(20);
  float sum = 0;
  on_device([&](DeviceRun& device) {
    launch(sum_by_shuffles_kernel, Grid{1, 32}, device.execution(),
           static_cast<const float*>(device.input(x.data(), 80)), static_cast<float*>(device.output(&sum, 4)), 20);
  });
  CHECK(sum == 210, std::to_string(sum));
}

int main() { return check::run_tests(); }
