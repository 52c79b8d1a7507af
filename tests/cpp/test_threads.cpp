#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/covariances.h"
#include "cpu/parallel.h"
#include "images.h"

using namespace eigendamage;
using testing::Images;
using testing::Output;
using testing::Random;

namespace {

/// Runs launch(out, execution) on 1, 2 and 5 threads and compares bit for bit.
template <class Launch>
void check_threads(const ImageView& x, std::int64_t groups, std::int64_t size, const Launch& launch) {
  std::vector<double> alone;
  for (const std::int64_t threads : {1, 2, 5}) {
    Random random(1);
    Output out(groups, size, x.type, 1, random);
    const ParallelFor parallel_for = testing::threads(threads);
    launch(out.view(), Execution{&parallel_for});
    if (threads == 1) alone = out.values();
    CHECK(out.values() == alone, std::to_string(threads) + " threads");
  }
}

}  // namespace

TEST(results_do_not_depend_on_the_number_of_threads) {
  const ConvGeometry geometry{{3, 1, 1, 1, 12}, {3, 1, 1, 1, 11}};
  const Update update{0.3, 0.7};
  const cpu::Limits default_limits, few_kept{1 << 16, 1 << 18, 1 << 16, 1 << 15, 1 << 16, 1 << 14, 1 << 16};
  for (const cpu::Limits& limits : {default_limits, few_kept}) {
    for (const std::int64_t channels : {6, 36}) {
      for (const std::int64_t groups : {1, 2}) {
        Random random(2);
        Images x({17, channels, 12, 11}, ScalarType::kFloat32, testing::Layout::kPlanes);
        x.fill_normal(random, 0.5);
        const std::int64_t each = channels / groups;
        check_threads(x.view(), groups, each + 1, [&](const FactorView& out, const Execution& run) {
          cpu::covariance(x.view(), true, update, out, run, {cpu::PatchForm::kCheaper, limits, 0});
        });
        check_threads(x.view(), groups, each, [&](const FactorView& out, const Execution& run) {
          cpu::channel_covariance(x.view(), geometry, update, out, run, {cpu::PatchForm::kCheaper, limits, 0});
        });
        for (const cpu::PatchForm form : {cpu::PatchForm::kLags, cpu::PatchForm::kDirect, cpu::PatchForm::kSpectral}) {
          check_threads(x.view(), groups, each * 9 + 1, [&](const FactorView& out, const Execution& run) {
            cpu::patch_covariance(x.view(), geometry, true, update, out, run, {form, limits, 0});
          });
        }
      }
    }
  }
}

TEST(a_thread_knows_what_it_takes_next) {
  for (const std::int64_t threads : {1, 3}) {
    for (const std::int64_t items : {0, 1, 2, 20}) {
      std::vector<std::atomic<int>> taken(static_cast<std::size_t>(items));
      cpu::for_each_knowing_next(testing::threads(threads), items, [&](std::int64_t i, std::int64_t next) {
        static thread_local std::int64_t expected = 0;
        CHECK(taken[static_cast<std::size_t>(i)]++ == 0, "an item twice");
        CHECK(i < next && next <= items && (threads > 1 || i == 0 || i == expected), std::to_string(next));
        expected = next;
      });
      for (const std::atomic<int>& times : taken) CHECK(times == 1, "an item left out");
    }
  }
}

TEST(every_thread_has_an_item_where_there_are_as_many) {
  constexpr std::int64_t kThreads = 4;
  std::atomic<std::int64_t> begun{0};
  cpu::for_each_knowing_next(testing::threads(kThreads), kThreads, [&](std::int64_t, std::int64_t) {
    ++begun;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (begun < kThreads && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    CHECK(begun == kThreads, "a thread keeps items for itself");
  });
}

int main() { return check::run_tests(); }
