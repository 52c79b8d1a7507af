#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../kernels.h"
#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// Panels i ≤ j of a bundle; their sums are tiles, rows of panel i by columns of panel j.
struct PanelPair {
  std::int64_t bundle, i, j;
};

/// All pairs but those whose rows are the constant alone.
struct PanelPairs {
  std::vector<PanelPair> list;
  std::vector<Range> blocks;  ///< of the list: a few panels against a few others, which stay in a cache meanwhile
  std::int64_t few;           ///< how many
};

/// Panels against themselves come last: half their lags mirror the others, and threads end together on less work.
PanelPairs panel_pairs(const Tiling& tiling);

/// Channels `rows` of panel i, perhaps the whole of it, against panel j.
struct Strip {
  PanelPair pair;
  Range rows;
  bool whole;
};

/// Puts the sums of slots together to the blocks of the output. Rows of panel i are written against panel j ≥ i; of i = j
/// only entries with k1 < k2, or k1 = k2 and c ≤ c', are right. The mirrors make all others equal to those; the constant's
/// column is mirrored at once.
template <class T>
class OutputWriter {
 public:
  OutputWriter(const PanelKernels<T>& simd, const Plan& plan, const Tiling& tiling, const Update& update,
               const FactorView& out, std::int64_t around, const ParallelFor& parallel_for);

  /// Adds alpha times the blocks to a strip; `first` applies beta before, `last` mirrors it, unless it is a part of a panel
  /// against itself. sums (slots, rows, width), a slot `slot_size` after the one before; slots of negative lag are not
  /// read for i = j.
  void write(const Strip& strip, const T* sums, std::int64_t slot_size, bool first, bool last) const;

  /// The constant against itself, whose sum is `count`.
  void write_corner(double count) const;

  /// Mirrors every panel against itself.
  void mirror_diagonals(const std::vector<PanelPair>& pairs, const ParallelFor& parallel_for) const;

  /// Writes whole panels, mirrored, by all threads: in parts where pairs are few and large. sums(i, rows) makes those of
  /// rows of strips[i], and returns where they begin; slots are `slot_size` apart.
  void write_all(const std::vector<Strip>& strips, std::int64_t slot_size, const ParallelFor& parallel_for,
                 const std::function<const T*(std::int64_t strip, const Range& rows)>& sums) const;

 private:
  T* row(std::int64_t group, std::int64_t index) const {
    return static_cast<T*>(out_.data) + group * out_.group_stride + index * out_.row_stride;
  }
  void add(const PanelPair& pair, const Range& rows, const T* sums, std::int64_t slot_size, double beta) const;
  void combine(const T* sums, std::int64_t k1, const Range& offsets, std::int64_t slot_size, T* entries) const;
  bool write_around(const Strip& strip, const T* sums, std::int64_t slot_size) const;
  void mirror(const PanelPair& pair, const Range& rows) const;
  void mirror_diagonal(const PanelPair& pair, const Range& lines) const;
  bool is_one_sum(const PanelPair& pair) const;
  void add_one_sum(const PanelPair& pair, const Range& rows, const T* sums, double beta) const;
  void transpose(const T* from, T* to, std::int64_t rows, std::int64_t columns, std::int64_t to_stride) const;

  const PanelKernels<T>& simd_;
  const Plan& plan_;
  const Tiling& tiling_;
  const Update update_;
  const FactorView out_;
  std::vector<T> ranks_;  ///< of a panel's lines: line r is right in those of no lower rank
  bool around_ = false;   ///< whether strips of whole vectors go around the caches
};

}  // namespace eigendamage::cpu
