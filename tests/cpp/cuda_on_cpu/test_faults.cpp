#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "accesses.h"
#include "check.h"
#include "cuda/launch.cuh"
#include "on_device.h"

// Kernels with faults, each of which must be found, and named.

using namespace eigendamage;
using cuda::Grid;
using cuda::launch;
using cuda_on_cpu::DeviceRun;
using cuda_on_cpu::on_device;

namespace {

constexpr int kThreads = 64;

__device__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ int thread_of_all() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

__global__ void read_before_written_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = x[thread()];
  y[thread()] = held[(thread() + 1) % kThreads];
}

__global__ void read_before_rewritten_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = 0;
  __syncthreads();
  held[thread()] = x[thread()];
  y[thread()] = held[(thread() + 1) % kThreads];
}

__global__ void written_before_read_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = x[thread()];
  __syncthreads();
  const int next = held[(thread() + 1) % kThreads];
  held[thread()] = next;
  y[thread()] = next;
}

__global__ void written_twice_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread() / 2] = x[thread()];
  __syncthreads();
  y[thread()] = held[thread() / 2];
}

__global__ void warp_without_barrier_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = x[thread()];
  y[thread()] = held[thread() ^ 1] + __shfl_xor_sync(0xFFFFFFFF, x[thread()], 1);
}

/// The lanes of a warp run on together, but nothing says that what they have written can be read.
__global__ void shuffle_for_barrier_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = x[thread()];
  const int other = __shfl_xor_sync(0xFFFFFFFF, x[thread()], 1);
  y[thread()] = held[thread() ^ 1] + other;
}

__global__ void warp_barrier_for_block_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread()] = x[thread()];
  __syncwarp();
  y[thread()] = held[kThreads - 1 - thread()];
}

__global__ void global_without_barrier_kernel(const int* x, int* y) {
  y[thread()] = x[thread()];
  if (thread() < kThreads / 2) y[thread()] += y[thread() + kThreads / 2];
}

__global__ void blocks_race_kernel(const int* x, int* y) {
  if (thread() == 0) y[0] = x[blockIdx.x];
}

__global__ void blocks_read_each_other_kernel(const int* x, int* y) {
  y[thread_of_all()] = x[thread()];
  if (blockIdx.x == 0) y[thread_of_all()] += y[kThreads + thread()];
}

__global__ void beyond_shared_kernel(const int* x, int* y) {
  int* const held = cuda::shared_memory<int>();
  held[thread() + 1] = x[thread()];
  __syncthreads();
  y[thread()] = held[thread() + 1];
}

__global__ void below_device_kernel(const int* x, int* y) { y[thread()] = x[thread()] - x[thread() - 1]; }

__global__ void without_tail_check_kernel(const int* x, int* y) {
  const int i = thread_of_all();
  if (i < kThreads) y[i] = x[i];
  if (i == kThreads) y[i] = 0;
}

__global__ void divergent_barrier_kernel(const int* x, int* y) {
  if (thread() < 40) __syncthreads();
  y[thread()] = x[thread()];
}

__global__ void two_barriers_kernel(const int* x, int* y) {
  if (thread() < 40) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[thread()] = x[thread()];
}

__global__ void some_lanes_shuffle_kernel(const int* x, int* y) {
  y[thread()] = thread() % 32 == 7 ? 0 : __shfl_xor_sync(0xFFFFFFFF, x[thread()], 1);
}

__global__ void mask_without_caller_kernel(const int* x, int* y) { y[thread()] = __any_sync(0xFFFF, x[thread()]); }

__global__ void shuffle_from_outside_the_mask_kernel(const int* x, int* y) {
  y[thread()] = thread() < 16 ? __shfl_xor_sync(0xFFFF, x[thread()], 16) : 0;
}

__global__ void part_of_a_warp_kernel() { __syncwarp(); }

__global__ void barrier_in_half_a_warp_kernel(const int* x, int* y) {
  if (thread() % 32 < 16) __syncwarp();
  y[thread()] = x[thread()];
}

__global__ void unwritten_shared_kernel(const float*, float* y) {
  const float* const held = cuda::shared_memory<float>();
  y[thread()] = held[thread()];
}

__global__ void copy_kernel(const float* x, float* y) { y[thread()] = x[thread()]; }

