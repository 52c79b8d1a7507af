#pragma once

#include <cstddef>

/// The device's memory: blocks of the heap that the host may not touch.
namespace cuda_on_cpu {

void* allocate(std::size_t bytes);  ///< aligned to 256 bytes, filled with NaN
bool release(void* memory);         ///< false if allocate() did not give it
bool on_device(const void* address);
std::size_t blocks_in_use();

/// While one lives the memory is accessible.
struct MemoryOpened {
  MemoryOpened();
  ~MemoryOpened();
};

}  // namespace cuda_on_cpu
