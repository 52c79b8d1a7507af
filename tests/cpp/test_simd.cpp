#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/panels.h"
#include "cpu/simd.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::pick;
using testing::Random;

namespace {

/// body(panel kernels, name) for both types and every instruction set of this CPU.
template <class Body>
void for_every_set(const Body& body) {
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    body(set->single_precision, std::string(set->name) + " float");
    body(set->double_precision, std::string(set->name) + " double");
  }
}

template <class T>
std::vector<T> integers(Random& random, std::int64_t size) {
  std::vector<T> numbers;
  for (std::int64_t i = 0; i < size; ++i) numbers.push_back(static_cast<T>(pick(random, -4, 4)));
  return numbers;
}

std::vector<std::int32_t> shuffled(Random& random, std::int64_t count) {
  std::vector<std::int32_t> places(static_cast<std::size_t>(count));
  std::iota(places.begin(), places.end(), 0);
  for (std::int64_t i = 1; i < count; ++i)
    std::swap(places[static_cast<std::size_t>(i)], places[static_cast<std::size_t>(pick(random, 0, i))]);
  return places;
}

template <class T>
cpu::Buffer<T> aligned(const std::vector<T>& numbers) {
  cpu::Buffer<T> buffer = cpu::make_buffer<T>(static_cast<std::int64_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), buffer.get());
  return buffer;
}

double widened(const void* number, ScalarType type) {
  return reference::element({number, type, 1, 1, 1, 1, 0, 0, 0, 0}, 0, 0, 0, 0);
}

bool same(double a, double b) { return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b); }

/// Pixels in any order come from the same memory, as long as there are all of them.
void check_source_in_order(const ImageView& x, const Range& n, const cpu::Ahead& expected, Random& random) {
  const auto& simd = cpu::kGeneric.single_precision;
  if (!cpu::can_order_pixels(simd, x) || !expected.next) return;
  std::vector<std::int64_t> pixels;
  for (const std::int32_t pixel : shuffled(random, x.height * x.width)) pixels.push_back(pixel);
  const auto packer = cpu::pack_pixels_in_order(simd, x, cpu::tile_channels(simd, 1, x.channels, false, true), pixels);
  const Range row{0, 1}, all{0, x.height * x.width};
  const cpu::Ahead ahead = packer->source({n, row, all, row, all});
  CHECK(ahead.next == expected.next && ahead.end == expected.end, "whole images");
  const Range some{0, all.end - 1};
  CHECK(packer->source({n, row, some, row, some}).next == nullptr, "parts of images");
}

}  // namespace

TEST(gram_sums_outer_products_over_the_runs) {
  Random random(1);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    CHECK(simd.lanes <= cpu::kMaxLanes && simd.min_width % simd.tile_rows == 0, name);
    for (int i = 0; i < 200; ++i) {
      const std::int64_t width = pick(random, 0, 1) ? 2 * simd.lanes : simd.min_width, positions = 40;
      const std::vector<T> a = integers<T>(random, positions * width), b = integers<T>(random, positions * width);
      const std::vector<T> before = integers<T>(random, width * width);
      const std::vector<cpu::Run> runs{{3, pick(random, 0, 9), 1}, {0, 1, 7}, {12, pick(random, 1, 9), 3}};
      const std::int64_t begin = pick(random, 0, width / simd.tile_rows - 1) * simd.tile_rows;
      const Range rows{begin, pick(random, begin + 1, width)};
      const std::int64_t columns = pick(random, 1, width);
      const bool upper = pick(random, 0, 1), fresh = pick(random, 0, 1);
      const auto weight = static_cast<T>(pick(random, 1, 9));
      const auto tile = aligned(before), left = aligned(a), right = aligned(b);
      std::vector<char> soon(static_cast<std::size_t>(pick(random, 0, 2000)));
      cpu::Ahead ahead{soon.data(), soon.data() + soon.size()};
      simd.gram(left.get(), right.get(), width, runs.data(), 3, rows, columns, upper, weight, fresh, tile.get(), ahead);
      for (std::int64_t r = rows.begin; r < rows.end; ++r) {
        for (std::int64_t c = upper ? r : 0; c < columns; ++c) {
          const auto entry = static_cast<std::size_t>((r - rows.begin) * width + c);
          T expected = fresh ? T(0) : before[entry];
          for (const cpu::Run& run : runs) {
            for (std::int64_t p = 0; p < run.count; ++p) {
              const std::int64_t at = (run.first + p * run.step) * width;
              expected += weight * a[static_cast<std::size_t>(at + r)] * b[static_cast<std::size_t>(at + c)];
            }
          }
          CHECK(tile[entry] == expected, name);
        }
      }
    }
  });
}

