#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/panels.h"
#include "cpu/runs.h"
#include "images.h"
#include "lag_form/plan.h"

using namespace eigendamage;
using testing::pick;
using testing::Random;

namespace {

using Pixel = std::tuple<std::int64_t, std::int64_t>;

struct Problem {
  std::int64_t height, width;
  ConvGeometry geometry;
};

Problem random_problem(Random& random) {
  const std::int64_t height = pick(random, 1, 12), width = pick(random, 1, 12);
  return {height, width, {testing::random_axis(random, height, 5), testing::random_axis(random, width, 5)}};
}

std::string describe(const Problem& problem) {
  ImageView x{};
  x.height = problem.height, x.width = problem.width;
  return testing::describe(x, problem.geometry);
}

std::map<Pixel, std::int64_t> pixels_of(const Plan& plan, const Slot& slot) {
  std::map<Pixel, std::int64_t> pixels;
  for (std::int64_t i = slot.rectangles.begin; i < slot.rectangles.end; ++i) {
    const Rectangle& r = plan.rectangles[static_cast<std::size_t>(i)];
    for (std::int64_t v = 0; v < r.rows; ++v) {
      for (std::int64_t u = 0; u < r.columns; ++u) {
        pixels[{r.row + v * r.row_step, r.column + u * r.column_step}] += r.weight;
      }
    }
  }
  return pixels;
}

/// What a block sums: how often each pixel, and with which lag.
std::map<Pixel, std::int64_t> pixels_of(const Plan& plan, const Range& terms) {
  std::map<Pixel, std::int64_t> pixels;
  for (std::int64_t t = terms.begin; t < terms.end; ++t) {
    const auto slot = static_cast<std::size_t>(plan.terms[static_cast<std::size_t>(t)]);
    for (const auto& [pixel, times] : pixels_of(plan, plan.slots[slot])) pixels[pixel] += times;
  }
  return pixels;
}

}  // namespace

TEST(a_block_of_the_patch_plan_sums_each_pixel_of_its_windows_once) {
  Random random(1);
  for (int i = 0; i < 60; ++i) {
    const Problem problem = random_problem(random);
    const ConvAxis &v = problem.geometry.vertical, &h = problem.geometry.horizontal;
    const Plan plan = patch_plan(problem.geometry, problem.height, problem.width);
    std::map<std::tuple<std::int64_t, std::int64_t>, std::map<Pixel, std::int64_t>> expected;
    const auto inside = [&](std::int64_t row, std::int64_t column) {
      return 0 <= row && row < problem.height && 0 <= column && column < problem.width;
    };
    for (std::int64_t k1 = 0; k1 < plan.offsets; ++k1) {
      for (std::int64_t k2 = 0; k2 < plan.offsets; ++k2) {
        const std::int64_t down = v.dilation * (k2 / h.kernel - k1 / h.kernel);
        const std::int64_t right = h.dilation * (k2 % h.kernel - k1 % h.kernel);
        std::map<Pixel, std::int64_t> expected_pixels;
        for (std::int64_t th = 0; th < v.output; ++th) {
          for (std::int64_t tw = 0; tw < h.output; ++tw) {
            const std::int64_t row = v.stride * th + v.dilation * (k1 / h.kernel) - v.pad;
            const std::int64_t column = h.stride * tw + h.dilation * (k1 % h.kernel) - h.pad;
            if (inside(row, column) && inside(row + down, column + right)) ++expected_pixels[{row, column}];
          }
        }
        const Range terms = plan.blocks[static_cast<std::size_t>(k1 * plan.offsets + k2)];
        CHECK(pixels_of(plan, terms) == expected_pixels, describe(problem));
        for (std::int64_t g = 0; g < static_cast<std::int64_t>(plan.groups.size()); ++g) {
          const LagGroup& group = plan.groups[static_cast<std::size_t>(g)];
          for (std::int64_t t = terms.begin; t < terms.end; ++t) {
            const std::int64_t slot = plan.terms[static_cast<std::size_t>(t)];
            if (slot < group.slots.begin || slot >= group.slots.end) continue;
            CHECK(group.down == down && group.right == right, describe(problem));
            CHECK((k1 < k2) == (g >= plan.zero_lag.end), describe(problem));
            CHECK((k1 > k2) == (g < plan.zero_lag.begin), describe(problem));
          }
        }
      }
    }
  }
}

TEST(the_channel_plan_weighs_each_pixel_by_the_windows_that_cover_it) {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    const Problem problem = random_problem(random);
    const ConvAxis &v = problem.geometry.vertical, &h = problem.geometry.horizontal;
    std::map<Pixel, std::int64_t> expected;
    for (std::int64_t k = 0; k < v.kernel * h.kernel; ++k) {
      for (std::int64_t t = 0; t < v.output * h.output; ++t) {
        const std::int64_t row = v.stride * (t / h.output) + v.dilation * (k / h.kernel) - v.pad;
        const std::int64_t column = h.stride * (t % h.output) + h.dilation * (k % h.kernel) - h.pad;
        if (0 <= row && row < problem.height && 0 <= column && column < problem.width) ++expected[{row, column}];
      }
    }
    const Plan plan = channel_plan(problem.geometry, problem.height, problem.width);
    CHECK(pixels_of(plan, plan.blocks[0]) == expected, describe(problem));
  }
}

