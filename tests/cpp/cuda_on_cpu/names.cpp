#include "names.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <sstream>

namespace cuda_on_cpu {

// Kernels are often in nameless namespaces, which dladdr does not see: addr2line, which every g++ comes with, does.
std::string kernel_name(const void* function) {
  Dl_info program{};
  char path[4096] = {};
  if (!dladdr(function, &program) || readlink("/proc/self/exe", path, sizeof path - 1) < 0) return "?";
  const auto offset = reinterpret_cast<std::uintptr_t>(function) - reinterpret_cast<std::uintptr_t>(program.dli_fbase);
  std::ostringstream command;
  command << "addr2line -Cfe '" << path << "' " << std::hex << offset;
  FILE* const pipe = popen(command.str().c_str(), "r");
  if (!pipe) return "?";
  char line[512] = {};
  const bool known = std::fgets(line, sizeof line, pipe) != nullptr;
  pclose(pipe);
  std::string name = known ? line : "?";
  return name.substr(0, name.find_last_not_of("\n") + 1);
}

}  // namespace cuda_on_cpu
