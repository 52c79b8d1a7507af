#include "gradients.h"

#include <algorithm>

namespace eigendamage::cpu {
namespace {

/// The outputs whose pixel under kernel line i lies in the image.
struct Outputs {
  std::int64_t begin, end;
};

Outputs inside(const ConvAxis& axis, std::int64_t size, std::int64_t i) {
  const std::int64_t origin = axis.dilation * i - axis.pad;  // of output 0
  const auto outputs_before = [&](std::int64_t limit) {
    return std::clamp<std::int64_t>((limit - origin + axis.stride - 1) / axis.stride, 0, axis.output);
  };
  return {outputs_before(0), outputs_before(size)};
}

class Lister {
 public:
  Lister(OffsetRuns& offset, std::int64_t step, std::int64_t longest)
      : offset_(offset), step_(step), longest_(longest) {}

  void add(PairedRun run) {
    for (std::int64_t left = run.count; left > 0; left -= run.count) {
      if (held_ == longest_) finish();
      run.count = std::min(left, longest_ - held_);
      const PairedRun last = held_ > 0 ? offset_.runs.back() : PairedRun{};
      if (held_ > 0 && last.g + last.count == run.g && last.x + last.count * step_ == run.x) {
        offset_.runs.back().count += run.count;
      } else {
        offset_.runs.push_back(run);
      }
      held_ += run.count;
      run.g += run.count;
      run.x += run.count * step_;
    }
  }

  void finish() {
    if (held_ > 0) offset_.ends.push_back(static_cast<std::int64_t>(offset_.runs.size()));
    held_ = 0;
  }

 private:
  OffsetRuns& offset_;
  const std::int64_t step_, longest_;
  std::int64_t held_ = 0;
};

}  // namespace

std::vector<OffsetRuns> offset_runs(const ConvGeometry& geometry, std::int64_t height, std::int64_t width,
                                    std::int64_t longest) {
  const ConvAxis &v = geometry.vertical, &u = geometry.horizontal;
  std::vector<OffsetRuns> offsets(static_cast<std::size_t>(v.kernel * u.kernel));
  for (std::int64_t i = 0; i < v.kernel; ++i) {
    const Outputs rows = inside(v, height, i);
    for (std::int64_t j = 0; j < u.kernel; ++j) {
      const Outputs columns = inside(u, width, j);
      Lister lister(offsets[static_cast<std::size_t>(i * u.kernel + j)], u.stride, longest);
      for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        const std::int64_t h = v.stride * row + v.dilation * i - v.pad;
        const std::int64_t w = u.stride * columns.begin + u.dilation * j - u.pad;
        lister.add({row * u.output + columns.begin, h * width + w, columns.end - columns.begin});
      }
      lister.finish();
    }
  }
  return offsets;
}

}  // namespace eigendamage::cpu
