#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../lag_form/plan.h"
#include "../views.h"
#include "scratch.h"
#include "simd.h"

namespace eigendamage::cpu {

/// How the channels of every group are laid into panels of `width` channels. Small groups may share the panel of a bundle,
/// and with `constant` the last channel of each bundle is the number 1.
struct Tiling {
  std::int64_t groups, channels;  ///< channels of one group, the constant not counted
  bool constant;
  std::int64_t bundle_groups, bundles;
  std::int64_t width, panels;  ///< panels of one bundle

  std::int64_t bundle_channels(std::int64_t bundle) const;  ///< real channels of a bundle
  /// Channels of a panel, the constant counted.
  std::int64_t panel_channels(std::int64_t bundle, std::int64_t panel) const;
  /// The constant's place in a panel, or -1.
  std::int64_t constant_place(std::int64_t bundle, std::int64_t panel) const;
  std::int64_t channels_per_position() const { return bundles * panels * width; }
};

/// Panels of bundles of that many groups, one where a bundle fits into it.
template <class T>
Tiling tile_bundles(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t channels, bool constant,
                    std::int64_t bundle_groups);

/// Bundles of one group or, with `share_panels`, of as many as fit into a panel.
template <class T>
Tiling tile_channels(const PanelKernels<T>& simd, std::int64_t groups, std::int64_t channels, bool constant,
                     bool share_panels);

/// Equal parts of [0, size) of at most `part` each, and of one at least. At least one, perhaps empty.
std::vector<Range> split(std::int64_t size, std::int64_t part);

/// The positions summed in one step, and with them (`packed_…`) all that a lag reaches from there inside the grid.
struct Box {
  Range images, rows, columns;
  Range packed_rows, packed_columns;

  std::int64_t positions() const { return images.size() * packed_rows.size() * packed_columns.size(); }
};

/// Boxes that cover the grid of every image once, each of about `budget` packed positions. At least one, perhaps empty.
std::vector<Box> split_boxes(const Plan& plan, std::int64_t images, std::int64_t budget);

/// Fills the panels of a box: packed[bundle][panel][row][column][image][width], images innermost so that any rectangle is
/// made of long runs. A piece is what is packed apart from the others, a panel or all panels of a bundle.
template <class T>
class Packer {
 public:
  Packer(std::int64_t pieces, std::int64_t channels) : pieces_(pieces), channels_(channels) {}
  virtual ~Packer() = default;

  std::int64_t pieces() const { return pieces_; }
  std::int64_t piece_size(const Box& box) const { return box.positions() * channels_; }
  std::int64_t tasks(const Box& box) const { return pieces_ * piece_tasks(box); }
  void pack(const Box& box, std::int64_t task, T* packed) const {
    const std::int64_t each = piece_tasks(box), piece = task / each;
    pack_piece(box, piece, task % each, packed + piece * piece_size(box));
  }

  virtual std::int64_t piece_tasks(const Box& box) const = 0;
  virtual void pack_piece(const Box& box, std::int64_t piece, std::int64_t task, T* out) const = 0;

  /// The memory that packing the box reads, where it is in one piece.
  virtual Ahead source(const Box&) const { return {}; }

 private:
  std::int64_t pieces_, channels_;  ///< channels of a piece
};

/// Positions are the pixels of x.
template <class T>
std::unique_ptr<Packer<T>> pack_pixels(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling);

/// Whether images are lines of pixels in memory, which may be put into another order on their way.
template <class T>
bool can_order_pixels(const PanelKernels<T>& simd, const ImageView& x);

/// Positions are all pixels of x in that order, h·width + w of each; boxes are those of a grid of one row.
template <class T>
std::unique_ptr<Packer<T>> pack_pixels_in_order(const PanelKernels<T>& simd, const ImageView& x, const Tiling& tiling,
                                                const std::vector<std::int64_t>& pixels);

/// Positions are the outputs of a convolution, channels the patch (c, kh, kw) of one group, 0 outside the image.
template <class T>
std::unique_ptr<Packer<T>> pack_patches(const PanelKernels<T>& simd, const ImageView& x, const ConvGeometry& geometry,
                                        const Tiling& tiling);

}  // namespace eigendamage::cpu
