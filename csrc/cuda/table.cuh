#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "launch.cuh"

namespace eigendamage::cuda {

/// Bytes that travel as the parameter of a kernel: no copy from memory of the host, which may be gone when a stream or a
/// graph gets there.
struct TableChunk {
  static constexpr std::int64_t kWords = 4000;
  std::uint32_t words[kWords];
};

/// A block owns a chunk, a thread every so-manieth word of it; the launch bounds it.
static __global__ void copy_chunk_kernel(const __grid_constant__ TableChunk chunk, std::uint32_t* to, int words) {
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
    for (std::int64_t begin = 0; begin < count; begin += TableChunk::kWords) {
      TableChunk chunk;
      const std::int64_t words = std::min(TableChunk::kWords, count - begin);
      std::memcpy(chunk.words, words_.data() + begin, static_cast<std::size_t>(words) * 4);
      launch(copy_chunk_kernel, {1, 256}, run, chunk, static_cast<std::uint32_t*>(to) + begin, static_cast<int>(words));
    }
  }

 private:
  std::vector<std::uint32_t> words_;
};

}  // namespace eigendamage::cuda
