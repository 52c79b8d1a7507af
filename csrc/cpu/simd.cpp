#include "simd.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace eigendamage::cpu {
namespace {

std::atomic<const InstructionSet*> chosen{nullptr};

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
