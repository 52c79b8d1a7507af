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

  /// out += alpha·sums of rows of panel i, under some kernel offsets; `first` applies beta before. sums (offsets, rows,
  /// 2·lanes), an offset's `tile` after those of the one before.
  void write(const WeightPair& pair, const Range& rows, const Range& offsets, const T* sums, std::int64_t tile,
             bool first) const;

 private:
  const Layer<T>& l_;
  const std::int64_t offsets_;
  std::vector<std::int64_t> places_;  ///< of a row of `out`, by channel of x and kernel offset
  bool contiguous_ = true;            ///< they are, in this order
};

}  // namespace eigendamage::cpu
