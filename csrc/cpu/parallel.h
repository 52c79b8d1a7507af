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

/// body(i, next) likewise, where `next` is the item that the same thread takes after i, or `items`.
inline void for_each_knowing_next(const ParallelFor& parallel_for, std::int64_t items,
                                  const std::function<void(std::int64_t, std::int64_t)>& body) {
  std::atomic<std::int64_t> taken{0};
  parallel_for(items, [&](std::int64_t, std::int64_t) {
    for (std::int64_t i = taken++, next = 0; i < items; i = next) {
      next = std::min<std::int64_t>(taken++, items);
      body(i, next);
    }
  });
}

}  // namespace eigendamage::cpu
