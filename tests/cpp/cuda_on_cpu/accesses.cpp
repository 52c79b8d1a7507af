#include "accesses.h"

#include <algorithm>
#include <string>

#include "fiber.h"
#include "machine.h"
#include "memory.h"
#include "names.h"

extern "C" const char __executable_start, _end;  // of the program's code and globals

namespace cuda_on_cpu {
namespace {

using Clock = std::uint32_t;

enum class Kind { kRead, kWrite, kAtomic };

std::string name(Kind kind) { return kind == Kind::kRead ? "reads" : kind == Kind::kWrite ? "writes" : "updates"; }

class Watch {
 public:
  bool instrumented = false, running = false;
  unsigned thread = 0;

  void start_launch(const Launch& launch);
  void start_block(const void* shared, std::size_t bytes);
  void block_barrier();
  void warp_barrier(unsigned warp, unsigned mask);
  void access(const void* address, std::size_t bytes, Kind kind, const void* code);

 private:
  struct Warp {
    Clock known[32][32];  ///< up to which clock of a lane what it did happened before what a lane does next
  };

  bool before(const Access& past) const;
  bool conflicts(const Access& past, Kind kind, std::uint32_t oldest) const;
  unsigned distance(const Access& past, const Access& now, std::uint32_t oldest) const;
  void check(const void* address, std::size_t bytes, Kind kind, const void* code);
  void check(Word* words, std::size_t offset, std::size_t bytes, const Access& now, Kind kind, bool shared);
  void check(History& history, const Access& now, Kind kind, bool shared, std::size_t offset);
  [[noreturn]] void report(const Access& past, const char* did, Kind kind, bool shared, std::size_t offset,
                           const Access& now) const;

  const Launch* launch_ = nullptr;
  unsigned threads_ = 0;
  std::uint32_t first_block_ = 2, block_ = 1;
  const std::byte* shared_ = nullptr;
  std::size_t shared_bytes_ = 0;
  std::vector<Word> shadow_;  ///< of shared memory; what other blocks did counts as nothing
  Clock clocks_[1024] = {}, last_barrier_ = 0;
  Warp warps_[32] = {};
};

constinit Watch watch;

void split(Word& word) {
  if (!word.is_split) std::fill_n(word.bytes + 1, 3, word.bytes[0]);
  word.is_split = true;
}

void Watch::start_launch(const Launch& launch) {
  launch_ = &launch;
  first_block_ = block_ + 1;
}

void Watch::start_block(const void* shared, std::size_t bytes) {
  ++block_;
  shared_ = static_cast<const std::byte*>(shared), shared_bytes_ = bytes;
  if (shadow_.size() < (bytes + 3) / 4) shadow_.resize((bytes + 3) / 4);
  threads_ = launch_->threads.x * launch_->threads.y * launch_->threads.z;
  std::fill_n(clocks_, threads_, 1U);
  std::fill_n(warps_, (threads_ + 31) / 32, Warp{});
  last_barrier_ = 1;
}

void Watch::block_barrier() {
  last_barrier_ = *std::max_element(clocks_, clocks_ + threads_) + 1;
  std::fill_n(clocks_, threads_, last_barrier_);
}

void Watch::warp_barrier(unsigned number, unsigned mask) {
  Warp& warp = warps_[number];
  Clock* const clocks = clocks_ + 32 * number;
  Clock known[32] = {};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    warp.known[lane][lane] = clocks[lane]++;
    for (unsigned other = 0; other < 32; ++other) known[other] = std::max(known[other], warp.known[lane][other]);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) std::copy(std::begin(known), std::end(known), warp.known[lane]);
  }
}

/// Whether something of this block happened before what the running thread does now.
bool Watch::before(const Access& past) const {
  const unsigned own = thread;
  return past.thread == own || past.clock < last_barrier_ ||
         (past.thread / 32 == own / 32 && past.clock <= warps_[own / 32].known[own % 32][past.thread % 32]);
}

bool Watch::conflicts(const Access& past, Kind kind, std::uint32_t oldest) const {
  if (past.block < oldest || (past.atomic && kind == Kind::kAtomic)) return false;
  return past.block != block_ || !before(past);
}

unsigned Watch::distance(const Access& past, const Access& now, std::uint32_t oldest) const {
  if (past.block < oldest) return 0;
  if (past.block != now.block) return 3;
  if (before(past)) return 0;
  return past.thread / 32 != now.thread / 32 ? 2 : 1;
}

void Watch::report(const Access& past, const char* did, Kind kind, bool shared, std::size_t offset,
                   const Access& now) const {
  const bool same_block = past.block == block_;
  const std::string who = same_block ? describe_thread(past.thread) : std::string("a thread of another block");
  fail(name(kind) + " byte " + std::to_string(offset) + " of " + (shared ? "shared" : "device") + " memory at " +
       source_line(now.code) + ", which " + who + " " + did + " at " + source_line(past.code) +
       " with no barrier between");
}

void Watch::check(History& history, const Access& now, Kind kind, bool shared, std::size_t offset) {
  if (kind != Kind::kWrite && history.write.block < (shared ? block_ : 1)) {
    fail("reads byte " + std::to_string(offset) + " of " + (shared ? "shared" : "device") + " memory at " +
         source_line(now.code) + ", which nobody has written");
  }
  const std::uint32_t oldest = shared ? block_ : first_block_;
  if (conflicts(history.write, kind, oldest)) report(history.write, "wrote", kind, shared, offset, now);
  if (kind == Kind::kRead) {
    const unsigned distances[] = {distance(history.reads[0], now, oldest), distance(history.reads[1], now, oldest)};
    if (distances[0] >= distances[1]) history.reads[1] = distances[0] ? history.reads[0] : Access{};
    history.reads[0] = now;
    return;
  }
  for (const Access& read : history.reads) {
    if (conflicts(read, kind, oldest)) report(read, "read", kind, shared, offset, now);
  }
  history = {now, {}};
}

