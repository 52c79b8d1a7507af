#include "output.h"

#include <algorithm>

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kMaxWidth = 32;
constexpr std::int64_t kMirrorBlock = 16;

/// to[c][r] = from[r][c], in blocks that stay in the cache.
template <class T>
void transpose(const T* from, T* to, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t r0 = 0; r0 < rows; r0 += kMirrorBlock) {
    for (std::int64_t c0 = 0; c0 < columns; c0 += kMirrorBlock) {
      const std::int64_t r1 = std::min(rows, r0 + kMirrorBlock), c1 = std::min(columns, c0 + kMirrorBlock);
      for (std::int64_t c = c0; c < c1; ++c) {
        for (std::int64_t r = r0; r < r1; ++r) to[c * stride + r] = from[r * stride + c];
      }
    }
  }
}

}  // namespace

template <class T>
T OutputWriter<T>::updated(T old, T sum, bool first) const {
  const T gain = static_cast<T>(update_.alpha) * sum;
  return first ? static_cast<T>(update_.beta) * old + gain : old + gain;
}

template <class T>
void OutputWriter<T>::add(const PanelPair& pair, const Range& groups, const Tiles<T>& tiles, const Range& rows,
                          bool first) const {
  const std::int64_t width = tiling_.width, channels = tiling_.channels, kernel = plan_.offsets;
  const std::int64_t constant = tiling_.constant_place(pair.bundle, pair.j);
  const bool overwrite = first && update_.beta == 0;
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const std::int64_t bundle_group = (pair.i * width + r) / channels;
    const std::int64_t group = pair.bundle * tiling_.bundle_groups + bundle_group;
    const std::int64_t channel = pair.i * width + r - bundle_group * channels;
    const std::int64_t origin = bundle_group * channels - pair.j * width;  // of the group's channels in panel j
    const std::int64_t end = std::clamp<std::int64_t>(origin + channels, 0, width);
    for (std::int64_t g = groups.begin; g < groups.end; ++g) {
      const bool zero_lag = plan_.zero_lag.begin <= g && g < plan_.zero_lag.end;
      const std::int64_t begin = std::max<std::int64_t>(pair.i == pair.j && zero_lag ? r : 0, origin);
      const Range blocks = plan_.groups[static_cast<std::size_t>(g)].blocks;
      for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
        const Block& block = plan_.blocks[static_cast<std::size_t>(b)];
        T sum[kMaxWidth] = {};
        for (std::int64_t t = block.terms.begin; t < block.terms.end; ++t) {
          const Term& term = plan_.terms[static_cast<std::size_t>(t)];
          const T* tile = tiles[term.slot] + r * width;
          const T weight = static_cast<T>(term.weight);
          for (std::int64_t c = 0; c < width; ++c) sum[c] += weight * tile[c];
        }
        T* entries = row(group, channel * kernel + block.k1);
        T* entry = entries + block.k2 - origin * kernel;
        for (std::int64_t c = begin; c < end; ++c) {
          T& e = entry[c * kernel];
          e = updated(overwrite ? T(0) : e, sum[c], first);
        }
        if (constant >= 0 && zero_lag) {
          T& e = entries[out_.size - 1];
          e = updated(overwrite ? T(0) : e, sum[constant], first);
        }
      }
    }
  }
}

template <class T>
void OutputWriter<T>::write_corner(double count) const {
  for (std::int64_t group = 0; group < out_.groups; ++group) {
    T& e = row(group, out_.size - 1)[out_.size - 1];
    e = updated(update_.beta == 0 ? T(0) : e, static_cast<T>(count), true);
  }
}

template <class T>
void OutputWriter<T>::mirror(const PanelPair& pair) const {
  const std::int64_t kernel = plan_.offsets, size = tiling_.channels * kernel, panel = tiling_.width * kernel;
  const std::int64_t first = pair.bundle * tiling_.bundle_groups;
  for (std::int64_t group = first; group < std::min(tiling_.groups, first + tiling_.bundle_groups); ++group) {
    const std::int64_t row0 = pair.i * panel, rows = std::min(panel, size - row0);
    const std::int64_t column0 = pair.j * panel, columns = std::min(panel, size - column0);
    if (pair.i < pair.j) {
      transpose(row(group, row0) + column0, row(group, column0) + row0, out_.row_stride, rows, columns);
    } else {
      for (std::int64_t r = row0; r < row0 + rows; ++r) {
        for (std::int64_t c = row0; c < row0 + rows; ++c) {
          const std::int64_t k1 = r % kernel, k2 = c % kernel;
          if (k1 > k2 || (k1 == k2 && r > c)) row(group, r)[c] = row(group, c)[r];
        }
      }
    }
    if (tiling_.constant && pair.i == pair.j) {
      for (std::int64_t r = row0; r < row0 + rows; ++r) row(group, size)[r] = row(group, r)[size];
    }
  }
}

template class OutputWriter<float>;
template class OutputWriter<double>;

}  // namespace eigendamage::cpu
