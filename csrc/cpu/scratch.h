#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace eigendamage::cpu {

/// Memory that a kernel needs while it runs, kept for the next one: the system clears the pages of fresh memory one fault
/// after the other, which can take as long as the kernel does. For any thread; a fork may leave it unable to keep any.
class ScratchPool {
 public:
  /// Keeps memory of `least` bytes and more, up to `most` of them together, what was given last.
  ScratchPool(std::size_t least, std::size_t most) : least_(least), most_(most) {}
  ~ScratchPool();
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  /// Memory aligned to 64 bytes, with rubbish in it; one that this thread gave before, if possible. Throws std::bad_alloc.
  void* take(std::size_t bytes);

  /// Gives back what `take` returned.
  void give(void* memory) noexcept;

  std::size_t kept() const { return kept_; }  ///< bytes; for tests

 private:
  struct Block;
  std::unique_lock<std::mutex> lock();
  Block* find(std::size_t bytes);
  void free_oldest() noexcept;

  const std::size_t least_, most_;
  std::size_t kept_ = 0;
  std::vector<Block*> blocks_;  ///< the oldest first
  std::mutex mutex_;
};

/// That of this process.
ScratchPool& scratch_pool();

template <class T>
struct GiveBack {
  void operator()(T* p) const { scratch_pool().give(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], GiveBack<T>>;

template <class T>
Buffer<T> make_buffer(std::int64_t size) {
  return Buffer<T>(static_cast<T*>(scratch_pool().take(static_cast<std::size_t>(size) * sizeof(T))));
}

}  // namespace eigendamage::cpu