void Watch::check(Word* words, std::size_t offset, std::size_t bytes, const Access& now, Kind kind, bool shared) {
  for (std::size_t i = offset; i < offset + bytes;) {
    Word& word = words[i / 4];
    const bool whole = i % 4 == 0 && i + 4 <= offset + bytes;
    if (!whole) {
      split(word);
      check(word.bytes[i % 4], now, kind, shared, i);
      ++i;
      continue;
    }
    for (std::size_t byte = 0; byte < (word.is_split ? 4 : 1); ++byte) {
      check(word.bytes[byte], now, kind, shared, i + byte);
    }
    if (kind != Kind::kRead) word.is_split = false;
    i += 4;
  }
}

void Watch::access(const void* address, std::size_t bytes, Kind kind, const void* code) {
  running = false;  // what is called from here may be instrumented too
  check(address, bytes, kind, code);
  running = true;
}

void Watch::check(const void* address, std::size_t bytes, Kind kind, const void* code) {
  if (Fiber::on_a_stack(address)) return;
  const auto* const first = static_cast<const std::byte*>(address);
  const auto* const parameters = static_cast<const std::byte*>(launch_->parameters);
  if (first >= parameters && first + bytes <= parameters + launch_->parameter_bytes) return;
  if (first >= reinterpret_cast<const std::byte*>(&__executable_start) &&
      first < reinterpret_cast<const std::byte*>(&_end)) {
    return;
  }
  const Access now{block_, program_offset(code), clocks_[thread], static_cast<std::uint16_t>(thread),
                   kind == Kind::kAtomic};
  if (first >= shared_ && first + bytes <= shared_ + shared_bytes_) {
    const auto offset = static_cast<std::size_t>(first - shared_);
    check(shadow_.data(), offset, bytes, now, kind, true);
  } else if (const WatchedMemory memory = watched_memory(address); memory.offset + bytes <= memory.bytes) {
    check(memory.words, memory.offset, bytes, now, kind, false);
  } else {
    fail(name(kind) + " at " + source_line(now.code) + " memory that is not the device's, or beyond its end");
  }
}

}  // namespace

bool watching() { return watch.instrumented; }
void watch_launch(const Launch& launch) { watch.start_launch(launch); }
void watch_block(const void* shared, std::size_t bytes) {
  if (watching()) watch.start_block(shared, bytes);
}
void watch_block_barrier() {
  if (watching()) watch.block_barrier();
}
void watch_warp_barrier(unsigned warp, unsigned mask) {
  if (watching()) watch.warp_barrier(warp, mask);
}
void watch_atomic(const void* address, std::size_t bytes) {
  if (watching() && watch.running) watch.access(address, bytes, Kind::kAtomic, __builtin_return_address(0));
}
void watch_thread(unsigned number) { watch.running = true, watch.thread = number; }
void watch_nobody() { watch.running = false; }

void watch_host(Word* words, std::size_t offset, std::size_t bytes) {
  for (std::size_t i = offset; i < offset + bytes;) {
    const bool whole = i % 4 == 0 && i + 4 <= offset + bytes;
    Word& word = words[i / 4];
    whole ? static_cast<void>(word.is_split = false) : split(word);
    word.bytes[i % 4].write.block = 1;
    i += whole ? 4 : 1;
  }
}

}  // namespace cuda_on_cpu

// What g++ calls for -fsanitize=thread.
#define WATCH_ACCESS(function, bytes, kind)                                                            \
  extern "C" void function(void* address);                                                             \
  extern "C" void function(void* address) {                                                            \
    if (cuda_on_cpu::watch.running)                                                                    \
      cuda_on_cpu::watch.access(address, bytes, cuda_on_cpu::Kind::kind, __builtin_return_address(0)); \
  }
#define WATCH_BYTES(bytes)                                 \
  WATCH_ACCESS(__tsan_read##bytes, bytes, kRead)           \
  WATCH_ACCESS(__tsan_write##bytes, bytes, kWrite)         \
  WATCH_ACCESS(__tsan_unaligned_read##bytes, bytes, kRead) \
  WATCH_ACCESS(__tsan_unaligned_write##bytes, bytes, kWrite)
WATCH_BYTES(1)
WATCH_BYTES(2)
WATCH_BYTES(4)
WATCH_BYTES(8)
WATCH_BYTES(16)
#define WATCH_RANGE(function, kind)                                                                    \
  extern "C" void function(void* address, std::size_t bytes);                                          \
  extern "C" void function(void* address, std::size_t bytes) {                                         \
    if (cuda_on_cpu::watch.running)                                                                    \
      cuda_on_cpu::watch.access(address, bytes, cuda_on_cpu::Kind::kind, __builtin_return_address(0)); \
  }
WATCH_RANGE(__tsan_read_range, kRead)
WATCH_RANGE(__tsan_write_range, kWrite)

extern "C" void __tsan_init();
extern "C" void __tsan_init() { cuda_on_cpu::watch.instrumented = true; }
extern "C" void __tsan_func_entry(void*);
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit();
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*);
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**);
extern "C" void __tsan_vptr_read(void**) {}
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int);
extern "C" unsigned char __tsan_atomic8_load(const volatile unsigned char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);  // of the guard of a static object
}
