#pragma once

#include <cstddef>

#include "accesses.h"

/// The device's memory: blocks of the heap that the host may not touch.
namespace cuda_on_cpu {

void* allocate(std::size_t bytes);  ///< aligned to 256 bytes, filled with NaN
bool release(void* memory);         ///< false if allocate() did not give it
bool on_device(const void* address);
std::size_t blocks_in_use();
void mark_written(const void* address, std::size_t bytes);  ///< by the host

/// Where an address is in a block of memory, and who accessed that; no bytes if it is in none.
struct WatchedMemory {
  Word* words;
  std::size_t offset, bytes;
};
WatchedMemory watched_memory(const void* address);

/// While one lives the memory is accessible.
struct MemoryOpened {
  MemoryOpened();
  ~MemoryOpened();
};

}  // namespace cuda_on_cpu
