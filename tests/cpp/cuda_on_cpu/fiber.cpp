#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
static void __sanitizer_start_switch_fiber(void**, const void*, std::size_t) {}
static void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*) {}
#endif

// Saves the registers that a call preserves on the stack, the stack pointer in *save, and goes on from `next`.
extern "C" void cuda_on_cpu_switch(void** save, void* next);
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

// Where a fiber begins: its pointer is in a register that the switch restores.
extern "C" void cuda_on_cpu_begin();
asm(R"(
.text
.globl cuda_on_cpu_begin
.type cuda_on_cpu_begin, @function
cuda_on_cpu_begin:
  movq %rbx, %rdi
  callq *%r12
  ud2
.size cuda_on_cpu_begin, .-cuda_on_cpu_begin
)");

namespace cuda_on_cpu {

constexpr std::size_t kPage = 4096, kStack = 256 << 10;

/// All stacks lie in one range, each above a page that stops what grows too far.
class Stacks {
 public:
  static Stacks& all() {
    static Stacks& instance = *new Stacks;  // outlives what is static
    return instance;
  }

  std::byte* take() {
    if (free_.empty()) throw std::bad_alloc();
    std::byte* const stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give_back(std::byte* stack) { free_.push_back(stack); }

 private:
  static constexpr std::size_t kEach = kPage + kStack, kBytes = kEach * Fiber::kMost;
  static_assert(kBytes == Fiber::kStacksBytes);

  Stacks() {
    void* const memory =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    Fiber::stacks_ = static_cast<std::byte*>(memory);
    for (std::byte* stack = static_cast<std::byte*>(memory) + kBytes - kEach; free_.size() < Fiber::kMost;
         stack -= kEach) {
      if (mprotect(stack, kPage, PROT_NONE) != 0) throw std::bad_alloc();
      free_.push_back(stack + kPage);
    }
  }

  std::vector<std::byte*> free_;
};

Fiber::Fiber() : memory_(Stacks::all().take()) {}

Fiber::~Fiber() {
  ASAN_UNPOISON_MEMORY_REGION(memory_, kStack);
  Stacks::all().give_back(memory_);
}

void Fiber::start(void (*body)(void*), void* argument) {
  // A finished body leaves the frames of enter() and of its last suspend().
  const std::size_t left = unfinished_ ? kStack : kPage;
  ASAN_UNPOISON_MEMORY_REGION(memory_ + kStack - left, left);
  std::memset(memory_ + kStack - kPage, 0xFF, kPage);  // a NaN in what the body does not set
  unfinished_ = true;
  body_ = body, argument_ = argument;
  struct Saved {
    void *r15, *r14, *r13, *r12, *rbx, *rbp, *return_address, *none[2];
  };
  const Saved first{nullptr,
                    nullptr,
                    nullptr,
                    reinterpret_cast<void*>(&enter),
                    this,
                    nullptr,
                    reinterpret_cast<void*>(&cuda_on_cpu_begin),
                    {}};
  static_assert(sizeof(Saved) == 72);
  stack_pointer_ = memory_ + kStack - 72;  // 16-byte aligned where `enter` is called
  std::memcpy(stack_pointer_, &first, sizeof first);
}

void Fiber::enter(Fiber* self) {
  __sanitizer_finish_switch_fiber(nullptr, &self->resumer_stack_, &self->resumer_stack_bytes_);
  self->body_(self->argument_);
  self->unfinished_ = false;
  self->suspend();
}

void Fiber::resume() {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, memory_, kStack);
  cuda_on_cpu_switch(&resumer_, stack_pointer_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

[[gnu::no_sanitize_address]] void Fiber::suspend() {  // which may never return: its frame must leave no marks
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, resumer_stack_, resumer_stack_bytes_);
  cuda_on_cpu_switch(&stack_pointer_, resumer_);
  __sanitizer_finish_switch_fiber(fake_stack, &resumer_stack_, &resumer_stack_bytes_);
}

}  // namespace cuda_on_cpu
