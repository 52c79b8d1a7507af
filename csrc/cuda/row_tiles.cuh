#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace eigendamage::cuda {

constexpr int kPanel = 32, kTile = 2 * kPanel;  ///< rows; a warp multiplies panels, a block tiles of two

/// Rows first … first + count − 1 of all rows, those of one group after those of another.
struct Panel {
  std::int64_t first;
  int count;
};

/// Rows of tile i of a set against those of tile j ≥ i.
struct TilePair {
  std::int64_t set, i, j;
  __device__ bool diagonal() const { return i == j; }
};

/// How the rows of every group are laid into tiles, of which all pairs of a set are multiplied. A set is a group; where
/// groups are small, it is two panels of as many groups as fit, which have nothing to do with each other.
struct RowTiling {
  std::int64_t groups, rows;  ///< rows of one group
  std::int64_t bundle;        ///< groups in a panel, or 0
  std::int64_t tiles;         ///< of one set
  std::int64_t pairs;         ///< of all sets

  RowTiling(std::int64_t groups_, std::int64_t rows_) : groups(groups_), rows(rows_), bundle(0), tiles(1) {
    std::int64_t sets = groups;
    if (0 < rows && rows <= kPanel) {
      bundle = kPanel / rows;
      sets = (groups + 2 * bundle - 1) / (2 * bundle);
    } else {
      tiles = std::max<std::int64_t>(1, (rows + kTile - 1) / kTile);
    }
    pairs = sets * (tiles * (tiles + 1) / 2);
  }

  __device__ bool bundled() const { return bundle > 0; }
  /// From the first row of a panel to that of the next.
  __device__ std::int64_t panel_rows() const { return bundled() ? bundle * rows : kPanel; }

  __device__ TilePair pair(std::int64_t index) const {
    const std::int64_t of_set = tiles * (tiles + 1) / 2;
    TilePair pair{index / of_set, 0, index % of_set};
    for (std::int64_t left = tiles; pair.j >= left; --left) {
      pair.j -= left;
      ++pair.i;
    }
    pair.j += pair.i;
    return pair;
  }

  __device__ Panel panel(std::int64_t set, std::int64_t tile, int half) const {
    if (bundled()) {
      const std::int64_t group = (2 * set + half) * bundle;
      const std::int64_t count = min(max(groups - group, std::int64_t{0}), bundle);
      return {group * rows, static_cast<int>(count * rows)};
    }
    const std::int64_t row = tile * kTile + half * kPanel;
    const std::int64_t count = min(max(rows - row, std::int64_t{0}), std::int64_t{kPanel});
    return {set * rows + row, static_cast<int>(count)};
  }
};

}  // namespace eigendamage::cuda
