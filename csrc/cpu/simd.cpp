#include "simd.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if EIGENDAMAGE_X86_LEVELS && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace eigendamage::cpu {
namespace {

std::atomic<const InstructionSet*> chosen{nullptr};

#if EIGENDAMAGE_X86_LEVELS && defined(__linux__)
/// Whether the CPU has them and the system saves their registers, which it does for a process that has asked for it.
bool has_matrix_units() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & bf16) && (d & tile) &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

const InstructionSet& x86_v4_with_matrix_units() {
  static const InstructionSet set = [] {
    InstructionSet amx = kX86V4;
    amx.name = "amx";
    amx.single_precision.tiles = &kAmxTiles;
    return amx;
  }();
  return set;
}
#endif

const InstructionSet& choose() {
  const std::vector<const InstructionSet*> sets = supported_instruction_sets();
  const char* name = std::getenv("EIGENDAMAGE_SIMD");
  if (name == nullptr || *name == '\0') return *sets.front();
  std::string names;
  for (const InstructionSet* set : sets) {
    if (std::string(set->name) == name) return *set;
    names += (names.empty() ? "" : ", ") + std::string(set->name);
  }
  throw std::runtime_error("EIGENDAMAGE_SIMD must name an instruction set of this CPU (" + names + "), got " + name +
                           "; unset it for the best one");
}

}  // namespace

std::vector<const InstructionSet*> supported_instruction_sets() {
  std::vector<const InstructionSet*> sets;
#if EIGENDAMAGE_X86_LEVELS
#ifdef __linux__
  static const bool amx = __builtin_cpu_supports("x86-64-v4") && has_matrix_units();
  if (amx) sets.push_back(&x86_v4_with_matrix_units());
#endif
  if (__builtin_cpu_supports("x86-64-v4")) sets.push_back(&kX86V4);
  if (__builtin_cpu_supports("x86-64-v3")) sets.push_back(&kX86V3);
  if (__builtin_cpu_supports("x86-64-v2")) sets.push_back(&kX86V2);
#endif
  sets.push_back(&kGeneric);
  return sets;
}

const InstructionSet& instruction_set() {
  const InstructionSet* set = chosen.load(std::memory_order_acquire);
  if (set == nullptr) {
    set = &choose();
    chosen.store(set, std::memory_order_release);
  }
  return *set;
}

void force_instruction_set(const InstructionSet& set) { chosen.store(&set, std::memory_order_release); }

}  // namespace eigendamage::cpu