std::vector<int> numbers() {
  std::vector<int> x(kThreads);
  for (int i = 0; i < kThreads; ++i) x[static_cast<std::size_t>(i)] = i * i + 1;
  return x;
}

/// What a run writes to stderr, from a process of its own: sanitizers end it.
std::string messages(const std::function<void()>& run) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    try {
      run();
    } catch (const std::exception& error) {
      std::fputs(error.what(), stderr);
    }
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[4096];
  for (ssize_t bytes; (bytes = read(ends[0], part, sizeof part)) > 0;)
    text.append(part, static_cast<std::size_t>(bytes));
  close(ends[0]);
  waitpid(child, nullptr, 0);
  return text;
}

/// What must be said of a fault where accesses are watched for races, and under the address sanitizer.
struct Expected {
  const char *watched, *sanitized;

  explicit Expected(const char* both) : watched(both), sanitized(both) {}
  Expected(const char* watched_, const char* sanitized_) : watched(watched_), sanitized(sanitized_) {}
  const char* here() const { return cuda_on_cpu::watching() ? watched : sanitized; }
};

const Expected kRace{" with no barrier between", "the result depends on the order in which threads and blocks run"};
const Expected kEarly{"which nobody has written", kRace.sanitized};
const Expected kOutside{"memory that is not the device's, or beyond its end", "heap-buffer-overflow"};

void check_fault(void (*kernel)(const int*, int*), const Expected& expected, unsigned blocks = 1) {
  std::vector<int> x = numbers(), y(kThreads * blocks);
  const std::string said = messages([&] {
    on_device([&](DeviceRun& device) {
      launch(kernel, Grid{blocks, kThreads, kThreads * sizeof(int)}, device.execution(),
             static_cast<const int*>(device.input(x.data(), x.size() * sizeof(int))),
             static_cast<int*>(device.output(y.data(), y.size() * sizeof(int))));
    });
  });
  CHECK(said.find(expected.here()) != std::string::npos, expected.here() + std::string(" in: ") + said);
}

}  // namespace

TEST(missing_barriers) {
  check_fault(read_before_written_kernel, kEarly);
  check_fault(read_before_rewritten_kernel, kRace);
  check_fault(written_before_read_kernel, kRace);
  check_fault(written_twice_kernel, kRace);
  check_fault(warp_without_barrier_kernel, kEarly);
  check_fault(warp_barrier_for_block_kernel, kEarly);
  check_fault(global_without_barrier_kernel, kRace);
  if (cuda_on_cpu::watching()) check_fault(shuffle_for_barrier_kernel, kRace);
}

TEST(races_of_blocks) {
  const Expected race{"a thread of another block", kRace.sanitized};
  check_fault(blocks_race_kernel, race, 3);
  check_fault(blocks_read_each_other_kernel, race, 2);
}

TEST(accesses_outside_memory) {
  check_fault(beyond_shared_kernel, kOutside);
  check_fault(below_device_kernel, kOutside);
  const auto x = numbers();
  std::vector<int> y(kThreads);
  const std::string said = messages([&] {
    on_device([&](DeviceRun& device) {
      launch(without_tail_check_kernel, Grid{2, kThreads}, device.execution(),
             static_cast<const int*>(device.input(x.data(), kThreads * sizeof(int))),
             static_cast<int*>(device.output(y.data(), kThreads * sizeof(int))));
    });
  });
  CHECK(said.find(kOutside.here()) != std::string::npos, said);
}

TEST(barriers_that_not_all_get_to) {
  check_fault(divergent_barrier_kernel, Expected("thread (40, 0, 0) has left the kernel"));
  check_fault(two_barriers_kernel,
              Expected("not all get to the same barrier: thread (0, 0, 0) waits in __syncthreads"));
  check_fault(some_lanes_shuffle_kernel, Expected("thread (7, 0, 0) has left the kernel"));
  check_fault(barrier_in_half_a_warp_kernel, Expected("waits in __syncwarp"));
  check_fault(divergent_barrier_kernel, Expected("divergent_barrier_kernel"));
}

