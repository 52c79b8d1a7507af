#pragma once

#include <cstdint>
#include <vector>

#include "../views.h"

namespace eigendamage::cpu {

/// `count` consecutive positions of a panel.
struct Run {
  std::int64_t position, count;
};

/// The inner loops, once per instruction set. A panel holds `width` channels, one or two vectors of them, of every
/// position: panel[position·width + channel], aligned to 64 bytes. T is float or double.
template <class T>
struct PanelKernels {
  std::int64_t lanes;      ///< T's in a vector
  std::int64_t min_width;  ///< the narrowest panel `gram` takes: lanes or 2·lanes

  /// tile[r·width + c] += Σ_p a[p·width + r] · b[p·width + c] over the positions p of the runs, for r < rows, c < columns;
  /// with `upper` only where r ≤ c. The rest of the tile (width, width) holds rubbish afterwards. All of the runs are
  /// summed in registers: keep them to a few hundred positions.
  void (*gram)(const T* a, const T* b, std::int64_t width, const Run* runs, std::int64_t run_count, std::int64_t rows,
               std::int64_t columns, bool upper, T* tile);

  /// out[p·stride + c] = lines[c][p], c < lanes, p < count; a null line stands for zeros.
  void (*interleave)(const T* const* lines, std::int64_t count, std::int64_t stride, T* out);

  /// out[p·stride + c] = pixels[p·step + c], c < channels ≤ width, and 0 up to `width`; step and channels count scalars of
  /// `type`.
  void (*copy_pixels)(const void* pixels, ScalarType type, std::int64_t step, std::int64_t count, std::int64_t channels,
                      std::int64_t width, std::int64_t stride, T* out);

  /// line[p] = in[p·step] for p < count.
  void (*widen)(const void* in, ScalarType type, std::int64_t step, std::int64_t count, T* line);
};

struct InstructionSet {
  const char* name;
  PanelKernels<float> single;
  PanelKernels<double> twice;
};

extern const InstructionSet kGeneric;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EIGENDAMAGE_X86_LEVELS 1
extern const InstructionSet kX86V2, kX86V3, kX86V4;
#endif

/// The sets that this CPU can run, best first; the last one is kGeneric.
std::vector<const InstructionSet*> supported_instruction_sets();

/// The set that the kernels use: the best one, or the one named by EIGENDAMAGE_SIMD (v2, v3, v4, generic). Chosen once.
/// Throws std::runtime_error while the variable names a set that is unknown or that this CPU lacks.
const InstructionSet& instruction_set();

/// Replaces the choice. For tests; not thread-safe.
void force_instruction_set(const InstructionSet& set);

}  // namespace eigendamage::cpu
