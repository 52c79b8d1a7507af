#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace cuda_on_cpu {
namespace {

std::map<std::uintptr_t, std::size_t>& blocks() {
  static std::map<std::uintptr_t, std::size_t> sizes;
  return sizes;
}

int opened = 0;

void close(std::uintptr_t block, std::size_t bytes) {
  ASAN_POISON_MEMORY_REGION(reinterpret_cast<void*>(block), bytes);
}

void open(std::uintptr_t block, std::size_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(block), bytes);
}

}  // namespace

void* allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xFF, bytes);
  const auto block = reinterpret_cast<std::uintptr_t>(memory);
  blocks()[block] = bytes;
  if (!opened) close(block, bytes);
  return memory;
}

bool release(void* memory) {
  const auto found = blocks().find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == blocks().end()) return memory == nullptr;
  open(found->first, found->second);
  std::free(memory);
  blocks().erase(found);
  return true;
}

bool on_device(const void* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  auto next = blocks().upper_bound(number);
  return next != blocks().begin() && number - (--next)->first < next->second;
}

std::size_t blocks_in_use() { return blocks().size(); }

MemoryOpened::MemoryOpened() {
  if (opened++) return;
  for (const auto& [block, bytes] : blocks()) open(block, bytes);
}

MemoryOpened::~MemoryOpened() {
  if (--opened) return;
  for (const auto& [block, bytes] : blocks()) close(block, bytes);
}

}  // namespace cuda_on_cpu
