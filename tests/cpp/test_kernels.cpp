#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cpu/covariances.h"
#include "cpu/simd.h"
#include "images.h"
#include "reference.h"

using namespace eigendamage;
using testing::check_output;
using testing::choose;
using testing::Images;
using testing::Layout;
using testing::Output;
using testing::pick;
using testing::Problem;
using testing::Random;
using testing::random_problem;
using testing::random_update;

namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Small enough that small inputs take many boxes, bands and passes.
constexpr cpu::Limits kTinyLimits{0, 0, 1, 1, 1, 1};
constexpr cpu::Limits kSmallLimits{1 << 14, 1 << 16, 1 << 13, 1 << 12, 1 << 11, 1 << 13};
constexpr cpu::Limits kNothingKept{0, 0, 1 << 14, 1 << 14, 1 << 13, 1 << 15};
constexpr cpu::Limits kAllKept{1 << 30, 1 << 30, 1 << 13, 0, 0, 0};

cpu::Tuning random_tuning(Random& random) {
  const cpu::Limits limits[] = {{}, kTinyLimits, kSmallLimits, kNothingKept, kAllKept};
  const cpu::PatchForm forms[] = {cpu::PatchForm::kCheaper, cpu::PatchForm::kLags, cpu::PatchForm::kDirect,
                                  cpu::PatchForm::kTiledLags};
  cpu::Tuning tuning{forms[pick(random, 0, 3)], limits[pick(random, 0, 4)], pick(random, 0, 2) ? 0.0 : 4e6};
  if (pick(random, 0, 3)) tuning.tiles = 0;
  return tuning;
}

/// The best one half of the time.
void force_random_instruction_set(Random& random) {
  const auto sets = cpu::supported_instruction_sets();
  const auto last = static_cast<std::int64_t>(sets.size()) - 1;
  cpu::force_instruction_set(*sets[static_cast<std::size_t>(pick(random, 0, 1) ? 0 : pick(random, 0, last))]);
}

/// Runs launch(view, update, execution) on an output of random content and checks the result.
template <class Launch>
void check_kernel(Random& random, std::int64_t groups, std::int64_t size, const ImageView& x,
                  const std::vector<double>& sum, const std::string& message, const Launch& launch) {
  const Update update = random_update(random);
  Output out(groups, size, x.type, pick(random, 0, 2), random);
  const std::vector<double> before = out.values();
  if (update.beta == 0) out.fill(kNan);
  const ParallelFor parallel_for = testing::threads(pick(random, 0, 4) ? 1 : 3);
  launch(update, out.view(), Execution{&parallel_for});
  check_output(out, before, sum, update,
               message + " groups " + std::to_string(groups) + " " + cpu::instruction_set().name);
}

}  // namespace

TEST(covariance_equals_the_reference) {
  Random random(1);
  for (int i = 0; i < 150; ++i) {
    force_random_instruction_set(random);
    const Problem p = random_problem(random);
    testing::Shape shape = p.shape;
    if (pick(random, 0, 2) == 0) shape = {pick(random, 1, 3000), shape.channels, 1, 1};
    Images x(shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const bool bias = pick(random, 0, 1);
    const cpu::Tuning tuning = random_tuning(random);
    check_kernel(random, p.groups, shape.channels / p.groups + bias, x.view(),
                 reference::covariance(x.view(), p.groups, bias), testing::describe(x.view(), {}),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::covariance(x.view(), bias, update, out, run, tuning);
                 });
  }
}

TEST(channel_covariance_equals_the_reference) {
  Random random(2);
  for (int i = 0; i < 200; ++i) {
    force_random_instruction_set(random);
    const Problem p = random_problem(random);
    Images x(p.shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const cpu::Tuning tuning = random_tuning(random);
    check_kernel(random, p.groups, p.shape.channels / p.groups, x.view(),
                 reference::channel_covariance(x.view(), p.geometry, p.groups), testing::describe(x.view(), p.geometry),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::channel_covariance(x.view(), p.geometry, update, out, run, tuning);
                 });
  }
}

