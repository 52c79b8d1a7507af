#include "pages.h"

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace eigendamage::cpu {

void use_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kPage = 1 << 21;
  const auto first = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t from = (first + kPage - 1) / kPage * kPage, to = (first + bytes) / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // refused, it is as it was
#endif
}

}  // namespace eigendamage::cpu
