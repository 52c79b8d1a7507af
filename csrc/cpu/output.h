#pragma once

#include <cstdint>

#include "../kernels.h"
#include "panels.h"
#include "plan.h"

namespace eigendamage::cpu {

/// Panels i ≤ j of a bundle; their sums are tiles (width, width), rows of panel i by columns of panel j.
struct PanelPair {
  std::int64_t bundle, i, j;
};

/// One tile for every slot from `first_slot` on.
template <class T>
struct Tiles {
  T* data;
  std::int64_t first_slot, tile_size;

  T* operator[](std::int64_t slot) const { return data + (slot - first_slot) * tile_size; }
};

/// Puts tiles together to the blocks of the output. Written first are the entries of panel pairs i < j, and for i = j those
/// with k1 < k2, or k1 = k2 and c ≤ c'; mirror() makes the others equal to them.
template <class T>
class OutputWriter {
 public:
  OutputWriter(const Plan& plan, const Tiling& tiling, const Update& update, const FactorView& out)
      : plan_(plan), tiling_(tiling), update_(update), out_(out) {}

  /// Adds alpha times the blocks of `groups` to channels `rows` of panel i against panel j; `first` applies beta before.
  void add(const PanelPair& pair, const Range& groups, const Tiles<T>& tiles, const Range& rows, bool first) const;

  /// The constant against itself: the sum is `count`.
  void write_corner(double count) const;

  /// Mirrors channels of panel i against those of panel j in the matrices of a bundle.
  void mirror(const PanelPair& pair) const;

 private:
  T* row(std::int64_t group, std::int64_t index) const {
    return static_cast<T*>(out_.data) + group * out_.group_stride + index * out_.row_stride;
  }
  T updated(T old, T sum, bool first) const;

  const Plan& plan_;
  const Tiling& tiling_;
  const Update update_;
  const FactorView out_;
};

}  // namespace eigendamage::cpu