TEST(pixels_of_equal_weight_lie_side_by_side_in_whole_images_and_parts) {
  Random random(23);
  for (int i = 0; i < 120; ++i) {
    force_random_instruction_set(random);
    testing::Shape shape{pick(random, 4, 9), pick(random, 1, 70), pick(random, 1, 9), pick(random, 1, 9)};
    if (i % 8 == 0) shape.channels = 3, shape.height = 17, shape.width = 33;  // more than is transposed at a time
    const ConvGeometry geometry{{3, 1, 1, 1, shape.height}, testing::random_axis(random, shape.width, 4)};
    constexpr Layout kLines[] = {Layout::kPlanes, Layout::kChannelsLast};
    Images x(shape, choose(random, testing::kTypes), choose(random, kLines));
    x.fill_integers(random);
    cpu::Tuning tuning;
    tuning.tiles = 1e18;
    if (pick(random, 0, 1))
      tuning.limits = {0, 0, 1 << 14, 1 << 18, 1 << 13, 1 << 12, 1 << 15};  // less than an image in a box
    check_kernel(random, 1, shape.channels, x.view(), reference::channel_covariance(x.view(), geometry, 1),
                 testing::describe(x.view(), geometry),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::channel_covariance(x.view(), geometry, update, out, run, tuning);
                 });
  }
}

TEST(patch_covariance_equals_the_reference) {
  Random random(3);
  for (int i = 0; i < 350; ++i) {
    force_random_instruction_set(random);
    const Problem p = random_problem(random);
    Images x(p.shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const bool bias = pick(random, 0, 1);
    const cpu::Tuning tuning = random_tuning(random);
    const std::int64_t offsets = p.geometry.vertical.kernel * p.geometry.horizontal.kernel;
    check_kernel(random, p.groups, p.shape.channels / p.groups * offsets + bias, x.view(),
                 reference::patch_covariance(x.view(), p.geometry, p.groups, bias),
                 testing::describe(x.view(), p.geometry) + " form " + std::to_string(static_cast<int>(tuning.form)) +
                     " kept " + std::to_string(tuning.limits.kept),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::patch_covariance(x.view(), p.geometry, bias, update, out, run, tuning);
                 });
  }
}

/// A patch covariance in aligned memory whose rows are whole vectors apart, and the numbers between them.
template <class T>
std::vector<T> aligned_patch_covariance(const Images& x, const ConvGeometry& geometry, std::int64_t groups, bool bias,
                                        std::int64_t threads, const cpu::Tuning& tuning) {
  const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
  const std::int64_t size = x.view().channels / groups * offsets + bias;
  const std::int64_t stride = (size + 15) / 16 * 16 + 16, count = groups * size * stride;
  const cpu::Buffer<T> out = cpu::make_buffer<T>(count);
  std::fill_n(out.get(), count, T(99));
  const ParallelFor parallel_for = testing::threads(threads);
  cpu::patch_covariance(x.view(), geometry, bias, {0.25, 0},
                        {out.get(), x.view().type, groups, size, size * stride, stride}, {&parallel_for}, tuning);
  return {out.get(), out.get() + count};
}

