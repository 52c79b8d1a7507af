#include <cstdint>
#include <set>
#include <vector>

#include "check.h"
#include "cuda/batches.cuh"
#include "images.h"

using namespace eigendamage;
using namespace eigendamage::cuda;

namespace {

ImageView image(std::int64_t batch, std::int64_t channels, std::int64_t size) {
  return {nullptr, ScalarType::kFloat32, batch, channels, size, size, channels * size * size, size * size, size, 1};
}

GramProblem problem(const ImageView& x, const Plan& plan) { return {x, plan, nullptr, {}, {}, false, {1, 0}, {}}; }

constexpr std::int64_t kBlocks = 3 * 132;

}  // namespace

TEST(every_stage_of_every_slot_is_in_one_part_and_every_block_in_one_batch) {
  testing::Random random(1);
  for (int i = 0; i < 100; ++i) {
    const ImageView x = image(testing::pick(random, 0, 500), 1, testing::pick(random, 1, 9));
    const ConvGeometry geometry{testing::random_axis(random, x.height, 5), testing::random_axis(random, x.width, 5)};
    const Plan plan = patch_plan(geometry, x.height, x.width);
    const RowTiling tiling(1, testing::pick(random, 1, 300));
    const std::int64_t most = testing::pick(random, 1, 100);
    std::set<std::pair<std::int64_t, std::int64_t>> blocks;
    for (const Batch& batch : make_batches(problem(x, plan), tiling, testing::pick(random, 1, 50), most)) {
      std::vector<std::int32_t> next(batch.walks.size(), 0);
      for (const Part& part : batch.parts) {
        CHECK(part.split == next[static_cast<std::size_t>(part.walk)]++, "parts of a walk in order");
      }
      std::int32_t first = 0;
      for (std::size_t w = 0; w < batch.walks.size(); ++w) {
        CHECK(batch.walks[w].splits == next[w] && batch.walks[w].first_partial == first, "partial sums side by side");
        first += batch.walks[w].splits;
      }
      const std::int64_t k = plan.offsets;
      CHECK(count(batch.blocks) == k * k, "a place for every block");
      for (std::int64_t i = 0; i < k * k; ++i) {
        const BlockTerms& block = batch.blocks[static_cast<std::size_t>(i)];
        if (block.end < 0) continue;
        CHECK(blocks.insert({i / k, i % k}).second && batch.any_block, "a block in two batches");
        for (std::int32_t t = block.begin; t < block.end; ++t) {
          const std::int32_t walk = batch.terms[static_cast<std::size_t>(t)];
          CHECK(0 <= walk && walk < static_cast<std::int32_t>(batch.walks.size()), "term");
        }
      }
    }
    const std::int64_t k = plan.offsets;
    CHECK(count(std::vector(blocks.begin(), blocks.end())) == (tiling.tiles > 1 ? k * k : k * (k + 1) / 2), "blocks");
  }
}

TEST(partial_sums_stay_within_their_memory) {
  const std::int64_t most = Schedule{}.partial_bytes / (kTile * kTile * 4);
  for (const std::int64_t kernel : {1, 3, 5, 7}) {
    for (const std::int64_t channels : {64, 128, 512, 2048}) {
      const ImageView x = image(512, channels, 16);
      const ConvAxis axis{kernel, 1, kernel / 2, 1, 16};
      const Plan plan = patch_plan({axis, axis}, 16, 16);
      for (const Batch& batch : make_batches(problem(x, plan), RowTiling(1, channels), kBlocks, most)) {
        CHECK(count(batch.parts) * batch.pairs_at_a_time <= most,
              std::to_string(kernel) + " " + std::to_string(channels));
      }
    }
  }
}

TEST(blocks_of_one_slot_fill_the_device_once) {
  for (const std::int64_t channels : {64, 128, 256}) {
    const ImageView x = image(512, channels, 32);
    const Plan plan = dense_plan(32, 32);
    const RowTiling tiling(1, channels);
    const std::vector<Batch> batches = make_batches(problem(x, plan), tiling, kBlocks, 1 << 20);
    const std::int64_t blocks = count(batches[0].parts) * tiling.pairs;
    CHECK(batches.size() == 1 && blocks <= kBlocks && 10 * blocks >= 9 * kBlocks, std::to_string(blocks));
  }
}

int main() { return check::run_tests(); }
