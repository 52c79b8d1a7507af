// One call of one kernel, on one thread, for valgrind to count: counted KERNEL. See tests/test_instruction_counts.py.

#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels.h"

using namespace eigendamage;

namespace {

std::vector<float> values(std::int64_t count) {
  std::vector<float> list(static_cast<std::size_t>(count));
  std::uint32_t state = 1;
  for (float& value : list) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return list;
}

const ParallelFor kSerial = [](std::int64_t count, const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count > 0) body(0, count);
};
const Execution kRun{&kSerial, nullptr};
const Update kOverwrite{1, 0};
const ConvGeometry k3x3{{3, 1, 1, 1, 16}, {3, 1, 1, 1, 16}};  // padded by one, on 16×16 pixels
constexpr std::int64_t kImages = 8, kChannels = 40, kSide = 16, kPixels = kSide * kSide;

ImageView images(const std::vector<float>& data) {
  return {data.data(), ScalarType::kFloat32, kImages, kChannels, kSide, kSide, kChannels * kPixels, kPixels, kSide, 1};
}

FactorView factor(std::vector<float>& data, std::int64_t size) {
  data.resize(static_cast<std::size_t>(size * size));
  return {data.data(), ScalarType::kFloat32, 1, size, size * size, size};
}

}  // namespace

/// Instructions are counted while this runs.
extern "C" __attribute__((noinline)) void counted(const std::function<void()>& call) { call(); }

int main(int argc, char** argv) {
  const char* kernel = argc > 1 ? argv[1] : "";
  const Kernels& kernels = *cpu_kernels();
  const std::vector<float> x = values(kImages * kChannels * kPixels);
  std::vector<float> sums;
  if (std::strcmp(kernel, "channel_covariance") == 0) {
    const FactorView out = factor(sums, kChannels);
    counted([&] { kernels.channel_covariance(images(x), k3x3, kOverwrite, out, kRun); });
  } else if (std::strcmp(kernel, "patch_covariance") == 0) {
    const FactorView out = factor(sums, kChannels * 9);
    counted([&] { kernels.patch_covariance(images(x), k3x3, false, kOverwrite, out, kRun); });
  } else if (std::strcmp(kernel, "gradient_second_moment") == 0) {
    sums.resize(static_cast<std::size_t>(kChannels * kChannels * 9));
    const WeightView out{sums.data(), ScalarType::kFloat32, kChannels, kChannels, kChannels * 9, 9, 3, 1};
    counted([&] { kernels.gradient_second_moment(images(x), images(x), k3x3, kOverwrite, out, kRun); });
  } else {
    std::fprintf(stderr, "counted: KERNEL must be one of this program's, got \"%s\"\n", kernel);
    return 2;
  }
  std::printf("%s %s\n", kernels.instruction_set(), kernel);
  return 0;
}
