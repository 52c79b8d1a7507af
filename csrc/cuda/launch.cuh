#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../kernels.h"

namespace eigendamage::cuda {

/// Throws what a CUDA call reports.
inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + call + " failed: " + cudaGetErrorString(status));
  }
}

/// A property of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

/// The size of a launch: a grid of blocks of threads, each block with so many bytes of shared memory.
struct Grid {
  dim3 blocks;
  unsigned threads;
  std::size_t shared_bytes = 0;
};

/// Enqueues kernel(arguments...) on the stream of `run`.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Grid& grid, const Execution& run, Arguments&&... arguments) {
  if (grid.shared_bytes > (48 << 10)) {  // more than every kernel may have
    const auto bytes = static_cast<int>(grid.shared_bytes);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(run.stream);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "cudaLaunchKernelEx");
}

/// The block's shared memory, all of it dynamic, so that its bounds are known to those who check them, as where
/// kernels run on a CPU (tests/cpp/cuda_on_cpu).
template <class T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
#else
  void* const bytes = cuda_on_cpu::shared_memory();
#endif
  return reinterpret_cast<T*>(bytes);
}

}  // namespace eigendamage::cuda
