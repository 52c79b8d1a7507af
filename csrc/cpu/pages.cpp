#include "pages.h"

#include <algorithm>
#include <cstdint>

#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace eigendamage::cpu {
namespace {

constexpr std::uintptr_t kPage = 1 << 12, kHugePage = 1 << 21;

}  // namespace

void use_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t from = (first + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t to = (first + bytes) / kHugePage * kHugePage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // refused, it is as it was
#endif
}

void populate([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes,
              [[maybe_unused]] const ParallelFor& parallel_for) {
#ifdef MADV_HUGEPAGE
  constexpr int populate_write = 23;  // of Linux 5.14, unknown to older headers
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t from = (first + kPage - 1) / kPage * kPage, to = (first + bytes) / kPage * kPage;
  if (from >= to) return;
  const std::uintptr_t huge = from / kHugePage;
  for_each(parallel_for, static_cast<std::int64_t>((to - 1) / kHugePage - huge + 1), [&](std::int64_t i) {
    const std::uintptr_t here = (huge + static_cast<std::uintptr_t>(i)) * kHugePage;
    const std::uintptr_t start = std::max(from, here), end = std::min(to, here + kHugePage);
    madvise(reinterpret_cast<void*>(start), end - start, populate_write);
  });
#endif
}

}  // namespace eigendamage::cpu
