#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/panels.h"
#include "cpu/simd.h"
#include "images.h"

using namespace eigendamage;
using cpu::kChunk;
using cpu::kTileWidth;
using testing::pick;
using testing::Random;

namespace {

/// Null where the CPU has no matrix units: nothing is tested then.
const cpu::TileKernels* tiles() { return cpu::supported_instruction_sets().front()->single_precision.tiles; }

constexpr cpu::Run kFirst{0, 1, 1};

/// 32 positions of 32 channels.
struct Panel {
  std::vector<float> numbers = std::vector<float>(kChunk * kTileWidth);

  float& at(std::int64_t position, std::int64_t channel) {
    return numbers[static_cast<std::size_t>(position * kTileWidth + channel)];
  }
  float at(std::int64_t position, std::int64_t channel) const {
    return const_cast<Panel*>(this)->at(position, channel);
  }
};

cpu::Buffer<std::uint16_t> room(std::int64_t chunks) {
  return cpu::make_buffer<std::uint16_t>(chunks * cpu::chunk_size(3));
}

bool split(const Panel& panel, std::uint32_t channels, std::uint32_t constant, std::int64_t positions,
           std::int64_t parts, std::uint16_t* chunk) {
  const float* at[kChunk] = {};
  for (std::int64_t p = 0; p < positions; ++p) at[p] = panel.numbers.data() + p * kTileWidth;
  return tiles()->split_positions(at, channels, constant, parts, chunk, chunk + parts * cpu::kSide);
}

Panel integers(Random& random) {
  Panel panel;
  for (float& number : panel.numbers) number = static_cast<float>(pick(random, -9, 9));
  return panel;
}

}  // namespace

TEST(chunks_of_positions_are_multiplied_and_added_up) {
  if (!tiles()) return;
  Random random(1);
  for (int i = 0; i < 400; ++i) {
    const std::int64_t chunks = pick(random, 1, 4), parts = pick(random, 1, 3), step = cpu::chunk_size(parts);
    const auto a = room(chunks), b = room(chunks);
    std::vector<double> expected(kTileWidth * kTileWidth);
    for (std::int64_t c = 0; c < chunks; ++c) {
      const Panel left = integers(random), right = integers(random);
      const auto channels = static_cast<std::uint32_t>(pick(random, 0, 0xffffffff));
      const auto constant = static_cast<std::uint32_t>(1ull << pick(random, 0, 40));
      const std::int64_t positions = pick(random, 0, kChunk);
      CHECK(split(left, channels, constant, positions, parts, a.get() + c * step), "finite");
      CHECK(split(right, ~0u, 0, kChunk, parts, b.get() + c * step), "finite");
      for (std::int64_t p = 0; p < positions; ++p) {
        for (std::int64_t r = 0; r < kTileWidth; ++r) {
          const double number = constant >> r & 1 ? 1.0 : channels >> r & 1 ? left.at(p, r) : 0.0;
          for (std::int64_t k = 0; k < kTileWidth; ++k)
            expected[static_cast<std::size_t>(r * kTileWidth + k)] += number * right.at(p, k);
        }
      }
    }
    const std::int64_t begin = pick(random, 0, 1) * 16;
    const Range rows{begin, pick(random, begin + 1, kTileWidth)};
    const std::int64_t columns = pick(random, 1, kTileWidth);
    const bool upper = pick(random, 0, 1), fresh = pick(random, 0, 1);
    const auto weight = static_cast<float>(pick(random, 1, 9));
    const auto tile = cpu::make_buffer<float>(kTileWidth * kTileWidth);
    std::fill_n(tile.get(), kTileWidth * kTileWidth, 5.0f);
    const std::int64_t middle = pick(random, 0, chunks);
    const cpu::Run runs[] = {{middle, chunks - middle, 1}, {middle - 1, middle, -1}};
    tiles()->gram(a.get(), b.get(), step, runs, 2, parts, rows, columns, upper, weight, fresh, tile.get());
    for (std::int64_t r = rows.begin; r < rows.end; ++r) {
      for (std::int64_t c = upper ? r : 0; c < columns; ++c) {
        const double sum = weight * expected[static_cast<std::size_t>(r * kTileWidth + c)] + (fresh ? 0 : 5);
        CHECK(tile.get()[(r - rows.begin) * kTileWidth + c] == sum, std::to_string(parts) + " parts");
      }
    }
  }
}

