#include "names.h"

#include <unistd.h>

#include <cstdio>
#include <sstream>

extern "C" const char __executable_start;

namespace cuda_on_cpu {
namespace {

/// What addr2line says, which every g++ comes with: unlike dladdr it knows functions that are not exported.
std::string ask(const char* options, std::uint32_t offset) {
  char path[4096] = {};
  if (readlink("/proc/self/exe", path, sizeof path - 1) < 0) return "?";
  std::ostringstream command;
  command << "addr2line " << options << " '" << path << "' " << std::hex << offset;
  FILE* const pipe = popen(command.str().c_str(), "r");
  if (!pipe) return "?";
  char line[1024] = {};
  const bool known = std::fgets(line, sizeof line, pipe) != nullptr;
  pclose(pipe);
  const std::string answer = known ? line : "?";
  return answer.substr(0, answer.find_first_of("\n"));
}

}  // namespace

std::uint32_t program_offset(const void* instruction) {
  return static_cast<std::uint32_t>(static_cast<const char*>(instruction) - &__executable_start);
}

std::string kernel_name(const void* function) { return ask("-Cfe", program_offset(function)); }

std::string source_line(std::uint32_t offset) {
  const std::string line = ask("-e", offset - 1);
  return line.substr(line.rfind('/') + 1);
}

}  // namespace cuda_on_cpu
