#pragma once

#include <cstdint>
#include <string>

namespace cuda_on_cpu {

/// The demangled name of a function of this program.
std::string kernel_name(const void* function);

/// Where an instruction is in this program, and the line of source that the call before it is of.
std::uint32_t program_offset(const void* instruction);
std::string source_line(std::uint32_t program_offset);

}  // namespace cuda_on_cpu
