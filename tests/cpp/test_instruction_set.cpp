#include <cstdlib>
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/simd.h"

using namespace eigendamage;

namespace {

std::string refusal(const char* name) {
  setenv("EIGENDAMAGE_SIMD", name, 1);
  try {
    cpu::instruction_set();
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST(an_unknown_instruction_set_is_refused_by_name_until_the_variable_is_mended) {
  const std::string message = refusal("sse9");
  CHECK(message.find("sse9") != std::string::npos && message.find("generic") != std::string::npos, message);
  CHECK(refusal("V3") != "", "names are matched as they are");
  CHECK(refusal("generic") == "", "generic is everywhere");
  CHECK(std::string(cpu::instruction_set().name) == "generic", cpu::instruction_set().name);
}

TEST(the_best_set_comes_first_and_generic_last) {
  const auto sets = cpu::supported_instruction_sets();
  CHECK(sets.back() == &cpu::kGeneric, sets.back()->name);
  for (std::size_t i = 1; i < sets.size(); ++i)
    CHECK(sets[i - 1]->single_precision.lanes >= sets[i]->single_precision.lanes, sets[i]->name);
}

int main() { return check::run_tests(); }
