#include "chunks.h"

#include "runs.h"

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kLanes = 16;  // positions of a segment

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t count(const auto& list) { return static_cast<std::int64_t>(list.size()); }

std::uint32_t ones(std::int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

/// Chunks of panels that a packer fills, of positions of equal weight.
class PanelChunks : public ChunkPacker {
 public:
  PanelChunks(const TileKernels& tiles, const Plan& plan, const Tiling& tiling, const Packer<float>& packer,
              ScalarType type)
      : tiles_(tiles), plan_(plan), tiling_(tiling), packer_(packer), parts_(parts_of(type)) {
    for (const Rectangle& r : plan.rectangles) {
      weights_ += &r == plan.rectangles.data() || r.weight != (&r - 1)->weight;
    }
  }

  std::int64_t parts() const override { return parts_; }
  std::int64_t least_panels() const override { return parts_ < 3 ? 2 : 4; }
  std::int64_t most_chunks(const Box& box) const override { return box.positions() / kChunk + weights_; }
  std::int64_t pieces() const override { return packer_.pieces(); }

  ChunkList list(const Box& box) const override {
    return list_chunks(box, [&](const Run& run, std::int64_t* at) {
      for (std::int64_t i = 0; i < run.count; ++i) at[i] = (run.first + i * run.step) * tiling_.width;
    });
  }

  bool pack(const Box& box, const ChunkList& list, std::int64_t piece, std::uint16_t* chunks) const override {
    const Buffer<float> panels = make_buffer<float>(packer_.piece_size(box));
    for (std::int64_t task = 0; task < packer_.piece_tasks(box); ++task) {
      packer_.pack_piece(box, piece, task, panels.get());
    }
    const std::int64_t size = box.positions() * tiling_.width;
    const std::int64_t panels_of_piece = tiling_.bundles * tiling_.panels / pieces();
    bool right = true;
    for (std::int64_t i = 0; i < panels_of_piece; ++i) {
      right &= split(list, panels.get() + i * size, ~0u, 0, piece * panels_of_piece + i, chunks);
    }
    return right;
  }

 protected:
  /// place(run, at) writes where its positions begin.
  template <class Place>
  ChunkList list_chunks(const Box& box, const Place& place) const {
    ChunkList list;
    for_each_run_list(plan_, plan_.slots.front(), box, kChunk,
                      [&](const Run* runs, std::int64_t run_count, std::int64_t weight) {
                        const auto w = static_cast<float>(weight);
                        const std::int64_t end = list.count();
                        if (list.weighted.empty() || list.weighted.back().weight != w) {
                          list.weighted.push_back({{end, end}, w});
                        }
                        ++list.weighted.back().chunks.end;
                        list.positions.resize(list.positions.size() + kChunk, -1);
                        std::int64_t* at = &list.positions.back() + 1 - kChunk;
                        for (const Run* run = runs; run != runs + run_count; at += run->count, ++run) place(*run, at);
                      });
    return list;
  }

  /// Splits those channels of a panel, which are at `first` behind every position, and the constant.
  bool split(const ChunkList& list, const float* first, std::uint32_t channels, std::uint32_t constant,
             std::int64_t panel, std::uint16_t* chunks) const {
    chunks += panel * list.count() * chunk_size(parts_);
    bool right = true;
    for (std::int64_t i = 0; i < list.count(); ++i, chunks += chunk_size(parts_)) {
      const float* positions[kChunk];
      const std::int64_t* at = list.positions.data() + i * kChunk;
      for (std::int64_t k = 0; k < kChunk; ++k) positions[k] = at[k] < 0 ? nullptr : first + at[k];
      right &= tiles_.split_positions(positions, channels, constant, parts_, chunks, chunks + parts_ * kSide);
    }
    return right;
  }

  const TileKernels& tiles_;
  const Plan& plan_;
  const Tiling& tiling_;
  const Packer<float>& packer_;
  const std::int64_t parts_;
  std::int64_t weights_ = 0;
};

/// The same where a pixel's channels lie side by side.
class PixelChunks final : public PanelChunks {
 public:
  PixelChunks(const TileKernels& tiles, const Plan& plan, const Tiling& tiling, const Packer<float>& packer,
              const ImageView& x)
      : PanelChunks(tiles, plan, tiling, packer, x.type), x_(x) {}

  ChunkList list(const Box& box) const override {
    const std::int64_t images = box.images.size(), across = box.packed_columns.size();
    return list_chunks(box, [&](const Run& run, std::int64_t* at) {
      std::int64_t image = run.first % images, column = run.first / images % across;
      std::int64_t row = run.first / images / across;
      for (std::int64_t i = 0; i < run.count; ++i) {
        at[i] = (box.images.begin + image) * x_.batch_stride + (box.packed_rows.begin + row) * x_.height_stride +
                (box.packed_columns.begin + column) * x_.width_stride;
        for (image += run.step; image >= images; image -= images) ++column;
        for (; column >= across; column -= across) ++row;
      }
    });
  }

  bool pack(const Box&, const ChunkList& list, std::int64_t piece, std::uint16_t* chunks) const override {
    const std::int64_t bundle = piece / tiling_.panels, panel = piece % tiling_.panels;
    const float* first =
        static_cast<const float*>(x_.data) + bundle * tiling_.bundle_groups * tiling_.channels + panel * tiling_.width;
    const std::int64_t constant = tiling_.constant_place(bundle, panel);
    const std::int64_t channels = tiling_.panel_channels(bundle, panel) - (constant >= 0);
    return split(list, first, ones(channels), constant >= 0 ? 1u << constant : 0, piece, chunks);
  }

 private:
  const ImageView x_;
};

/// Chunks of segments of lines of pixels: all weights in one list.
class LineChunks final : public ChunkPacker {
 public:
  LineChunks(const TileKernels& tiles, const Plan& plan, const Tiling& tiling, const ImageView& x)
      : tiles_(tiles), tiling_(tiling), x_(x), weights_(static_cast<std::size_t>(x.height * x.width + kLanes)) {
    for (const Rectangle& r : plan.rectangles) {
      for (std::int64_t v = 0; v < r.rows; ++v) {
        for (std::int64_t u = 0; u < r.columns; ++u) {
          const std::int64_t pixel = (r.row + v * r.row_step) * x.width + r.column + u * r.column_step;
          weights_[static_cast<std::size_t>(pixel)] += static_cast<float>(r.weight);
          weighted_ |= r.weight != 1;
        }
      }
    }
  }

  std::int64_t parts() const override { return 3; }
  std::int64_t least_panels() const override { return 3; }
  std::int64_t most_chunks(const Box& box) const override { return ceil_div(box.images.size() * segments(box), 2); }
  std::int64_t pieces() const override { return tiling_.bundles * tiling_.panels; }

  ChunkList list(const Box& box) const override {
    ChunkList list;
    list.weighted.push_back({{0, most_chunks(box)}, 1});
    return list;
  }

  bool pack(const Box& box, const ChunkList& list, std::int64_t piece, std::uint16_t* chunks) const override {
    const std::int64_t bundle = piece / tiling_.panels, panel = piece % tiling_.panels;
    const std::int64_t first = bundle * tiling_.bundle_groups * tiling_.channels + panel * tiling_.width;
    const float* lines[kTileWidth] = {};
    for (std::int64_t c = 0; c < tiling_.panel_channels(bundle, panel); ++c) {
      lines[c] = static_cast<const float*>(x_.data) + (first + c) * x_.channel_stride;
    }
    bool right = true;
    for (std::int64_t i = 0; i < list.count(); ++i) {
      const Segment16 segments[2] = {segment(box, 2 * i), segment(box, 2 * i + 1)};
      const std::int64_t next[2] = {segment(box, 2 * i + 2).offset, segment(box, 2 * i + 3).offset};
      right &=
          tiles_.split_lines(lines, segments, weighted_, next, chunks + (piece * list.count() + i) * chunk_size(3));
    }
    return right;
  }

 private:
  static std::int64_t pixels(const Box& box) { return box.packed_rows.size() * box.packed_columns.size(); }
  static std::int64_t segments(const Box& box) { return ceil_div(pixels(box), kLanes); }

  /// Of the box, an image after the other; those behind the last are empty.
  Segment16 segment(const Box& box, std::int64_t i) const {
    const std::int64_t image = i / segments(box), at = i % segments(box) * kLanes;
    if (image >= box.images.size()) return {0, 0, weights_.data()};
    const std::int64_t pixel = box.packed_rows.begin * x_.width + box.packed_columns.begin + at;
    const float* weights = weights_.data() + pixel;
    std::uint32_t mask = ones(std::min(kLanes, pixels(box) - at));
    for (std::int64_t lane = 0; lane < kLanes; ++lane) mask &= ~(std::uint32_t{weights[lane] == 0} << lane);
    return {(box.images.begin + image) * x_.batch_stride + pixel, mask, weights};
  }

  const TileKernels& tiles_;
  const Tiling& tiling_;
  const ImageView x_;
  std::vector<float> weights_;  ///< of every pixel, 0 where it is not read
  bool weighted_ = false;
};

class ImageChunks final : public Packer<float> {
 public:
  ImageChunks(const TileKernels& tiles, const Tiling& tiling, const Packer<float>& packer, std::int64_t images,
              ScalarType type, std::atomic<bool>& special)
      : Packer<float>(packer.pieces(), tiling.bundles * tiling.panels / packer.pieces() * size(type)),
        tiles_(tiles),
        packer_(packer),
        images_(images),
        panels_(tiling.bundles * tiling.panels / packer.pieces()),
        parts_(parts_of(type)),
        special_(special) {}

  std::int64_t piece_tasks(const Box& box) const override { return box.images.size() * box.packed_rows.size(); }

  /// A row of 32 images at a time.
  void pack_piece(const Box& box, std::int64_t piece, std::int64_t task, float* out) const override {
    const std::int64_t image = task % box.images.size(), row = task / box.images.size();
    const std::int64_t first = (box.images.begin + image) * kChunk, line = box.packed_rows.begin + row;
    Box some = box;
    some.images = {first, std::min(images_, first + kChunk)};
    some.rows = some.packed_rows = {line, line + 1};
    some.columns = some.packed_columns;
    const Buffer<float> panels = make_buffer<float>(packer_.piece_size(some));
    for (std::int64_t t = 0; t < packer_.piece_tasks(some); ++t) packer_.pack_piece(some, piece, t, panels.get());
    const std::int64_t columns = some.columns.size(), position = chunk_size(parts_);
    auto* chunks = reinterpret_cast<std::uint16_t*>(out);
    for (std::int64_t panel = 0; panel < panels_; ++panel) {
      for (std::int64_t column = 0; column < columns; ++column) {
        const float* positions[kChunk] = {};
        for (std::int64_t n = 0; n < some.images.size(); ++n) {
          positions[n] = panels.get() + ((panel * columns + column) * some.images.size() + n) * kTileWidth;
        }
        std::uint16_t* chunk =
            chunks + (panel * box.positions() + (row * columns + column) * box.images.size() + image) * position;
        if (!tiles_.split_positions(positions, ~0u, 0, parts_, chunk, chunk + parts_ * kSide)) special_ = true;
      }
    }
  }

  /// Of a position of a panel, in floats.
  static std::int64_t size(ScalarType type) { return chunk_size(parts_of(type)) / 2; }

 private:
  const TileKernels& tiles_;
  const Packer<float>& packer_;
  const std::int64_t images_, panels_, parts_;  ///< panels of a piece
  std::atomic<bool>& special_;
};

}  // namespace

