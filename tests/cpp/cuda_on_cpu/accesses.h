#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

/// Watches every access that a kernel makes to memory, where g++ has instrumented it (-fsanitize=thread, whose hooks are
/// in accesses.cpp). A fault is
///   - an access to a byte that another thread has accessed in the same launch, one of them writing, with no barrier
///     between: __syncthreads or __syncwarp in a block (shuffles and votes order nothing), none between blocks;
///   - a read of a byte of shared or device memory that nobody has written;
///   - an access to memory of the host.
namespace cuda_on_cpu {

struct Launch;

/// Who accessed a byte last, and where.
struct Access {
  std::uint32_t block = 0;  ///< counted over all launches; 0 for nobody, 1 for the host
  std::uint32_t code = 0;   ///< the instruction, from the program's beginning
  std::uint32_t clock = 0;
  std::uint16_t thread = 0;
  bool atomic = false;
};

/// Accesses to a byte, or to four that have only been accessed at once.
struct History {
  Access write;
  Access reads[2];  ///< the last, and one as far from it as there was: of another block, warp or lane
};

/// Four bytes of memory. Where it is not split the first has the history of all.
struct Word {
  History bytes[4];
  bool is_split = false;
};

bool watching();  ///< whether g++ has instrumented something

/// The machine says what happens.
void watch_launch(const Launch& launch);
void watch_block(const void* shared, std::size_t bytes);
void watch_block_barrier();
void watch_warp_barrier(unsigned warp, unsigned mask);
void watch_atomic(const void* address, std::size_t bytes);
void watch_thread(unsigned number);  ///< what it does until watch_nobody() is the kernel's
void watch_nobody();
void watch_host(Word* words, std::size_t offset, std::size_t bytes);  ///< writes; it does so between launches alone

}  // namespace cuda_on_cpu