TEST(three_parts_are_the_whole_number) {
  if (!tiles()) return;
  Random random(2);
  Panel ones, numbers;
  for (std::int64_t i = 0; i < kTileWidth; ++i) ones.at(0, i) = 1;
  const auto a = room(1), b = room(1);
  const auto tile = cpu::make_buffer<float>(kTileWidth * kTileWidth);
  CHECK(split(ones, ~0u, 0, 1, 3, b.get()), "finite");
  for (int i = 0; i < 3000; ++i) {
    for (std::int64_t c = 0; c < kTileWidth; ++c) {
      const auto exponent = static_cast<std::uint32_t>(pick(random, 127 - 100, 127 + 47));
      const auto rest = static_cast<std::uint32_t>(pick(random, 0, 1 << 24));  // mantissa and sign
      numbers.at(0, c) = std::bit_cast<float>((rest & 1) << 31 | exponent << 23 | rest >> 1);
    }
    CHECK(split(numbers, ~0u, 0, 1, 3, a.get()), "finite");
    tiles()->gram(a.get(), b.get(), 0, &kFirst, 1, 3, {0, 32}, 32, false, 1, true, tile.get());
    for (std::int64_t r = 0; r < kTileWidth; ++r) {
      for (std::int64_t c = 0; c < kTileWidth; ++c)
        CHECK(tile.get()[r * kTileWidth + c] == numbers.at(0, r), std::to_string(numbers.at(0, r)));
    }
  }
}

TEST(segments_of_lines_are_weighted_on_one_side) {
  if (!tiles()) return;
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const bool weighted = pick(random, 0, 1);
    std::vector<float> pixels(kTileWidth * 40), weights(56);
    for (float& pixel : pixels) pixel = static_cast<float>(pick(random, -9, 9));
    for (float& weight : weights) weight = static_cast<float>(pick(random, 1, 9));
    const float* lines[kTileWidth];
    for (std::int64_t c = 0; c < kTileWidth; ++c) lines[c] = pick(random, 0, 9) ? pixels.data() + c * 40 : nullptr;
    cpu::Segment16 segments[2];
    for (cpu::Segment16& segment : segments) {
      const std::int64_t at = pick(random, 0, 24);
      segment = {at, static_cast<std::uint32_t>(pick(random, 0, 0xffff)), weights.data() + at};
    }
    const std::int64_t next[2] = {0, 16};
    const auto chunk = room(1);
    for (std::int64_t c = 0; c < 40; ++c) {  // what no mask names is not looked at
      const bool named =
          (c >= segments[0].offset && c < segments[0].offset + 16 &&
           segments[0].mask >> (c - segments[0].offset) & 1) ||
          (c >= segments[1].offset && c < segments[1].offset + 16 && segments[1].mask >> (c - segments[1].offset) & 1);
      if (!named) pixels[static_cast<std::size_t>(pick(random, 0, 31) * 40 + c)] = NAN;
    }
    CHECK(tiles()->split_lines(lines, segments, weighted, next, chunk.get()), "finite");
    const auto tile = cpu::make_buffer<float>(kTileWidth * kTileWidth);
    tiles()->gram(chunk.get(), chunk.get(), 0, &kFirst, 1, 3, {0, 32}, 32, false, 1, true, tile.get());
    for (std::int64_t r = 0; r < kTileWidth; ++r) {
      for (std::int64_t c = 0; c < kTileWidth; ++c) {
        double sum = 0;
        for (const cpu::Segment16& segment : segments) {
          for (std::int64_t p = 0; lines[r] && lines[c] && p < 16; ++p) {
            if (segment.mask >> p & 1) {
              sum +=
                  (weighted ? segment.weights[p] : 1.0) * lines[r][segment.offset + p] * lines[c][segment.offset + p];
            }
          }
        }
        CHECK(tile.get()[r * kTileWidth + c] == sum, weighted ? "weighted" : "plain");
      }
    }
  }
}