TEST(results_written_around_the_caches_are_the_same) {
  const ConvGeometry geometries[] = {{{3, 1, 1, 1, 4}, {3, 1, 1, 1, 5}},
                                     {{2, 1, 0, 1, 3}, {2, 1, 0, 1, 4}},
                                     {{1, 1, 0, 1, 4}, {3, 2, 1, 1, 3}},
                                     {{1, 1, 0, 1, 4}, {1, 1, 0, 1, 5}}};
  Random random(8);
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    for (const auto& [channels, groups] : {std::pair<std::int64_t, std::int64_t>{64, 1}, {72, 1}, {192, 2}, {6, 2}}) {
      Images single({3, channels, 4, 5}, ScalarType::kFloat32, Layout::kPlanes);
      Images twofold({3, channels, 4, 5}, ScalarType::kFloat64, Layout::kPlanes);
      single.fill_normal(random, 0.5);
      twofold.fill_normal(random, 0.5);
      for (const ConvGeometry& geometry : geometries) {
        for (const cpu::PatchForm form :
             {cpu::PatchForm::kLags, cpu::PatchForm::kDirect, cpu::PatchForm::kSpectral, cpu::PatchForm::kTiledLags}) {
          cpu::Tuning through{form}, around{form};
          through.limits = around.limits = pick(random, 0, 1) ? cpu::Limits{} : kNothingKept;
          around.around = 0;
          through.tiles = around.tiles = pick(random, 0, 1) ? 0 : through.tiles;
          const bool bias = pick(random, 0, 2) == 0;
          const std::string message = testing::describe(single.view(), geometry) + " " + set->name;
          for (const std::int64_t threads : {1, 3}) {
            CHECK(aligned_patch_covariance<float>(single, geometry, groups, bias, threads, around) ==
                      aligned_patch_covariance<float>(single, geometry, groups, bias, 1, through),
                  message + " float");
            CHECK(aligned_patch_covariance<double>(twofold, geometry, groups, bias, threads, around) ==
                      aligned_patch_covariance<double>(twofold, geometry, groups, bias, 1, through),
                  message + " double");
          }
        }
      }
    }
  }
}

TEST(every_instruction_set_and_type_handles_seventy_channels) {
  Random random(4);
  const ConvGeometry geometry{{2, 1, 1, 1, 5}, {2, 1, 0, 1, 3}};
  for (const std::int64_t channels : {64, 70}) {
    const testing::Shape shape{2, channels, 4, 4};
    Images same(shape, ScalarType::kFloat64, Layout::kPlanes);
    Random content(5);
    same.fill_integers(content);
    const std::vector<double> expected = reference::patch_covariance(same.view(), geometry, 1, true);
    for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
      cpu::force_instruction_set(*set);
      for (const ScalarType type : testing::kTypes) {
        Images x(shape, type, Layout::kPlanes);
        content.seed(5);
        x.fill_integers(content);
        check_kernel(random, 1, channels * 4 + 1, x.view(), expected, testing::describe(x.view(), geometry),
                     [&](const Update& update, const FactorView& out, const Execution& run) {
                       cpu::patch_covariance(x.view(), geometry, true, update, out, run, {});
                     });
      }
    }
  }
}

TEST(an_empty_sum_only_scales_the_output) {
  Random random(5);
  const ConvGeometry some{{3, 1, 1, 1, 4}, {3, 1, 1, 1, 5}}, none{{3, 1, 1, 1, 0}, {3, 1, 1, 1, 5}};
  const ConvGeometry beside{{1, 1, 3, 1, 2}, {1, 1, 0, 1, 5}};  // every window lies in the padding
  for (int i = 0; i < 60; ++i) {
    force_random_instruction_set(random);
    const bool empty_batch = i % 3 == 0;
    const ConvGeometry& geometry = empty_batch ? some : i % 3 == 1 ? none : beside;
    Images x({empty_batch ? 0 : 2, 6, 4, 5}, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const cpu::Tuning tuning = random_tuning(random);
    const std::int64_t groups = pick(random, 1, 2), offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
    check_kernel(random, groups, 6 / groups, x.view(), std::vector<double>(static_cast<std::size_t>(36 / groups)),
                 "channel", [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::channel_covariance(x.view(), geometry, update, out, run, tuning);
                 });
    check_kernel(random, groups, 6 / groups * offsets + 1, x.view(),
                 reference::patch_covariance(x.view(), geometry, groups, true), "patch",
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::patch_covariance(x.view(), geometry, true, update, out, run, tuning);
                 });
    if (!empty_batch) continue;
    check_kernel(random, groups, 6 / groups + 1, x.view(), reference::covariance(x.view(), groups, true), "covariance",
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::covariance(x.view(), true, update, out, run, tuning);
                 });
  }
}

