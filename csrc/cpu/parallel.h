#pragma once

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

}  // namespace eigendamage::cpu
