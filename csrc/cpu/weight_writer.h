#pragma once

#include <compare>
#include <cstdint>
#include <vector>

#include "../lag_form/plan.h"
#include "squares.h"

namespace eigendamage::cpu {

/// Panel i of g against panel j of x.
struct WeightPair {
  std::int64_t bundle, i, j;
  auto operator<=>(const WeightPair&) const = default;
};

/// Puts sums of squares where the weight's entries are.
template <class T>
class WeightWriter {
 public:
  explicit WeightWriter(const Layer<T>& layer);

  /// What of a weight is written together: some rows of panel i of g, against some panels of x, under some kernel offsets.
  struct Part {
    std::int64_t bundle, i;
    Range rows, panels, offsets;
  };

  /// out += alpha·sums; `first` applies beta before. sums (rows, 2·lanes) are for the first panel and offset, those for the
  /// next ones `panel` and `offset` after them. A row is written as a whole, since memory likes long runs.
  void write(const Part& part, const T* sums, std::int64_t panel, std::int64_t offset, bool first) const;

  /// Fetches what `write` will change.
  void fetch(const Part& part) const;

 private:
  const Layer<T>& l_;
  const std::int64_t offsets_;
  std::vector<std::int64_t> places_;  ///< of a row of `out`, by channel of x and kernel offset
  bool contiguous_ = true;            ///< they are, in this order
};

}  // namespace eigendamage::cpu
