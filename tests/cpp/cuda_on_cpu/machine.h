#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

/// The machine that runs kernels: a fiber for every CUDA thread of a block, one block after another.
namespace cuda_on_cpu {

/// What a GPU would answer by a hang, a crash or a wrong number: thrown out of the launch, or by what ends the run.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// In which order blocks run, and which of the threads that could go on does so.
struct Schedule {
  enum class Order { kForward, kReverse, kRandom } order = Order::kForward;
  unsigned seed = 0;
};

/// The device, as tests set it. Limits are the smaller of sm_80's and sm_90's.
struct Device {
  int multiprocessors = 3;
  int capability = 8;            ///< the major number
  int shared_bytes = 163 << 10;  ///< a block's, where a kernel asks for more than 48 KB
  Schedule schedule;
};
Device& device();

using Location = std::source_location;

struct Index {
  unsigned x, y, z;
};

struct Launch {
  Index blocks, threads;
  std::size_t shared_bytes;
  const void* kernel;
  void (*body)(const void* parameters);
  const void* parameters;
  std::size_t parameter_bytes;
};

/// Runs every block to its end.
void run(const Launch& launch);

/// The running block's shared memory.
void* shared_memory();
/// Waits for all threads of the block; returns how many came with `predicate`.
int block_barrier(const char* name, bool predicate, const Location& where);
/// Waits for the lanes of `mask`, of which the last calls combine(lanes): for each of 32 what it came with, null for those
/// not in mask. A null combine orders accesses to memory, which others do not.
void warp_collective(const char* name, unsigned mask, void* mine, void (*combine)(void* const* lanes),
                     const Location& where);
/// Ends the run with a fault that names the kernel, the block and the running thread.
[[noreturn]] void fail(const char* what);
[[noreturn]] void fail(const std::string& what);
std::string describe_thread(unsigned number);
unsigned lane();
/// A number of the running thread, unique in the block.
unsigned thread_number();

}  // namespace cuda_on_cpu
