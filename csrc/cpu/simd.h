#pragma once

#include <cstdint>
#include <vector>

#include "../lag_form/plan.h"
#include "../views.h"
#include "eigh/certificate.h"
#include "eigh/group.h"
#include "eigh/hybrid.h"
#include "eigh/lanes.h"
#include "eigh/triangle.h"
#include "gradients.h"
#include "spectral_kernels.h"
#include "tiles.h"

namespace eigendamage::cpu {

constexpr std::int64_t kMaxLanes = 16, kMaxWidth = 2 * kMaxLanes;

/// The positions `first` + i·step, i < count, of a panel.
struct Run {
  std::int64_t first, count, step;
};

/// Memory that is read next: a line of it is fetched with every position that is summed, as long as it lasts, so that memory
/// and multiply-adds do not wait for each other.
struct Ahead {
  const char *next = nullptr, *end = nullptr;
};

/// The inner loops, once per instruction set. A panel holds `width` channels, one or two vectors of them, of every
/// position: panel[position·width + channel], aligned to 64 bytes. T is float or double.
template <class T>
struct PanelKernels {
  std::int64_t lanes;      ///< T's in a vector
  std::int64_t tile_rows;  ///< of a panel's channels, as many as `gram` takes together
  std::int64_t min_width;  ///< of a panel: lanes, or 2·lanes where tile_rows would not fit

  /// tile = (fresh ? 0 : tile) + weight·sum, sum[(r − rows.begin)·width + c] = Σ_p a[p·width + r] · b[p·width + c] over the
  /// positions p of the runs, for r in `rows`, c < columns; with `upper` only where r ≤ c. Whole tile_rows and lanes are
  /// computed: the tile's other entries hold rubbish afterwards. rows.begin is a multiple of tile_rows. All runs are summed
  /// in registers: keep them to a few hundred positions.
  void (*gram)(const T* a, const T* b, std::int64_t width, const Run* runs, std::int64_t run_count, const Range& rows,
               std::int64_t columns, bool upper, T weight, bool fresh, T* tile, Ahead& ahead);

  /// total += part.
  void (*add)(T* total, const T* part, std::int64_t count);

  /// values = values², entry by entry.
  void (*square)(T* values, std::int64_t count);

  /// out[c·stride + k] = Σ row[terms[t]·slot_size + c] over t in blocks[k], for c < width, k < block_count ≤ stride.
  /// `out` has room for `lanes` numbers more; those between, and these, hold rubbish afterwards.
  void (*combine)(const T* row, const std::int64_t* terms, const Range* blocks, std::int64_t block_count,
                  std::int64_t slot_size, std::int64_t width, std::int64_t stride, T* out);

  /// entries = beta·entries + alpha·sums, in double: a float alpha would add its own rounding to every entry. beta = 0 never
  /// reads entries.
  void (*update)(T* entries, const T* sums, std::int64_t count, double alpha, double beta);

  /// out[place·stride + c] = lines[c][p], c < lanes, p < count; a null line stands for zeros. The place is places[p], or p
  /// where `places` is null.
  void (*interleave)(const T* const* lines, std::int64_t count, std::int64_t stride, const std::int32_t* places,
                     T* out);

  /// out[r·out_step + c] = mirror[c·out_step + r] = from[r·step + c], r < rows, c < columns, all multiples of `lanes` and
  /// both aligned to a vector. What is written is in no cache afterwards, nor is it read.
  void (*write_around)(const T* from, std::int64_t rows, std::int64_t columns, std::int64_t step, T* out, T* mirror,
                       std::int64_t out_step);

  /// entries[c·stride + r] = entries[r·stride + c] where ranks[r] ≤ ranks[c], else the other way round; r in `rows`, r ≤ c <
  /// size. Other rows may be mirrored meanwhile if rows.begin is a multiple of `lanes`, and rows.end too or `size`.
  void (*mirror)(T* entries, std::int64_t size, std::int64_t stride, const T* ranks, const Range& rows);

  /// out[p·stride + n·width + c] = from[p·step + n·image_step + offsets[c]] for p < positions, n < images, c < width.
  void (*gather)(const T* from, std::int64_t positions, std::int64_t step, std::int64_t images, std::int64_t image_step,
                 const std::int32_t* offsets, std::int64_t width, std::int64_t stride, T* out);

  /// out[place·stride + c] = pixels[p·step + c], c < channels ≤ width, and 0 up to `width`, places likewise; step and channels
  /// count scalars of `type`.
  void (*copy_pixels)(const void* pixels, ScalarType type, std::int64_t step, std::int64_t count, std::int64_t channels,
                      std::int64_t width, std::int64_t stride, const std::int32_t* places, T* out);

  /// line[p] = in[p·step] for p < count.
  void (*widen)(const void* in, ScalarType type, std::int64_t step, std::int64_t count, T* line);

  const TileKernels* tiles = nullptr;  ///< of floats; null where the CPU has no matrix units
};

struct InstructionSet {
  const char* name;
  PanelKernels<float> single_precision;
  PanelKernels<double> double_precision;
  GradientKernels<float> single_gradients;
  GradientKernels<double> double_gradients;
  SpectralKernels<float> single_spectral;
  SpectralKernels<double> double_spectral;
  EighKernels<float> single_eigh;
  EighKernels<double> double_eigh;
  GroupSolver<float> single_groups;
  GroupSolver<double> double_groups;
  LaneSolver<float> single_lanes;
  LaneSolver<double> double_lanes;
  Certificate<float> single_certificate;
  Certificate<double> double_certificate;
  TriangleReader<float> single_triangles;
  TriangleReader<double> double_triangles;
};

extern const InstructionSet kGeneric;
#if defined(__x86_64__) && __GNUC__ >= 12 && !defined(__clang__)
#define EIGENDAMAGE_X86_LEVELS 1
extern const InstructionSet kX86V2, kX86V3, kX86V4;
#ifdef __linux__
extern const TileKernels kAmxTiles;  ///< to go with kX86V4
#endif
#endif

/// The sets that this CPU can run, best first; the last one is kGeneric.
std::vector<const InstructionSet*> supported_instruction_sets();

/// The set that the kernels use: the best one, or the one named by EIGENDAMAGE_SIMD (generic, v2, v3, v4, amx). Chosen once.
/// Throws std::runtime_error while the variable names a set that is unknown or that this CPU lacks.
const InstructionSet& instruction_set();

/// Replaces the choice. For tests; not thread-safe.
void force_instruction_set(const InstructionSet& set);

}  // namespace eigendamage::cpu
