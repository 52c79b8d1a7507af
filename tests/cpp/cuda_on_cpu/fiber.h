#pragma once

#include <cstddef>

namespace cuda_on_cpu {

/// A thread of control with a stack of its own that runs only inside resume(), on the caller's system thread.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  /// Makes the next resume() call body(argument). What an unfinished body held on its stack is forgotten.
  void start(void (*body)(void*), void* argument);
  /// Goes on where the body suspended itself; returns when it does so again or has returned.
  void resume();
  /// Called by the body alone.
  void suspend();

  static constexpr std::size_t kMost = 1024;     ///< at a time
  static bool on_a_stack(const void* address) {  ///< of any fiber
    return static_cast<std::size_t>(static_cast<const std::byte*>(address) - stacks_) < kStacksBytes;
  }

 private:
  friend class Stacks;
  static constexpr std::size_t kStacksBytes = kMost * ((256 << 10) + 4096);
  inline static const std::byte* stacks_ = nullptr;

  static void enter(Fiber* self);

  std::byte* memory_;
  bool unfinished_ = false;
  void* stack_pointer_ = nullptr;
  void* resumer_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
};

}  // namespace cuda_on_cpu
