#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../lag_form/plan.h"
#include "panels.h"
#include "simd.h"

namespace eigendamage::cpu {

/// Panels i ≤ j of a bundle; their sums are tiles, rows of panel i by columns of panel j.
struct PanelPair {
  std::int64_t bundle, i, j;
};

/// Puts the sums of slots together to the blocks of the output. Rows of panel i are written against panel j ≥ i; of i = j
/// only entries with k1 < k2, or k1 = k2 and c ≤ c', are right. The mirrors make all others equal to those; the constant's
/// column is mirrored at once.
template <class T>
class OutputWriter {
 public:
  OutputWriter(const PanelKernels<T>& simd, const Plan& plan, const Tiling& tiling, const Update& update,
               const FactorView& out);

  /// Adds alpha times the blocks to channels `rows` of panel i; `first` applies beta before. sums (slots, rows, width), a
  /// slot `slot_size` after the one before; slots of negative lag are not read for i = j.
  void add(const PanelPair& pair, const Range& rows, const T* sums, std::int64_t slot_size, bool first) const;

  /// The constant against itself, whose sum is `count`.
  void write_corner(double count) const;

  /// Mirrors channels `rows` of panel i against those of panel j > i. (Several panels: the bundle is one group.)
  void mirror(const PanelPair& pair, const Range& rows) const;

  /// Mirrors panel i against itself.
  void mirror_diagonal(const PanelPair& pair) const;

 private:
  T* row(std::int64_t group, std::int64_t index) const {
    return static_cast<T*>(out_.data) + group * out_.group_stride + index * out_.row_stride;
  }
  bool is_one_sum(const PanelPair& pair) const;
  void add_one_sum(const PanelPair& pair, const Range& rows, const T* sums, double beta) const;
  void transpose(const T* from, T* to, std::int64_t rows, std::int64_t columns, std::int64_t to_stride) const;

  const PanelKernels<T>& simd_;
  const Plan& plan_;
  const Tiling& tiling_;
  const Update update_;
  const FactorView out_;
};

}  // namespace eigendamage::cpu