TEST(masks_that_are_wrong) {
  check_fault(mask_without_caller_kernel, Expected("is called by a lane that its mask does not name"));
  check_fault(shuffle_from_outside_the_mask_kernel, Expected("reads a lane that its mask does not name"));
  const std::string said = messages(
      [] { on_device([](DeviceRun& device) { launch(part_of_a_warp_kernel, Grid{1, 48}, device.execution()); }); });
  CHECK(said.find("names lanes beyond the block") != std::string::npos, said);
}

TEST(numbers_that_nobody_has_written) {
  std::vector<float> y(kThreads);
  const std::string said = messages([&] {
    on_device([&](DeviceRun& device) {
      launch(unwritten_shared_kernel, Grid{1, kThreads, kThreads * sizeof(float)}, device.execution(),
             static_cast<const float*>(nullptr),
             static_cast<float*>(device.output(y.data(), y.size() * sizeof(float))));
    });
    for (const float value : y) std::fputs(std::isnan(value) ? "NaN " : "a number ", stderr);
  });
  const Expected expected{"byte 0 of shared memory", "NaN NaN"};
  CHECK(said.find(expected.here()) != std::string::npos, said);
  CHECK(said.find("a number") == std::string::npos, said);
}

TEST(scratch_memory_is_not_zero) {
  std::vector<float> y(kThreads);
  const std::string said = messages([&] {
    on_device([&](DeviceRun& device) {
      launch(copy_kernel, Grid{1, kThreads}, device.execution(),
             static_cast<const float*>((*device.execution().scratch)(kThreads * sizeof(float))),
             static_cast<float*>(device.output(y.data(), y.size() * sizeof(float))));
    });
    std::fputs(std::isnan(y[5]) ? "NaN" : "a number", stderr);
  });
  const Expected expected{"which nobody has written", "NaN"};
  CHECK(said.find(expected.here()) != std::string::npos, said);
}

TEST(memory_of_the_other_side) {
  std::vector<float> x(kThreads), y(kThreads);
  if (cuda_on_cpu::watching()) {
    const std::string said = messages([&] {
      on_device([&](DeviceRun& device) {
        launch(copy_kernel, Grid{1, kThreads}, device.execution(), static_cast<const float*>(x.data()),
               static_cast<float*>(device.output(y.data(), y.size() * sizeof(float))));
      });
    });
    CHECK(said.find("memory that is not the device's") != std::string::npos, said);
  } else {
    const std::string said = messages([&] {
      on_device([&](DeviceRun& device) { *static_cast<volatile float*>(device.output(y.data(), sizeof(float))) = 1; });
    });
    CHECK(said.find("use-after-poison") != std::string::npos, said);
  }
}

TEST(launches_that_fail) {
  struct Case {
    dim3 blocks, threads;
    std::size_t shared_bytes;
    cudaError_t error;
  };
  for (const Case& c :
       {Case{1, 1025, 0, cudaErrorInvalidConfiguration}, Case{1, 0, 0, cudaErrorInvalidConfiguration},
        Case{0, 32, 0, cudaErrorInvalidConfiguration}, Case{dim3(1, 65536), 32, 0, cudaErrorInvalidConfiguration},
        Case{1, dim3(1, 1, 65), 0, cudaErrorInvalidConfiguration},
        Case{1, 32, (48 << 10) + 1, cudaErrorInvalidValue}}) {
    cudaLaunchConfig_t config{};
    config.gridDim = c.blocks, config.blockDim = c.threads, config.dynamicSmemBytes = c.shared_bytes;
    CHECK(cudaLaunchKernelEx(&config, unwritten_shared_kernel, nullptr, nullptr) == c.error, "launch");
    CHECK(cudaGetLastError() == c.error, "error");
    const std::string said = messages([&] {
      on_device([&](DeviceRun&) {
        static_cast<void>(cudaLaunchKernelEx(&config, unwritten_shared_kernel, nullptr, nullptr));
      });
    });
    CHECK(said.find("a call whose result was not looked at") != std::string::npos, said);
  }
  const std::string said = messages([] {
    on_device([](DeviceRun& device) {
      launch(unwritten_shared_kernel, Grid{1, 32, (163 << 10) + 1}, device.execution(), nullptr, nullptr);
    });
  });
  CHECK(said.find("cudaFuncSetAttribute failed") != std::string::npos, said);
}

int main() { return check::run_tests(); }
