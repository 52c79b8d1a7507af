#include "memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace cuda_on_cpu {
namespace {

struct Block {
  std::size_t bytes;
  std::vector<Word> words;  ///< once something is watched
};

std::map<std::uintptr_t, Block>& blocks() {
  static std::map<std::uintptr_t, Block> instance;
  return instance;
}

/// The block that holds an address, or the end.
auto find(const void* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  const auto next = blocks().upper_bound(number);
  const auto found = next == blocks().begin() ? blocks().end() : std::prev(next);
  return found != blocks().end() && number - found->first < found->second.bytes ? found : blocks().end();
}

std::uintptr_t last_block = 0;  ///< where the last watched access was
WatchedMemory last{};

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
  blocks()[block] = {bytes, {}};
  if (!opened) close(block, bytes);
  return memory;
}

bool release(void* memory) {
  const auto found = blocks().find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == blocks().end()) return memory == nullptr;
  open(found->first, found->second.bytes);
  last = {};
  std::free(memory);
  blocks().erase(found);
  return true;
}

bool on_device(const void* address) { return find(address) != blocks().end(); }

std::size_t blocks_in_use() { return blocks().size(); }

WatchedMemory watched_memory(const void* address) {
  const auto number = reinterpret_cast<std::uintptr_t>(address);
  if (number - last_block >= last.bytes) {
    const auto found = find(address);
    if (found == blocks().end()) return {nullptr, 0, 0};
    Block& block = found->second;
    if (block.words.empty()) block.words.resize((block.bytes + 3) / 4);
    last_block = found->first;
    last = {block.words.data(), 0, block.bytes};
  }
  return {last.words, number - last_block, last.bytes};
}

void mark_written(const void* address, std::size_t bytes) {
  if (!watching() || !on_device(address)) return;
  const WatchedMemory memory = watched_memory(address);
  watch_host(memory.words, memory.offset, std::min(bytes, memory.bytes - memory.offset));
}

MemoryOpened::MemoryOpened() {
  if (opened++) return;
  for (const auto& [block, memory] : blocks()) open(block, memory.bytes);
}

MemoryOpened::~MemoryOpened() {
  if (--opened) return;
  for (const auto& [block, memory] : blocks()) close(block, memory.bytes);
}

}  // namespace cuda_on_cpu
