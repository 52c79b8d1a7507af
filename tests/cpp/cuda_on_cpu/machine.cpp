#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "accesses.h"
#include "cuda_runtime.h"
#include "fiber.h"
#include "names.h"

namespace cuda_on_cpu {
namespace {

enum class State { kReady, kAtBlockBarrier, kInWarp, kLeft };

struct Thread {
  State state;
  Index index;
  const char* name;  ///< of the call it waits in
  Location where;
  unsigned mask;
  void* mine;
};

std::string text(const Index& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

Index position(unsigned number, const Index& extents) {
  return {number % extents.x, number / extents.x % extents.y, number / extents.x / extents.y};
}

/// One launch at a time.
class Machine {
 public:
  void run(const Launch& launch);

  void* shared_memory() const { return shared_.get(); }
  int block_barrier(const char* name, bool predicate, const Location& where);
  void warp_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const* lanes),
                       const Location& where);
  [[noreturn]] void fail(const std::string& what);
  std::string thread_name(unsigned number) const;
  unsigned running() const { return running_; }

 private:
  void run_block();
  void run_thread(unsigned number);
  void run_kernel();
  void wait(State state, const char* name, const Location& where);
  void release_block();
  void set_ready(unsigned number);
  unsigned next_ready();
  unsigned pick_bit(unsigned bits);
  std::string describe(unsigned number) const;
  std::string why_stuck() const;
  unsigned warp_size(unsigned warp) const { return std::min(32U, static_cast<unsigned>(threads_.size()) - 32 * warp); }

  const Launch* launch_ = nullptr;
  Index block_{};
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Thread> threads_;
  unsigned ready_warps_ = 0, ready_lanes_[32] = {};
  unsigned in_warp_[32] = {};  ///< lanes that wait for others of their warp
  unsigned running_ = 0, at_barrier_ = 0, left_ = 0;
  int predicates_ = 0, result_ = 0;
  std::unique_ptr<unsigned char[]> shared_;
  std::string fault_;
  std::minstd_rand random_;
};

Machine& machine() {
  static Machine& instance = *new Machine;  // as its fibers' stacks
  return instance;
}

void Machine::run(const Launch& launch) {
  launch_ = &launch;
  const Schedule schedule = device().schedule;
  random_.seed(schedule.seed + 1);
  const Index& extents = launch.blocks;
  std::vector<unsigned> order(extents.x * extents.y * extents.z);
  std::iota(order.begin(), order.end(), 0U);
  if (schedule.order == Schedule::Order::kReverse) std::reverse(order.begin(), order.end());
  if (schedule.order == Schedule::Order::kRandom) std::shuffle(order.begin(), order.end(), random_);
  blockDim = dim3(launch.threads.x, launch.threads.y, launch.threads.z);
  gridDim = dim3(extents.x, extents.y, extents.z);
  threads_.resize(launch.threads.x * launch.threads.y * launch.threads.z);
  while (fibers_.size() < threads_.size()) fibers_.push_back(std::make_unique<Fiber>());
  watch_launch(launch);
  for (const unsigned block : order) {
    block_ = position(block, extents);
    blockIdx = {block_.x, block_.y, block_.z};
    run_block();
    if (!fault_.empty()) break;
  }
  if (!fault_.empty()) throw Fault(std::exchange(fault_, {}));
}

void Machine::run_block() {
  shared_.reset(new unsigned char[launch_->shared_bytes]);
  std::memset(shared_.get(), 0xFF, launch_->shared_bytes);  // a NaN in every type
  watch_block(shared_.get(), launch_->shared_bytes);
  ready_warps_ = at_barrier_ = left_ = 0;
  predicates_ = 0;
  std::fill(std::begin(ready_lanes_), std::end(ready_lanes_), 0);
  std::fill(std::begin(in_warp_), std::end(in_warp_), 0);
  const auto body = [](void* self) { static_cast<Machine*>(self)->run_kernel(); };
  for (unsigned i = 0; i < threads_.size(); ++i) {
    threads_[i] = {State::kReady, position(i, launch_->threads), "", {}, 0, nullptr};
    fibers_[i]->start(body, this);
    set_ready(i);
  }
  while (left_ < threads_.size() && fault_.empty()) {
    if (ready_warps_) {
      run_thread(next_ready());
    } else if (at_barrier_ == threads_.size()) {
      release_block();
    } else {
      fault_ = why_stuck();
    }
  }
  shared_.reset();
}

void Machine::run_thread(unsigned number) {
  const Thread& thread = threads_[number];
  running_ = number;
  threadIdx = {thread.index.x, thread.index.y, thread.index.z};
  watch_thread(number);
  fibers_[number]->resume();
  watch_nobody();
}

void Machine::run_kernel() {
  launch_->body(launch_->parameters);
  threads_[running_].state = State::kLeft;
  ++left_;
}

void Machine::set_ready(unsigned number) {
  threads_[number].state = State::kReady;
  in_warp_[number / 32] &= ~(1U << number % 32);
  ready_lanes_[number / 32] |= 1U << number % 32;
  ready_warps_ |= 1U << number / 32;
}

unsigned Machine::pick_bit(unsigned bits) {
  switch (device().schedule.order) {
    case Schedule::Order::kForward: break;
    case Schedule::Order::kReverse: return 31 - static_cast<unsigned>(std::countl_zero(bits));
    case Schedule::Order::kRandom:
      for (auto skipped = static_cast<unsigned>(random_() >> 8) % static_cast<unsigned>(std::popcount(bits)); skipped;
           --skipped) {
        bits &= bits - 1;
      }
  }
  return static_cast<unsigned>(std::countr_zero(bits));
}

unsigned Machine::next_ready() {
  const unsigned warp = pick_bit(ready_warps_), lane = pick_bit(ready_lanes_[warp]);
  ready_lanes_[warp] &= ~(1U << lane);
  if (!ready_lanes_[warp]) ready_warps_ &= ~(1U << warp);
  return 32 * warp + lane;
}

void Machine::wait(State state, const char* name, const Location& where) {
  Thread& thread = threads_[running_];
  const unsigned number = running_;
  thread.state = state, thread.name = name, thread.where = where;
  fibers_[number]->suspend();
}

int Machine::block_barrier(const char* name, bool predicate, const Location& where) {
  ++at_barrier_;
  predicates_ += predicate;
  wait(State::kAtBlockBarrier, name, where);
  return result_;
}

bool same(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void Machine::release_block() {
  for (const Thread& thread : threads_) {
    if (!same(thread.where, threads_[0].where)) {
      fault_ = why_stuck();
      return;
    }
  }
  watch_block_barrier();
  result_ = std::exchange(predicates_, 0);
  at_barrier_ = 0;
  for (unsigned i = 0; i < threads_.size(); ++i) set_ready(i);
}

void Machine::warp_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const* lanes),
                              const Location& where) {
  const unsigned warp = running_ / 32, lane = running_ % 32;
  if (!(mask >> lane & 1)) fail(std::string(name) + " is called by a lane that its mask does not name");
  if (warp_size(warp) < 32 && mask >> warp_size(warp))
    fail(std::string(name) + " has a mask that names lanes beyond the block");
  Thread* const lanes = threads_.data() + 32 * warp;
  lanes[lane].mask = mask, lanes[lane].mine = mine;
  void* all[32] = {};
  bool together = !(mask & ~(in_warp_[warp] | 1U << lane));
  for (unsigned i = 0; i < 32 && together; ++i) {
    if (!(mask >> i & 1)) continue;
    const Thread& other = lanes[i];
    together = i == lane || (other.mask == mask && same(other.where, where));
    all[i] = other.mine;
  }
  if (!together) {
    in_warp_[warp] |= 1U << lane;
    return wait(State::kInWarp, name, where);
  }
  combine ? combine(all) : watch_warp_barrier(warp, mask);
  for (unsigned i = 0; i < 32; ++i) {
    if (mask >> i & 1 && i != lane) set_ready(32 * warp + i);
  }
  set_ready(running_);  // who came last need not go on first
  fibers_[running_]->suspend();
}