std::unique_ptr<Packer<float>> chunk_images(const TileKernels& tiles, const Tiling& tiling, const Packer<float>& packer,
                                            std::int64_t images, ScalarType type, std::atomic<bool>& special) {
  return std::make_unique<ImageChunks>(tiles, tiling, packer, images, type, special);
}

std::unique_ptr<ChunkPacker> chunk_panels(const TileKernels& tiles, const Plan& plan, const Tiling& tiling,
                                          const Packer<float>& packer, ScalarType type) {
  return std::make_unique<PanelChunks>(tiles, plan, tiling, packer, type);
}

std::unique_ptr<ChunkPacker> chunk_pixels(const TileKernels& tiles, const Plan& plan, const Tiling& tiling,
                                          const Packer<float>& packer, const ImageView& x) {
  const bool lines = x.width_stride == 1 && (x.height_stride == x.width || x.height == 1);
  if (x.type == ScalarType::kFloat32 && lines && !tiling.constant) {
    return std::make_unique<LineChunks>(tiles, plan, tiling, x);
  }
  if (x.type == ScalarType::kFloat32 && x.channel_stride == 1) {
    return std::make_unique<PixelChunks>(tiles, plan, tiling, packer, x);
  }
  return chunk_panels(tiles, plan, tiling, packer, x.type);
}

}  // namespace eigendamage::cpu