TEST(blocks_of_panels_are_summed_box_after_box) {
  Random random(11);
  for (const std::int64_t groups : {1, 2}) {
    Images x({40, 700, 1, 1}, ScalarType::kFloat32, Layout::kPlanes);
    x.fill_integers(random);
    const std::vector<double> expected = reference::covariance(x.view(), groups, true);
    for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
      cpu::force_instruction_set(*set);
      for (const std::int64_t packed : {16 << 20, 1 << 16}) {  // one batch of boxes, several
        cpu::Tuning tuning;
        tuning.limits = {0, 0, 0, 0, 1 << 19, 1 << 13, packed};
        tuning.tiles = packed == 1 << 16 ? 0 : tuning.tiles;
        check_kernel(random, groups, 700 / groups + 1, x.view(), expected, testing::describe(x.view(), {}),
                     [&](const Update& update, const FactorView& out, const Execution& run) {
                       cpu::covariance(x.view(), true, update, out, run, tuning);
                     });
      }
    }
  }
}

TEST(images_larger_than_a_box_are_cut_into_bands) {
  Random random(6);
  const ConvGeometry tall{{3, 1, 1, 2, 700}, {3, 1, 0, 1, 10}}, wide{{3, 2, 1, 1, 6}, {3, 1, 2, 2, 1500}};
  for (const bool is_tall : {false, true}) {
    const ConvGeometry& geometry = is_tall ? tall : wide;
    Images x({1, 2, is_tall ? 702 : 11, is_tall ? 12 : 1500}, ScalarType::kFloat32, Layout::kPlanes);
    x.fill_integers(random);
    const std::vector<double> expected = reference::patch_covariance(x.view(), geometry, 1, true);
    for (const cpu::PatchForm form : {cpu::PatchForm::kLags, cpu::PatchForm::kDirect}) {
      const cpu::Tuning tuning{form, {4 << 20, 1 << 15, 0, 0}};
      check_kernel(random, 1, 19, x.view(), expected, testing::describe(x.view(), geometry),
                   [&](const Update& update, const FactorView& out, const Execution& run) {
                     cpu::patch_covariance(x.view(), geometry, true, update, out, run, tuning);
                   });
    }
  }
}

TEST(patches_of_large_images_are_staged_in_parts) {
  Random random(9);
  const ConvGeometry near{{3, 2, 1, 1, 30}, {3, 2, 1, 1, 26}}, far{{2, 9, 3, 20, 5}, {3, 7, 8, 11, 8}};
  for (const ConvGeometry& geometry : {near, far}) {
    for (const testing::Shape& shape : {testing::Shape{2, 12, 60, 52}, testing::Shape{9, 3, 60, 52}}) {
      for (const ScalarType type : {ScalarType::kFloat32, ScalarType::kFloat64, ScalarType::kBFloat16}) {
        force_random_instruction_set(random);
        Images x(shape, type, choose(random, testing::kLayouts));
        x.fill_integers(random);
        const std::int64_t offsets = geometry.vertical.kernel * geometry.horizontal.kernel;
        check_kernel(random, 1, shape.channels * offsets + 1, x.view(),
                     reference::patch_covariance(x.view(), geometry, 1, true), testing::describe(x.view(), geometry),
                     [&](const Update& update, const FactorView& out, const Execution& run) {
                       cpu::patch_covariance(x.view(), geometry, true, update, out, run, {cpu::PatchForm::kDirect, {}});
                     });
      }
    }
  }
}

TEST(kernels_of_one_pixel_read_no_other) {
  Random random(10);
  for (int i = 0; i < 60; ++i) {
    force_random_instruction_set(random);
    const testing::Shape shape{pick(random, 1, 5), pick(random, 1, 40), pick(random, 1, 9), pick(random, 1, 9)};
    Images x(shape, choose(random, testing::kTypes), choose(random, testing::kLayouts));
    x.fill_integers(random);
    const auto axis = [&](std::int64_t size) {
      const std::int64_t stride = pick(random, 1, 4), pad = pick(random, 0, 3) / 3;
      return ConvAxis{1, stride, pad, pick(random, 1, 9), (size + 2 * pad - 1) / stride + 1 + pick(random, -1, 1)};
    };
    const ConvGeometry geometry{axis(shape.height), axis(shape.width)};
    const bool bias = pick(random, 0, 1);
    const cpu::Tuning tuning = random_tuning(random);
    check_kernel(random, 1, shape.channels + bias, x.view(), reference::patch_covariance(x.view(), geometry, 1, bias),
                 testing::describe(x.view(), geometry),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::patch_covariance(x.view(), geometry, bias, update, out, run, tuning);
                 });
    check_kernel(random, 1, shape.channels, x.view(), reference::channel_covariance(x.view(), geometry, 1),
                 testing::describe(x.view(), geometry),
                 [&](const Update& update, const FactorView& out, const Execution& run) {
                   cpu::channel_covariance(x.view(), geometry, update, out, run, tuning);
                 });
  }
}