TEST(add_adds_every_number_and_no_more) {
  Random random(7);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (std::int64_t count = 0; count < 40; ++count) {
      const std::vector<T> before = integers<T>(random, count + 1), part = integers<T>(random, count + 1);
      std::vector<T> total = before;
      simd.add(total.data(), part.data(), count);
      for (std::size_t i = 0; i < total.size(); ++i) {
        CHECK(total[i] == before[i] + (static_cast<std::int64_t>(i) < count ? part[i] : T(0)), name);
      }
    }
  });
}

TEST(combine_adds_slots_and_lays_blocks_side_by_side) {
  Random random(2);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (const std::int64_t width : {simd.min_width, 2 * simd.lanes}) {
      const std::vector<T> rows = integers<T>(random, 5 * width);
      const std::vector<std::int64_t> terms{0, 4, 3, 1, 2};
      for (const std::int64_t stride : {1, 3, 4, 9, 16, 17, 35}) {
        for (std::int64_t count = 1; count <= stride; ++count) {
          std::vector<Range> blocks;
          for (std::int64_t k = 0; k < count; ++k) {
            const std::int64_t begin = pick(random, 0, 5);
            blocks.push_back({begin, pick(random, begin, 5)});
          }
          const std::int64_t size = stride * (width - 1) + count + simd.lanes;
          std::vector<T> out(static_cast<std::size_t>(size + 1), T(99));
          simd.combine(rows.data(), terms.data(), blocks.data(), count, width, width, stride, out.data());
          CHECK(out.back() == T(99), name);
          for (std::int64_t c = 0; c < width; ++c) {
            for (std::int64_t k = 0; k < count; ++k) {
              T expected = 0;
              for (std::int64_t t = blocks[static_cast<std::size_t>(k)].begin;
                   t < blocks[static_cast<std::size_t>(k)].end; ++t) {
                expected += rows[static_cast<std::size_t>(terms[static_cast<std::size_t>(t)] * width + c)];
              }
              CHECK(out[static_cast<std::size_t>(c * stride + k)] == expected, name + " " + std::to_string(stride));
            }
          }
        }
      }
    }
  });
}

TEST(update_rounds_once_and_never_reads_what_beta_drops) {
  Random random(6);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (std::int64_t count = 0; count < 40; ++count) {
      for (const double beta : {0.0, 1.0, 0.7}) {
        const std::vector<T> sums = integers<T>(random, count);
        std::vector<T> before = integers<T>(random, count);
        if (beta == 0) std::fill(before.begin(), before.end(), std::numeric_limits<T>::quiet_NaN());
        std::vector<T> after = before;
        after.push_back(T(99));
        simd.update(after.data(), sums.data(), count, 0.3, beta);
        CHECK(after.back() == T(99), name);
        for (std::size_t i = 0; i < sums.size(); ++i) {
          const double added = 0.3 * static_cast<double>(sums[i]);
          const double expected = beta == 0 ? added : beta * static_cast<double>(before[i]) + added;
          const double ulp = static_cast<double>(std::numeric_limits<T>::epsilon()) * std::fabs(expected);
          const bool close = sizeof(T) == 4 ? after[i] == static_cast<T>(expected)
                                            : std::fabs(static_cast<double>(after[i]) - expected) <= 4 * ulp + 1e-15;
          CHECK(close, name + " " + std::to_string(beta));
        }
      }
    }
  });
}

TEST(mirror_copies_the_lower_rank_onto_the_higher_and_touches_nothing_else) {
  Random random(8);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (const std::int64_t kernel : {1, 2, 9}) {
      for (std::int64_t channels = 1; channels * kernel < 75; channels += kernel == 1 ? 3 : 1) {
        const std::int64_t size = channels * kernel, stride = size + pick(random, 0, 20);
        std::vector<T> ranks;
        for (std::int64_t i = 0; i < size; ++i) ranks.push_back(static_cast<T>(i % kernel * channels + i / kernel));
        std::vector<T> before;
        for (std::int64_t i = 0; i < size * stride; ++i) before.push_back(static_cast<T>(i));
        std::vector<T> after = before;
        const std::int64_t step = pick(random, 1, 4) * simd.lanes;
        for (std::int64_t r = 0; r < size; r += step)
          simd.mirror(after.data(), size, stride, ranks.data(), {r, std::min(size, r + step)});
        for (std::int64_t i = 0; i < size * stride; ++i) {
          const std::int64_t r = i / stride, c = i % stride;
          const bool mirrored = c < size && ranks[static_cast<std::size_t>(r)] > ranks[static_cast<std::size_t>(c)];
          const std::int64_t from = mirrored ? c * stride + r : i;
          CHECK(after[static_cast<std::size_t>(i)] == before[static_cast<std::size_t>(from)],
                name + " " + std::to_string(size) + ": " + std::to_string(i));
        }
      }
    }
  });
}

