// What this machine gives at most: multiply-adds from registers, and memory read, written and copied.
// probes.py compiles it for the CPU at hand and calls it through ctypes.

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kChains = 16;
#elif defined(__AVX__)
constexpr int kBytes = 32, kChains = 12;
#else
constexpr int kBytes = 16, kChains = 12;
#endif

volatile double sink;

/// Keeps the calling thread on the CPU of its number: threads this short-lived would often share one.
void stay(int thread) {
#ifdef __linux__
  cpu_set_t allowed, one;
  CPU_ZERO(&one);
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed) != 0) return;
  int left = thread % std::max(1, CPU_COUNT(&allowed));
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed) && left-- == 0) CPU_SET(cpu, &one);
  }
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
#else
  (void)thread;
#endif
}

/// Seconds from the moment all threads are ready until the last is done with work(thread).
double seconds(int threads, const std::function<void(int)>& work) {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(threads)), end(begin);
  std::barrier ready(threads);
  const auto run = [&](int thread) {
    stay(thread);
    ready.arrive_and_wait();
    begin[static_cast<std::size_t>(thread)] = Clock::now();
    work(thread);
    end[static_cast<std::size_t>(thread)] = Clock::now();
  };
  std::vector<std::thread> team;
  for (int thread = 0; thread < threads; ++thread) team.emplace_back(run, thread);
  for (std::thread& member : team) member.join();
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

/// Independent chains of x ← a·x + b, as many as registers hold: enough to fill the units whatever an operation's latency.
template <class T>
void multiply_add(std::int64_t rounds) {
  typedef T Vector __attribute__((vector_size(kBytes)));
  Vector x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = Vector{} + static_cast<T>(i);
  Vector a = Vector{} + static_cast<T>(0.5), b = Vector{} + static_cast<T>(1);
  asm volatile("" : "+m"(a), "+m"(b));
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kChains; ++i) x[i] = a * x[i] + b;
  }
  for (int i = 1; i < kChains; ++i) x[0] += x[i];
  sink = static_cast<double>(x[0][0]);
}

template <class T>
double multiply_add_rate(int threads, std::int64_t rounds) {
  const double operations = 2.0 * static_cast<double>(rounds) * kChains * (kBytes / sizeof(T)) * threads;
  return operations / seconds(threads, [&](int) { multiply_add<T>(rounds); });
}

double sum(const std::int64_t* data, std::int64_t count) {
  typedef std::int64_t Vector __attribute__((vector_size(kBytes), aligned(8)));
  constexpr std::int64_t kLanes = kBytes / 8, kStep = 4 * kLanes;
  Vector total[4] = {};
  for (std::int64_t i = 0; i + kStep <= count; i += kStep) {
    for (int part = 0; part < 4; ++part) total[part] += *reinterpret_cast<const Vector*>(data + i + part * kLanes);
  }
  return static_cast<double>((total[0] + total[1] + total[2] + total[3])[0]);
}

}  // namespace

extern "C" {

/// Floating-point operations per second, two for a multiply-add.
double float_rate(int threads, std::int64_t rounds) { return multiply_add_rate<float>(threads, rounds); }
double double_rate(int threads, std::int64_t rounds) { return multiply_add_rate<double>(threads, rounds); }

/// Bytes per second from, into and between buffers of `bytes` each, which the threads share evenly. A copied byte counts
/// once.
double read_rate(int threads, const char* from, std::int64_t bytes) {
  const std::int64_t share = bytes / threads / 64 * 64;
  const auto work = [&](int t) { sink = sum(reinterpret_cast<const std::int64_t*>(from + t * share), share / 8); };
  return static_cast<double>(threads * share) / seconds(threads, work);
}

double write_rate(int threads, char* to, std::int64_t bytes) {
  const std::int64_t share = bytes / threads / 64 * 64;
  const auto work = [&](int t) { std::memset(to + t * share, t, static_cast<std::size_t>(share)); };
  return static_cast<double>(threads * share) / seconds(threads, work);
}

double copy_rate(int threads, const char* from, char* to, std::int64_t bytes) {
  const std::int64_t share = bytes / threads / 64 * 64;
  const auto work = [&](int t) { std::memcpy(to + t * share, from + t * share, static_cast<std::size_t>(share)); };
  return static_cast<double>(threads * share) / seconds(threads, work);
}
}
