#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

#include "../kernels.h"

namespace eigendamage::cpu {

/// body(i) for every i < items; whichever thread is free takes the next one.
inline void for_each(const ParallelFor& parallel_for, std::int64_t items,
                     const std::function<void(std::int64_t)>& body) {
  std::atomic<std::int64_t> next{0};
  parallel_for(items, [&](std::int64_t, std::int64_t) {
    for (std::int64_t i = next++; i < items; i = next++) body(i);
  });
}

/// body(i, next) likewise, where `next` is the item that the same thread takes after i, or `items` where that is left open:
/// none is kept for later while another thread may have none.
inline void for_each_knowing_next(const ParallelFor& parallel_for, std::int64_t items,
                                  const std::function<void(std::int64_t, std::int64_t)>& body) {
  std::atomic<std::int64_t> taken{0};
  parallel_for(items, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t share = std::max<std::int64_t>(1, end - begin), threads = (items + share - 1) / share;
    for (std::int64_t i = taken++; i < items;) {
      const bool enough = items - taken.load() >= threads;
      const std::int64_t next = enough ? std::min<std::int64_t>(taken++, items) : items;
      body(i, next);
      i = next < items ? next : taken++;
    }
  });
}

}  // namespace eigendamage::cpu