TEST(non_finite_numbers_show_in_their_channel_and_nowhere_else) {
  Random random(7);
  const ConvGeometry geometry{{2, 3, 0, 1, 2}, {2, 3, 0, 1, 2}};  // reads lines 0, 1, 3, 4 of 6
  for (const Layout layout : testing::kLayouts) {
    for (const cpu::PatchForm form : {cpu::PatchForm::kLags, cpu::PatchForm::kDirect}) {
      force_random_instruction_set(random);
      Images x({2, 5, 6, 6}, ScalarType::kFloat32, layout);
      x.fill_integers(random);
      x.set(0, 3, 4, 1, kNan);
      x.set(0, 1, 2, 1, std::numeric_limits<double>::infinity());  // where no window reads
      const ParallelFor parallel_for = testing::threads(1);
      const Execution run{&parallel_for};
      Output channel(1, 5, ScalarType::kFloat32, 0, random), patch(1, 20, ScalarType::kFloat32, 0, random);
      cpu::channel_covariance(x.view(), geometry, {1, 0}, channel.view(), run, {});
      cpu::patch_covariance(x.view(), geometry, false, {1, 0}, patch.view(), run, {form, {}});
      for (std::int64_t i = 0; i < 5; ++i) {
        for (std::int64_t j = 0; j < 5; ++j) {
          CHECK(std::isnan(channel.at(0, i, j)) == (i == 3 || j == 3), "channel");
          CHECK(!std::isinf(channel.at(0, i, j)), "channel");
        }
      }
      for (std::int64_t i = 0; i < 20; ++i) {
        for (std::int64_t j = 0; j < 20; ++j) {
          // Pixel (4, 1) is read by kernel offset (1, 1) alone, number 3.
          CHECK(std::isnan(patch.at(0, i, j)) == (i == 15 || j == 15), "patch");
          CHECK(!std::isinf(patch.at(0, i, j)), "patch");
        }
      }
    }
  }
}

TEST(matrix_units_leave_numbers_that_are_not_finite_to_others) {
  const auto sets = cpu::supported_instruction_sets();
  if (!sets.front()->single_precision.tiles) return;
  Random random(12);
  const ConvGeometry geometry{{3, 1, 1, 1, 8}, {3, 1, 1, 1, 8}};
  const double largest = std::numeric_limits<float>::max();
  for (const double special : {kNan, std::numeric_limits<double>::infinity(), largest, 1e25, 3.0}) {
    for (const Layout layout : testing::kLayouts) {
      for (const std::int64_t packed : {16 << 20, 1 << 14}) {  // of one batch of boxes, of several
        Images x({8, 70, 8, 8}, ScalarType::kFloat32, layout);
        x.fill_integers(random);
        x.set(pick(random, 0, 7), pick(random, 0, 69), pick(random, 0, 7), pick(random, 0, 7), special);
        const ParallelFor parallel_for = testing::threads(3);
        const Execution run{&parallel_for};
        cpu::Tuning tuning;
        tuning.tiles = 0;
        tuning.limits.packed = packed;
        tuning.limits.kept = pick(random, 0, 1) << 20;
        Output by_tiles(1, 70, ScalarType::kFloat32, 0, random), without(1, 70, ScalarType::kFloat32, 0, random);
        for (const double beta : {0.0, 1.0}) {
          cpu::force_instruction_set(*sets[0]);
          cpu::channel_covariance(x.view(), geometry, {1, beta}, by_tiles.view(), run, tuning);
          cpu::force_instruction_set(*sets[1]);
          cpu::channel_covariance(x.view(), geometry, {1, beta}, without.view(), run, tuning);
        }
        for (std::int64_t i = 0; i < 70; ++i) {
          for (std::int64_t j = 0; j < 70; ++j) {
            const double a = by_tiles.at(0, i, j), b = without.at(0, i, j);
            CHECK(a == b || (std::isnan(a) && std::isnan(b)), testing::describe(x.view(), geometry));
          }
        }
      }
    }
  }
}