TEST(pixels_line_up_by_weight_and_keep_it) {
  Random random(7);
  for (int i = 0; i < 200; ++i) {
    const Problem problem = random_problem(random);
    const Plan plan = channel_plan(problem.geometry, problem.height, problem.width);
    const PixelLine line = line_up(plan);
    std::map<Pixel, std::int64_t> weights;
    std::int64_t last = 0;
    for (const Rectangle& r : line.plan.rectangles) {
      CHECK(r.row == 0 && r.rows == 1 && r.column_step == 1 && r.weight > last, describe(problem));
      last = r.weight;
      for (std::int64_t u = r.column; u < r.column + r.columns; ++u) {
        const std::int64_t pixel = line.pixels[static_cast<std::size_t>(u)];
        CHECK(weights.emplace(Pixel{pixel / problem.width, pixel % problem.width}, r.weight).second, describe(problem));
      }
    }
    CHECK(weights == pixels_of(plan, plan.blocks[0]), describe(problem));
    CHECK(line.plan.height == 1 && line.plan.width == static_cast<std::int64_t>(weights.size()), describe(problem));
    CHECK(line.plan.outputs == plan.outputs && line.plan.slots.size() == 1, describe(problem));
  }
}

TEST(boxes_and_their_run_lists_visit_every_position_of_a_slot_as_often_as_it_weighs) {
  Random random(3);
  for (int i = 0; i < 150; ++i) {
    const Problem problem = random_problem(random);
    const Plan plan = pick(random, 0, 1) ? patch_plan(problem.geometry, problem.height, problem.width)
                                         : channel_plan(problem.geometry, problem.height, problem.width);
    const std::int64_t images = pick(random, 0, 5), budget = pick(random, 1, 600);
    const std::int64_t listed = pick(random, 1, cpu::kMaxListed);
    const std::vector<cpu::Box> boxes = cpu::split_boxes(plan, images, budget);
    CHECK(!boxes.empty(), describe(problem));
    for (const Slot& slot : plan.slots) {
      std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> visits;
      for (const cpu::Box& box : boxes) {
        std::int64_t last = listed, last_weight = 0;
        cpu::for_each_run_list(
            plan, slot, box, listed, [&](const cpu::Run* runs, std::int64_t run_count, std::int64_t weight) {
              CHECK(last == listed || weight != last_weight, describe(problem));
              last = 0;
              last_weight = weight;
              for (const cpu::Run* run = runs; run != runs + run_count; ++run) {
                last += run->count;
                for (std::int64_t p = 0; p < run->count; ++p) {
                  const std::int64_t position = run->first + p * run->step, pixel = position / box.images.size();
                  const std::int64_t across = box.packed_columns.size();
                  visits[{box.images.begin + position % box.images.size(), box.packed_rows.begin + pixel / across,
                          box.packed_columns.begin + pixel % across}] += weight;
                }
              }
              CHECK(0 < last && last <= listed, describe(problem));
            });
      }
      std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> expected;
      for (std::int64_t n = 0; n < images; ++n) {
        for (const auto& [pixel, times] : pixels_of(plan, slot)) {
          expected[{n, std::get<0>(pixel), std::get<1>(pixel)}] = times;
        }
      }
      CHECK(visits == expected, describe(problem));
    }
  }
}

TEST(a_box_packs_all_that_its_lags_reach_and_keeps_to_the_budget) {
  Random random(4);
  for (int i = 0; i < 500; ++i) {
    const Problem problem = random_problem(random);
    const Plan plan = patch_plan(problem.geometry, problem.height, problem.width);
    const std::int64_t images = pick(random, 1, 9), budget = pick(random, 1, 400);
    const std::int64_t thin = (3 * plan.reach_down + 1) * 2 * (3 * plan.reach_right + 1);
    for (const cpu::Box& box : cpu::split_boxes(plan, images, budget)) {
      CHECK(box.positions() <= std::max(budget, 2 * thin), describe(problem));
      CHECK(box.packed_rows.begin == std::max<std::int64_t>(0, box.rows.begin - plan.reach_down), describe(problem));
      CHECK(box.packed_rows.end == std::min(problem.height, box.rows.end + plan.reach_down), describe(problem));
      CHECK(box.packed_columns.begin == std::max<std::int64_t>(0, box.columns.begin - plan.reach_right),
            describe(problem));
      CHECK(box.packed_columns.end == std::min(problem.width, box.columns.end + plan.reach_right), describe(problem));
    }
  }
}

int main() { return check::run_tests(); }
