#include "weight_writer.h"

#include <algorithm>

namespace eigendamage::cpu {

template <class T>
WeightWriter<T>::WeightWriter(const Layer<T>& layer)
    : l_(layer), offsets_(layer.geometry.vertical.kernel * layer.geometry.horizontal.kernel) {
  for (std::int64_t c = 0; c < l_.x_tiling.channels; ++c) {
    for (std::int64_t k = 0; k < offsets_; ++k) {
      const std::int64_t offset = k + c % l_.entries;
      places_.push_back(c / l_.entries * l_.out.input_stride + offset / l_.kernel_width * l_.out.row_stride +
                        offset % l_.kernel_width * l_.out.column_stride);
      contiguous_ &= places_.back() == places_.front() + static_cast<std::int64_t>(places_.size()) - 1;
    }
  }
}

template <class T>
void WeightWriter<T>::write(const Part& part, const T* sums, std::int64_t panel, std::int64_t offset,
                            bool first) const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  const std::int64_t together = part.offsets.size(), lanes = l_.simd.lanes;
  const double alpha = l_.update.alpha, beta = first ? l_.update.beta : 1;
  std::vector<T> entries(static_cast<std::size_t>(x.width * together + lanes));  // of one row, in the order of `out`
  for (std::int64_t r = part.rows.begin; r < part.rows.end; ++r, sums += 2 * lanes) {
    const std::int64_t bundle_group = (part.i * g.width + r) / g.channels;
    const std::int64_t output = part.bundle * g.bundle_groups * g.channels + part.i * g.width + r;
    T* row = static_cast<T*>(l_.out.data) + output * l_.out.output_stride;
    for (std::int64_t j = part.panels.begin; j < part.panels.end; ++j) {
      const std::int64_t origin = bundle_group * x.channels - j * x.width;  // of the group's channels in panel j
      const std::int64_t begin = std::max<std::int64_t>(0, origin);
      const std::int64_t end = std::clamp<std::int64_t>(origin + x.channels, begin, x.width);
      const T* from = sums + (j - part.panels.begin) * panel + begin;
      // The last offsets first: where they do not fill a vector, it holds more than theirs, which the next channel replaces.
      for (std::int64_t k = (together - 1) / lanes * lanes; together > 1 && k >= 0; k -= lanes) {
        const T* lines[kMaxLanes] = {};
        for (std::int64_t i = 0; i < std::min(lanes, together - k); ++i) lines[i] = from + (k + i) * offset;
        l_.simd.interleave(lines, end - begin, together, nullptr, entries.data() + k);
      }
      if (together > 1) from = entries.data();
      const std::int64_t* place = places_.data() + (begin - origin) * offsets_ + part.offsets.begin;
      const std::int64_t count = (end - begin) * together;
      if (contiguous_ && together == offsets_ && count > 0) {
        l_.simd.update(row + *place, from, count, alpha, beta);
        continue;
      }
      const std::int64_t run = contiguous_ ? together : 1;
      for (std::int64_t i = 0; i < count; i += run) {
        T* to = row + place[i / together * offsets_ + i % together];
        l_.simd.update(to, from + i, run, alpha, beta);
      }
    }
  }
}

template <class T>
void WeightWriter<T>::fetch(const Part& part) const {
  const Tiling &x = l_.x_tiling, &g = l_.g_tiling;
  if (!contiguous_) return;
  for (std::int64_t r = part.rows.begin; r < part.rows.end; ++r) {
    const std::int64_t output = part.bundle * g.bundle_groups * g.channels + part.i * g.width + r;
    const T* row = static_cast<const T*>(l_.out.data) + output * l_.out.output_stride;
    const T* end = row + std::min(x.channels, part.panels.end * x.width);
    for (row += part.panels.begin * x.width; row < end; row += 64 / sizeof(T)) __builtin_prefetch(row, 1, 2);
  }
}

template class WeightWriter<float>;
template class WeightWriter<double>;

}  // namespace eigendamage::cpu