TEST(lags_in_tiles_are_those_of_vectors_whether_finite_or_not) {
  const auto sets = cpu::supported_instruction_sets();
  if (!sets.front()->single_precision.tiles) return;
  Random random(13);
  const ConvGeometry geometry{{3, 2, 1, 1, 3}, {3, 1, 1, 1, 5}};
  for (const double special : {kNan, std::numeric_limits<double>::infinity(), 1e25, 3.0}) {
    for (const cpu::Limits& limits : {cpu::Limits{}, cpu::Limits{.kept = 0}, kNothingKept, kAllKept}) {
      for (const std::int64_t images : {3, 70}) {
        Images x({images, 33, 5, 5}, ScalarType::kFloat32, choose(random, testing::kLayouts));
        x.fill_integers(random);
        x.set(pick(random, 0, images - 1), pick(random, 0, 32), pick(random, 0, 4), pick(random, 0, 4), special);
        const ParallelFor parallel_for = testing::threads(3);
        cpu::Tuning tuning{cpu::PatchForm::kTiledLags, limits};
        Output by_tiles(1, 298, ScalarType::kFloat32, 0, random), without(1, 298, ScalarType::kFloat32, 0, random);
        for (const double beta : {0.0, 1.0}) {
          cpu::force_instruction_set(*sets[0]);
          cpu::patch_covariance(x.view(), geometry, true, {1, beta}, by_tiles.view(), {&parallel_for}, tuning);
          cpu::force_instruction_set(*sets[1]);
          cpu::patch_covariance(x.view(), geometry, true, {1, beta}, without.view(), {&parallel_for}, tuning);
        }
        for (std::int64_t i = 0; i < 298; ++i) {
          for (std::int64_t j = 0; j < 298; ++j) {
            const double a = by_tiles.at(0, i, j), b = without.at(0, i, j);
            CHECK(a == b || (std::isnan(a) && std::isnan(b)), testing::describe(x.view(), geometry));
          }
        }
      }
    }
  }
}

TEST(the_table_holds_the_kernels) {
  Random random(8);
  force_random_instruction_set(random);
  const Kernels& kernels = *cpu_kernels();
  CHECK(std::string(kernels.instruction_set()) == cpu::instruction_set().name, "name");
  CHECK(cuda_kernels() == nullptr || std::string(cuda_kernels()->instruction_set()).starts_with("sm_"), "cuda");
  Images x({3, 4, 6, 5}, ScalarType::kFloat32, Layout::kPlanes);
  x.fill_integers(random);
  const ConvGeometry geometry{{3, 1, 1, 1, 6}, {3, 1, 1, 1, 5}};
  check_kernel(random, 2, 3, x.view(), reference::covariance(x.view(), 2, true), "covariance",
               [&](const Update& update, const FactorView& out, const Execution& run) {
                 kernels.covariance(x.view(), true, update, out, run);
               });
  check_kernel(random, 2, 2, x.view(), reference::channel_covariance(x.view(), geometry, 2), "channel_covariance",
               [&](const Update& update, const FactorView& out, const Execution& run) {
                 kernels.channel_covariance(x.view(), geometry, update, out, run);
               });
  check_kernel(random, 2, 19, x.view(), reference::patch_covariance(x.view(), geometry, 2, true), "patch_covariance",
               [&](const Update& update, const FactorView& out, const Execution& run) {
                 kernels.patch_covariance(x.view(), geometry, true, update, out, run);
               });
}

int main() { return check::run_tests(); }