TEST(interleave_transposes_lines_and_takes_null_for_zeros) {
  Random random(3);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (std::int64_t count = 0; count < 70; ++count) {
      std::vector<std::vector<T>> lines;
      std::vector<const T*> pointers;
      for (std::int64_t c = 0; c < simd.lanes; ++c) lines.push_back(integers<T>(random, count));
      for (const auto& line : lines) pointers.push_back(pick(random, 0, 3) ? line.data() : nullptr);
      const std::int64_t stride = simd.lanes + pick(random, 0, 3);
      std::vector<T> out(static_cast<std::size_t>(count * stride), T(99));
      const std::vector<std::int32_t> places = shuffled(random, count);
      const bool placed = pick(random, 0, 1);
      simd.interleave(pointers.data(), count, stride, placed ? places.data() : nullptr, out.data());
      for (std::int64_t i = 0; i < count * stride; ++i) {
        const auto p = static_cast<std::size_t>(i / stride), c = static_cast<std::size_t>(i % stride);
        const std::size_t place = placed ? static_cast<std::size_t>(places[p]) : p;
        const T expected = c >= lines.size() ? T(99) : pointers[c] ? lines[c][p] : T(0);
        CHECK(out[place * static_cast<std::size_t>(stride) + c] == expected, name);
      }
    }
  });
}

TEST(write_around_copies_and_transposes) {
  Random random(4);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (int i = 0; i < 20; ++i) {
      const std::int64_t lanes = simd.lanes, rows = pick(random, 0, 3) * lanes, columns = pick(random, 0, 3) * lanes;
      const std::int64_t step = columns + pick(random, 0, 5), out_step = (pick(random, 0, 2) + 3) * lanes;
      const std::vector<T> from = integers<T>(random, rows * step);
      const std::int64_t most = 3 * lanes * out_step;
      const cpu::Buffer<T> out = aligned(std::vector<T>(static_cast<std::size_t>(most), T(99)));
      const cpu::Buffer<T> mirror = aligned(std::vector<T>(static_cast<std::size_t>(most), T(99)));
      simd.write_around(from.data(), rows, columns, step, out.get(), mirror.get(), out_step);
      for (std::int64_t n = 0; n < most; ++n) {
        const std::int64_t r = n / out_step, c = n % out_step;
        const auto expected = [&](bool inside, std::int64_t at) {
          return inside ? from[static_cast<std::size_t>(at)] : T(99);
        };
        CHECK(out[static_cast<std::size_t>(n)] == expected(r < rows && c < columns, r * step + c), name);
        CHECK(mirror[static_cast<std::size_t>(n)] == expected(r < columns && c < rows, c * step + r), name);
      }
    }
  });
}

TEST(gather_reads_every_channel_at_its_offset) {
  Random random(5);
  for_every_set([&]<class T>(const cpu::PanelKernels<T>& simd, const std::string& name) {
    for (const std::int64_t width : {simd.min_width, 2 * simd.lanes}) {
      const std::int64_t positions = pick(random, 0, 5), images = pick(random, 0, 4), step = pick(random, 1, 3);
      const std::int64_t image_step = pick(random, 1, 50), reach = 40, stride = images * width + pick(random, 0, 3);
      const std::vector<T> from = integers<T>(random, positions * step + images * image_step + reach + 1);
      std::vector<std::int32_t> offsets;
      for (std::int64_t c = 0; c < width; ++c) offsets.push_back(static_cast<std::int32_t>(pick(random, 0, reach)));
      std::vector<T> out(static_cast<std::size_t>(positions * stride), T(99));
      simd.gather(from.data(), positions, step, images, image_step, offsets.data(), width, stride, out.data());
      for (std::int64_t i = 0; i < positions * stride; ++i) {
        const std::int64_t p = i / stride, n = i % stride / width, c = i % stride % width;
        T expected = 99;
        if (n < images) {
          expected = from[static_cast<std::size_t>(p * step + n * image_step + offsets[static_cast<std::size_t>(c)])];
        }
        CHECK(out[static_cast<std::size_t>(i)] == expected, name);
      }
    }
  });
}

