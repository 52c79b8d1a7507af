#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include "cuda_runtime.h"
#include "memory.h"

namespace {

cudaError_t last_error = cudaSuccess;

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

std::map<const void*, int>& shared_bytes_allowed() {
  static std::map<const void*, int> of_kernels;
  return of_kernels;
}

constexpr int kSharedBytesOfAll = 48 << 10;

}  // namespace

namespace cuda_on_cpu {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > device().shared_bytes) return report(cudaErrorInvalidValue);
  shared_bytes_allowed()[kernel] = value;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, Launch launch) {
  const dim3 blocks = config.gridDim, threads = config.blockDim;
  const std::size_t per_block = std::size_t{threads.x} * threads.y * threads.z;
  const bool some = per_block && blocks.x && blocks.y && blocks.z;
  if (!some || per_block > 1024 || threads.z > 64 || blocks.x > 0x7FFFFFFF || blocks.y > 65535 || blocks.z > 65535) {
    return report(cudaErrorInvalidConfiguration);
  }
  const auto found = shared_bytes_allowed().find(launch.kernel);
  const int allowed =
      found == shared_bytes_allowed().end() ? kSharedBytesOfAll : std::max(found->second, kSharedBytesOfAll);
  if (config.dynamicSmemBytes > static_cast<std::size_t>(allowed)) return report(cudaErrorInvalidValue);
  launch.blocks = {blocks.x, blocks.y, blocks.z};
  launch.threads = {threads.x, threads.y, threads.z};
  launch.shared_bytes = config.dynamicSmemBytes;
  const MemoryOpened opened;
  run(launch);
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

using cuda_on_cpu::device;

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
  }
  return "an error";
}

const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) { return report(number == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number != 0) return report(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = kSharedBytesOfAll; break;
    case cudaDevAttrWarpSize: *value = warpSize; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 1 << 16; break;
    case cudaDevAttrMultiProcessorCount: *value = device().multiprocessors; break;
    case cudaDevAttrL2CacheSize: *value = 40 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = device().capability; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 164 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = device().shared_bytes; break;
    default: return report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = cuda_on_cpu::allocate(bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  return report(cuda_on_cpu::release(memory) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (bytes == 0) return cudaSuccess;
  if (kind != cudaMemcpyDefault &&
      (cuda_on_cpu::on_device(to) != to_device || cuda_on_cpu::on_device(from) != from_device)) {
    return report(cudaErrorInvalidValue);
  }
  const cuda_on_cpu::MemoryOpened opened;
  std::memcpy(to, from, bytes);
  cuda_on_cpu::mark_written(to, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, std::size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  if (!cuda_on_cpu::on_device(memory)) return report(cudaErrorInvalidValue);
  const cuda_on_cpu::MemoryOpened opened;
  std::memset(memory, value, bytes);
  cuda_on_cpu::mark_written(memory, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  return cudaMemset(memory, value, bytes);
}
