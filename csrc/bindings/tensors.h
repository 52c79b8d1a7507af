#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../views.h"

namespace eigendamage::bindings {

inline ScalarType scalar_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return ScalarType::kFloat32;
    case at::kDouble: return ScalarType::kFloat64;
    case at::kBFloat16: return ScalarType::kBFloat16;
    case at::kHalf: return ScalarType::kFloat16;
    default: throw std::invalid_argument("tensors must be float32, float64, bfloat16 or float16");
  }
}

/// x (N, C, H, W).
inline ImageView image_view(const at::Tensor& x) {
  if (x.dim() != 4) throw std::invalid_argument("x must be 4-D (N, C, H, W)");
  return {x.const_data_ptr(), scalar_type(x), x.size(0),   x.size(1),   x.size(2),
          x.size(3),          x.stride(0),    x.stride(1), x.stride(2), x.stride(3)};
}

/// x (N, F) or (N, T, F) as images (N, F, 1, T).
inline ImageView features_view(const at::Tensor& x) {
  const bool one = x.dim() == 2;
  return {x.const_data_ptr(),  scalar_type(x), x.size(0),    x.size(-1),  1,
          one ? 1 : x.size(1), x.stride(0),    x.stride(-1), x.stride(0), one ? 1 : x.stride(1)};
}

/// The rows of x (…, F, …) as the pixels of images (N, F, H, W); none where it takes more than three strides to walk over
/// them.
inline std::optional<ImageView> rows_view(const at::Tensor& x, std::int64_t feature_dim) {
  using Dim = std::pair<std::int64_t, std::int64_t>;  // stride, size
  const Dim feature{x.stride(feature_dim), x.size(feature_dim)}, single{0, 1};
  std::vector<Dim> dims;
  for (std::int64_t i = 0; i < x.dim(); ++i) {
    if (i != feature_dim && x.size(i) != 1) dims.emplace_back(x.stride(i), x.size(i));
  }
  std::sort(dims.begin(), dims.end(), std::greater<>());
  std::vector<Dim> rows;  // outermost first; what continues its neighbour joins it
  for (const auto& [stride, size] : dims) {
    if (!rows.empty() && rows.back().first == size * stride) {
      rows.back() = {stride, rows.back().second * size};
    } else {
      rows.emplace_back(stride, size);
    }
  }
  if (rows.size() > 3 && x.numel() > 0) return {};
  if (x.numel() == 0) rows = {{0, 0}, single, single};
  if (rows.size() == 2) rows.insert(rows.begin() + 1, single);
  if (rows.size() == 1 && rows[0].first >= feature.first) rows.resize(3, single);  // a batch of single pixels
  rows.insert(rows.begin(), 3 - rows.size(), single);
  return ImageView{x.const_data_ptr(), scalar_type(x), rows[0].second, feature.second, rows[1].second,
                   rows[2].second,     rows[0].first,  feature.first,  rows[1].first,  rows[2].first};
}

/// out (g, F, F), or (F, F) for one group, with contiguous rows.
inline FactorView factor_view(const at::Tensor& out) {
  const bool one = out.dim() == 2;
  return {out.mutable_data_ptr(), scalar_type(out),        one ? 1 : out.size(0),
          out.size(-1),           one ? 0 : out.stride(0), out.stride(-2)};
}

/// out (O, C/g, kh, kw) with any strides.
inline WeightView weight_view(const at::Tensor& out) {
  return {out.mutable_data_ptr(), scalar_type(out), out.size(0),   out.size(1),
          out.stride(0),          out.stride(1),    out.stride(2), out.stride(3)};
}

inline bool has_contiguous_rows(const at::Tensor& out) { return out.size(-1) == 1 || out.stride(-1) == 1; }

/// The first address of a tensor that is not empty, and the address behind its last element.
inline std::pair<std::uintptr_t, std::uintptr_t> address_range(const at::Tensor& tensor) {
  std::int64_t last = 0;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) last += (tensor.size(dim) - 1) * tensor.stride(dim);
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  return {begin, begin + (static_cast<std::uintptr_t>(last) + 1) * tensor.element_size()};
}

inline bool may_overlap(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !a.is_alias_of(b)) return false;
  const auto [a_begin, a_end] = address_range(a);
  const auto [b_begin, b_end] = address_range(b);
  return a_begin < b_end && b_begin < a_end;
}

/// Whether two elements of out may share an address: every stride must step over all that the smaller ones reach.
inline bool may_overlap_itself(const at::Tensor& out) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dims;  // stride, size
  for (std::int64_t i = 0; i < out.dim(); ++i) dims.emplace_back(out.stride(i), out.size(i));
  std::sort(dims.begin(), dims.end());
  std::int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (size > 1 && stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

}  // namespace eigendamage::bindings
