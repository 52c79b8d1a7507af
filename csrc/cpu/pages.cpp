#include "pages.h"

#include <cstdint>

#include "parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace eigendamage::cpu {
namespace {

constexpr std::uintptr_t kPage = 1 << 21;

/// The whole huge pages in some memory.
struct Pages {
  Pages(void* begin, std::size_t bytes)
      : first((reinterpret_cast<std::uintptr_t>(begin) + kPage - 1) / kPage),
        last((reinterpret_cast<std::uintptr_t>(begin) + bytes) / kPage) {}
  std::uintptr_t first, last;
};

}  // namespace

void use_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  const Pages pages(begin, bytes);
  if (pages.first >= pages.last) return;
  madvise(reinterpret_cast<void*>(pages.first * kPage), (pages.last - pages.first) * kPage,
          MADV_HUGEPAGE);  // refused, it is as it was
#endif
}

void populate([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes,
              [[maybe_unused]] const ParallelFor& parallel_for) {
#ifdef MADV_HUGEPAGE
  constexpr int populate_write = 23;  // of Linux 5.14, unknown to older headers
  const Pages pages(begin, bytes);
  if (pages.first >= pages.last) return;
  for_each(parallel_for, static_cast<std::int64_t>(pages.last - pages.first), [&](std::int64_t i) {
    madvise(reinterpret_cast<void*>((pages.first + static_cast<std::uintptr_t>(i)) * kPage), kPage, populate_write);
  });
#endif
}

}  // namespace eigendamage::cpu
