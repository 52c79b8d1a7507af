#pragma once

#include <cstddef>

#include "../kernels.h"

namespace eigendamage::cpu {

/// Asks for huge pages under memory that is about to be written for the first time: every page that a large result touches
/// costs a fault, and they are what takes longest. Does nothing where memory is small or the system has no such call.
void use_huge_pages(void* begin, std::size_t bytes);

/// Has all threads clear the pages of such memory now: one that comes upon them while it writes would keep others waiting.
void populate(void* begin, std::size_t bytes, const ParallelFor& parallel_for);

}  // namespace eigendamage::cpu
