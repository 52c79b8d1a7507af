#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "launch.cuh"

namespace eigendamage::cuda {

/// Bytes that travel as the parameter of a kernel: no copy from memory of the host, which may be gone when a stream or a
/// graph gets there.
template <int kWords>
struct TableChunk {
  std::uint32_t words[kWords];
};

/// A block owns a chunk, a thread every so-manieth word of it; the launch bounds it.
template <int kWords>
__global__ void copy_chunk_kernel(const __grid_constant__ TableChunk<kWords> chunk, std::uint32_t* to, int words) {
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) to[i] = chunk.words[i];
}

/// Lists for kernels to read, gathered on the host and sent together.
class Table {
 public:
  /// Where the list will lie from the table's begin.
  template <class Item>
  std::int64_t add(const std::vector<Item>& list) {
    const auto begin = static_cast<std::int64_t>(words_.size()) * 4;
    const std::size_t bytes = list.size() * sizeof(Item);
    words_.resize(words_.size() + (bytes + 7) / 8 * 2);
    if (bytes > 0) std::memcpy(reinterpret_cast<unsigned char*>(words_.data()) + begin, list.data(), bytes);
    return begin;
  }

  std::int64_t bytes() const { return static_cast<std::int64_t>(words_.size()) * 4; }

  void send(void* to, const Execution& run) const {
    const auto count = static_cast<std::int64_t>(words_.size());
    for (std::int64_t begin = 0; begin < count;) {
      const auto left = static_cast<int>(std::min<std::int64_t>(count - begin, 4000));
      auto* const words = static_cast<std::uint32_t*>(to) + begin;
      left <= 1000 ? send_chunk<1000>(begin, left, words, run) : send_chunk<4000>(begin, left, words, run);
      begin += left;
    }
  }

 private:
  template <int kWords>
  void send_chunk(std::int64_t begin, int words, std::uint32_t* to, const Execution& run) const {
    TableChunk<kWords> chunk;
    std::memcpy(chunk.words, words_.data() + begin, static_cast<std::size_t>(words) * 4);
    launch(copy_chunk_kernel<kWords>, {1, 256}, run, chunk, to, words);
  }

  std::vector<std::uint32_t> words_;
};

}  // namespace eigendamage::cuda