std::string Machine::describe(unsigned number) const {
  const Thread& thread = threads_[number];
  const std::string who = thread_name(number) + " ";
  if (thread.state == State::kLeft) return who + "has left the kernel";
  if (thread.state == State::kReady) return who + "runs";
  return who + "waits in " + thread.name + " at " + thread.where.file_name() + ":" +
         std::to_string(thread.where.line());
}

std::string Machine::why_stuck() const {
  std::string message =
      "kernel " + kernel_name(launch_->kernel) + ", block " + text(block_) + ": not all get to the same barrier: ";
  const unsigned first = static_cast<unsigned>(
      std::find_if(threads_.begin(), threads_.end(), [](const Thread& t) { return t.state != State::kLeft; }) -
      threads_.begin());
  message += describe(first);
  for (unsigned i = 0; i < threads_.size(); ++i) {
    const Thread &a = threads_[i], &b = threads_[first];
    if (a.state != b.state || !same(a.where, b.where) || a.mask != b.mask) return message + ", " + describe(i);
  }
  return message;
}

std::string Machine::thread_name(unsigned number) const { return "thread " + text(threads_[number].index); }

void Machine::fail(const std::string& what) {
  fault_ = "kernel " + kernel_name(launch_->kernel) + ", block " + text(block_) + ", thread " +
           text(threads_[running_].index) + ": " + what;
  fibers_[running_]->suspend();
  __builtin_unreachable();
}

}  // namespace

Device& device() {
  static Device instance;
  return instance;
}

void run(const Launch& launch) { machine().run(launch); }
void* shared_memory() { return machine().shared_memory(); }

// What the machine does on a thread's stack is not the kernel's.
int block_barrier(const char* name, bool predicate, const Location& where) {
  watch_nobody();
  const int count = machine().block_barrier(name, predicate, where);
  watch_thread(machine().running());
  return count;
}

void warp_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const* lanes),
                     const Location& where) {
  watch_nobody();
  machine().warp_collective(name, mask, mine, combine, where);
  watch_thread(machine().running());
}

void fail(const std::string& what) { machine().fail(what); }

void fail(const char* what) {
  watch_nobody();
  machine().fail(what);
}

std::string describe_thread(unsigned number) { return machine().thread_name(number); }
unsigned lane() { return machine().running() % 32; }
unsigned thread_number() { return machine().running(); }

}  // namespace cuda_on_cpu