TEST(halves_are_widened_exactly_all_of_them) {
  std::vector<std::uint16_t> halves;
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) halves.push_back(static_cast<std::uint16_t>(bits));
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    for (const ScalarType type : {ScalarType::kBFloat16, ScalarType::kFloat16}) {
      for (const std::int64_t step : {1, 3}) {
        const std::int64_t count = 0xffff / step;
        std::vector<float> line(static_cast<std::size_t>(count));
        set->single_precision.widen(halves.data(), type, step, count, line.data());
        for (std::size_t i = 0; i < line.size(); ++i) {
          const double expected = widened(&halves[i * static_cast<std::size_t>(step)], type);
          CHECK(same(static_cast<double>(line[i]), expected), set->name + std::string(" ") + std::to_string(expected));
        }
      }
    }
  }
}

TEST(copy_pixels_widens_and_fills_with_zeros) {
  Random random(4);
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    for (const ScalarType type : testing::kTypes) {
      const auto check_type = [&]<class T>(const cpu::PanelKernels<T>& simd) {
        for (std::int64_t channels = 0; channels <= simd.min_width; ++channels) {
          testing::Images x({1, channels + 2, 1, 9}, type, testing::Layout::kChannelsLast);
          x.fill_normal(random, 0);
          const std::int64_t stride = simd.min_width + pick(random, 0, 2);
          std::vector<T> out(static_cast<std::size_t>(9 * stride), T(99));
          const std::vector<std::int32_t> places = shuffled(random, 9);
          const bool placed = pick(random, 0, 1);
          simd.copy_pixels(x.view().data, type, channels + 2, 9, channels, simd.min_width, stride,
                           placed ? places.data() : nullptr, out.data());
          for (std::int64_t i = 0; i < 9 * stride; ++i) {
            const std::int64_t p = i / stride, c = i % stride;
            const std::int64_t place = placed ? places[static_cast<std::size_t>(p)] : p;
            double expected = c < simd.min_width ? 0 : 99;
            if (c < channels) expected = reference::element(x.view(), 0, c, 0, p);
            CHECK(same(static_cast<double>(out[static_cast<std::size_t>(place * stride + c)]), expected), set->name);
          }
        }
      };
      if (type == ScalarType::kFloat64) {
        check_type(set->double_precision);
      } else {
        check_type(set->single_precision);
      }
    }
  }
}

TEST(a_packer_knows_the_piece_of_memory_that_a_box_reads) {
  Random random(9);
  const auto& simd = cpu::kGeneric.single_precision;
  std::int64_t found = 0;
  for (const testing::Layout layout : testing::kLayouts) {
    for (const ScalarType type : {ScalarType::kFloat32, ScalarType::kFloat16}) {
      for (int i = 0; i < 200; ++i) {
        const testing::Shape shape{pick(random, 1, 3), pick(random, 1, 5), pick(random, 1, 3), pick(random, 1, 4)};
        const testing::Images images(shape, type, layout);
        const ImageView& x = images.view();
        const auto part = [&](std::int64_t size) {
          const std::int64_t begin = pick(random, 0, 2) ? 0 : pick(random, 0, size - 1);
          return Range{begin, pick(random, 0, 2) ? size : pick(random, begin + 1, size)};
        };
        const Range n = part(x.batch), h = part(x.height), w = part(x.width);
        const auto packer = cpu::pack_pixels(simd, x, cpu::tile_channels(simd, 1, x.channels, false, true));
        const cpu::Ahead ahead = packer->source({n, h, w, h, w});
        check_source_in_order(x, n, h.size() == x.height && w.size() == x.width ? ahead : cpu::Ahead{}, random);
        const std::int64_t bytes = type == ScalarType::kFloat32 ? 4 : 2;
        const std::int64_t read = n.size() * x.channels * h.size() * w.size() * bytes;
        if (!ahead.next) {
          const bool all = layout == testing::Layout::kPlanes || layout == testing::Layout::kChannelsLast;
          CHECK(!all || read < x.batch * x.channels * x.height * x.width * bytes, "all of a dense batch");
          continue;
        }
        CHECK(ahead.end - ahead.next == read, "as many bytes as are read");
        ++found;
        const char* last = ahead.next;
        for (std::int64_t c = 0; c < x.channels; ++c) {
          for (const std::int64_t row : {h.begin, h.end - 1}) {
            for (const std::int64_t column : {w.begin, w.end - 1}) {
              for (const std::int64_t image : {n.begin, n.end - 1}) {
                const char* number =
                    static_cast<const char*>(x.data) + bytes * (image * x.batch_stride + c * x.channel_stride +
                                                                row * x.height_stride + column * x.width_stride);
                CHECK(ahead.next <= number, "none of them before");
                last = std::max(last, number);
              }
            }
          }
        }
        CHECK(last + bytes == ahead.end, "the last of them at its end");
      }
    }
  }
  CHECK(found > 500, std::to_string(found));
}

int main() { return check::run_tests(); }