TEST(products_of_examples_are_added_up_and_so_are_their_squares) {
  if (!tiles()) return;
  Random random(4);
  for (int i = 0; i < 300; ++i) {
    const std::int64_t parts = pick(random, 1, 3),
                       chunks = pick(random, 0, 3) ? pick(random, 1, 3) : pick(random, 16, 33);
    const std::int64_t examples = pick(random, 1, 5), panels = pick(random, 1, 3);
    const std::int64_t side = chunks * parts * cpu::kSide;
    const std::int64_t a_step = side + 64, b_step = side + 128, a_panel = examples * a_step + 32;
    const auto a = cpu::make_buffer<std::uint16_t>(panels * a_panel);
    const auto b = cpu::make_buffer<std::uint16_t>(examples * b_step);
    std::vector<Panel> left, right;
    const auto put = [&](std::vector<Panel>& to, std::uint16_t* where, bool on_left) {
      for (std::int64_t c = 0; c < chunks; ++c) {
        to.push_back(integers(random));
        const float* at[kChunk] = {};
        for (std::int64_t p = 0; p < kChunk; ++p) {
          if (pick(random, 0, 5)) {
            at[p] = &to.back().at(p, 0);
          } else {
            for (std::int64_t k = 0; k < kTileWidth; ++k) to.back().at(p, k) = 0;
          }
        }
        std::uint16_t* chunk = where + c * parts * cpu::kSide;
        CHECK(tiles()->split_positions(at, ~0u, 0, parts, on_left ? chunk : nullptr, on_left ? nullptr : chunk),
              "finite");
      }
    };
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      for (std::int64_t n = 0; n < examples; ++n) put(left, a.get() + panel * a_panel + n * a_step, true);
    }
    for (std::int64_t n = 0; n < examples; ++n) put(right, b.get() + n * b_step, false);
    const std::int64_t rows = pick(random, 1, kTileWidth), columns = pick(random, 1, kTileWidth);
    const std::int64_t tile_step = kTileWidth * kTileWidth + 16;
    const bool fresh = pick(random, 0, 1), squared = pick(random, 0, 1);
    const auto tile = cpu::make_buffer<float>(panels * tile_step);
    std::fill_n(tile.get(), panels * tile_step, 5.0f);
    (squared ? tiles()->squares : tiles()->sums)(
        {a.get(), b.get(), a_step, b_step, examples, a_panel, tile_step, panels, chunks, parts}, rows, columns, fresh,
        tile.get());
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t k = 0; k < columns; ++k) {
          double expected = fresh ? 0 : 5;
          for (std::int64_t n = 0; n < examples; ++n) {
            double sum = 0;
            for (std::int64_t c = 0; c < chunks; ++c) {
              const Panel& l = left[static_cast<std::size_t>((panel * examples + n) * chunks + c)];
              const Panel& m = right[static_cast<std::size_t>(n * chunks + c)];
              for (std::int64_t p = 0; p < kChunk; ++p) sum += l.at(p, r) * m.at(p, k);
            }
            expected += squared ? sum * sum : sum;
          }
          const double ours = tile.get()[panel * tile_step + r * kTileWidth + k];
          CHECK(std::fabs(ours - expected) <= (squared ? 1e-6 * expected : 0), std::to_string(parts) + " parts");
        }
      }
      if (panel > 0) CHECK(tile.get()[panel * tile_step - 1] == 5, "between the tiles");
    }
  }
}

TEST(what_is_not_finite_is_told) {
  if (!tiles()) return;
  const auto chunk = room(1);
  for (const float special : {INFINITY, -INFINITY, NAN, std::numeric_limits<float>::max(), -0x1p48f}) {
    for (const std::int64_t parts : {1, 2, 3}) {
      if (parts == 1 && std::isfinite(special)) continue;  // it is itself
      for (std::int64_t c = 0; c < kTileWidth; ++c) {
        for (const std::int64_t p : {0, 15, 16, 31}) {
          Panel panel;
          panel.at(p, c) = special;
          CHECK(!split(panel, ~0u, 0, kChunk, parts, chunk.get()), "told");
          CHECK(split(panel, ~(1u << c), 0, kChunk, parts, chunk.get()), "another channel");
          CHECK(split(panel, ~0u, 0, p, parts, chunk.get()), "another position");
        }
      }
    }
    for (std::int64_t c = 0; c < kTileWidth; ++c) {
      std::vector<float> line(32);
      const float weights[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
      const float* lines[kTileWidth] = {};
      lines[c] = line.data();
      const cpu::Segment16 segments[2] = {{0, 0xffff, weights}, {16, 0xffff, weights}};
      const std::int64_t next[2] = {0, 0};
      line[static_cast<std::size_t>(c)] = special;
      for (const bool weighted : {false, true}) {
        CHECK(!tiles()->split_lines(lines, segments, weighted, next, chunk.get()), "told");
      }
    }
  }
}

int main() { return check::run_tests(); }
