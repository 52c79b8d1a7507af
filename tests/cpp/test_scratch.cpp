#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "cpu/scratch.h"

#ifdef __unix__
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "check.h"

using eigendamage::cpu::ScratchPool;

namespace {

constexpr std::size_t kKB = 1 << 10, kMB = 1 << 20, kLeast = 64 * kKB;

void fill(void* memory, std::size_t bytes) { std::memset(memory, 7, bytes); }

}  // namespace

TEST(memory_is_aligned_and_as_large_as_asked) {
  ScratchPool pool(kLeast, 4 * kMB);
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, 63 * kKB, 64 * kKB, 100 * kKB, 3 * kMB, 5 * kMB}) {
    for (int again = 0; again < 2; ++again) {
      void* memory = pool.take(bytes);
      CHECK(reinterpret_cast<std::uintptr_t>(memory) % 64 == 0, std::to_string(bytes));
      fill(memory, bytes);
      pool.give(memory);
    }
  }
}

TEST(what_was_given_is_taken_again) {
  ScratchPool pool(kLeast, 4 * kMB);
  void* const first = pool.take(kMB);
  void* const second = pool.take(kMB);
  CHECK(first != second, "two at a time");
  pool.give(first);
  pool.give(second);
  CHECK(pool.kept() == 2 * kMB, "both are kept");
  CHECK(pool.take(kMB - 5) == second, "the last one given");
  CHECK(pool.take(kMB / 2) == first, "half of it is enough");
  CHECK(pool.kept() == 0, "none is left");
  pool.give(first);
  void* const small = pool.take(kMB / 2 - 1);
  CHECK(small != first, "less than half would waste it");
  void* const large = pool.take(kMB + 1);
  CHECK(large != first, "too small");
  for (void* memory : {second, small, large}) pool.give(memory);
}

TEST(no_more_is_kept_than_allowed) {
  ScratchPool pool(kLeast, 2 * kMB);
  std::vector<void*> all;
  for (int i = 0; i < 5; ++i) all.push_back(pool.take(800 * kKB));
  for (void* memory : all) pool.give(memory);
  CHECK(pool.kept() == 1600 * kKB, "the last two");
  CHECK(pool.take(800 * kKB) == all[4] && pool.take(800 * kKB) == all[3], "the last two");
  pool.give(all[3]);
  pool.give(all[4]);
  pool.give(pool.take(3 * kMB));
  CHECK(pool.kept() == 1600 * kKB, "what is too large frees no others");
  pool.give(pool.take(10 * kKB));
  CHECK(pool.kept() == 1600 * kKB, "what is small is left to the allocator");
  ScratchPool none(kLeast, 0);
  none.give(none.take(kMB));
  CHECK(none.kept() == 0, "nothing");
}

TEST(a_thread_gets_its_own_first) {
  ScratchPool pool(kLeast, 8 * kMB);
  void* const mine = pool.take(kMB);
  pool.give(mine);
  void* theirs = nullptr;
  std::thread([&] {
    theirs = pool.take(2 * kMB);  // too large for mine
    pool.give(theirs);
  }).join();
  CHECK(pool.take(kMB) == mine, "although the other's was given last");
  CHECK(pool.take(kMB) == theirs, "the other's, where it has none");
  std::thread([&] { pool.give(mine); }).join();
  pool.give(theirs);
  CHECK(pool.take(kMB) == theirs, "whose it is is who gave it last");
  pool.give(theirs);
}

TEST(threads_never_share) {
  ScratchPool pool(kLeast, kMB);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned char t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 300; ++i) {
        const std::size_t bytes = 64 * kKB + i * t % 7 * 30 * kKB;
        auto* const memory = static_cast<unsigned char*>(pool.take(bytes));
        for (std::size_t at = 0; at < bytes; at += 4 * kKB) memory[at] = t;
        std::this_thread::yield();
        for (std::size_t at = 0; at < bytes; at += 4 * kKB) wrong += memory[at] != t;
        pool.give(memory);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0, std::to_string(wrong));
  CHECK(pool.kept() <= kMB, std::to_string(pool.kept()));
}

#if defined(__unix__) && !defined(__SANITIZE_THREAD__)  // which does not let a process of several threads fork
TEST(a_forked_process_goes_on) {
  ScratchPool pool(kLeast, 8 * kMB);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) pool.give(pool.take(kMB));
  });
  int failed = 0;
  for (int i = 0; i < 50; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      for (int again = 0; again < 3; ++again) {
        void* memory = pool.take(kMB);
        fill(memory, kMB);
        pool.give(memory);
      }
      _exit(0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  stop = true;
  busy.join();
  CHECK(failed == 0, std::to_string(failed));
}
#endif

int main() { return check::run_tests(); }
