#include "scratch.h"

#include <algorithm>
#include <new>
#include <thread>

#include "pages.h"

namespace eigendamage::cpu {
namespace {

// What is less, the allocator keeps itself, and gives what others used last and is in the caches.
constexpr std::size_t kLeast = 4 << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kKept = 0;  // what is kept could be used after its end unseen
#else
constexpr std::size_t kKept = 48 << 20;
#endif
constexpr std::size_t kAlignment = 64;
constexpr int kTries = 64;

}  // namespace

/// Precedes its memory.
struct alignas(kAlignment) ScratchPool::Block {
  std::size_t bytes;
  std::thread::id owner;

  static Block* of(void* memory) { return static_cast<Block*>(memory) - 1; }
  void* memory() { return this + 1; }

  static Block* make(std::size_t bytes) {
    void* memory = ::operator new(sizeof(Block) + bytes, std::align_val_t{kAlignment});
    use_huge_pages(memory, sizeof(Block) + bytes);
    return new (memory) Block{bytes, {}};
  }
  static void free(Block* block) { ::operator delete(block, std::align_val_t{kAlignment}); }
};

ScratchPool::~ScratchPool() {
  for (Block* block : blocks_) Block::free(block);
}

/// Perhaps without success: a child process may have been forked while another thread of its parent had the lock.
std::unique_lock<std::mutex> ScratchPool::lock() {
  std::unique_lock held(mutex_, std::try_to_lock);
  for (int i = 0; !held && i < kTries; ++i) {
    std::this_thread::yield();
    held.try_lock();
  }
  return held;
}

/// The last one given that is large enough and not much larger, by this thread before others, whose caches hold theirs.
ScratchPool::Block* ScratchPool::find(std::size_t bytes) {
  const auto fits = [&](const Block* block) { return block->bytes >= bytes && block->bytes / 2 <= bytes; };
  const auto mine = [&](const Block* block) { return fits(block) && block->owner == std::this_thread::get_id(); };
  auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), mine);
  if (found == blocks_.rend()) found = std::find_if(blocks_.rbegin(), blocks_.rend(), fits);
  if (found == blocks_.rend()) return nullptr;
  Block* block = *found;
  blocks_.erase(std::next(found).base());
  kept_ -= block->bytes;
  return block;
}

void* ScratchPool::take(std::size_t bytes) {
  if (bytes >= least_) {
    if (const auto held = lock()) {
      if (Block* block = find(bytes)) return block->memory();
    }
  }
  try {
    return Block::make(bytes)->memory();
  } catch (const std::bad_alloc&) {
    const auto held = lock();
    if (!held || blocks_.empty()) throw;
    while (!blocks_.empty()) free_oldest();
    return Block::make(bytes)->memory();
  }
}

void ScratchPool::free_oldest() noexcept {
  kept_ -= blocks_.front()->bytes;
  Block::free(blocks_.front());
  blocks_.erase(blocks_.begin());
}

void ScratchPool::give(void* memory) noexcept {
  Block* block = Block::of(memory);
  if (block->bytes >= least_ && block->bytes <= most_) {
    if (const auto held = lock()) {
      while (kept_ + block->bytes > most_) free_oldest();
      block->owner = std::this_thread::get_id();
      try {
        blocks_.push_back(block);
        kept_ += block->bytes;
        return;
      } catch (const std::bad_alloc&) {  // freed below
      }
    }
  }
  Block::free(block);
}

ScratchPool& scratch_pool() {
  static ScratchPool& kept =
      *new ScratchPool(kLeast, kKept);  // never destroyed: other threads may still hold memory at the end
  return kept;
}

}  // namespace eigendamage::cpu
