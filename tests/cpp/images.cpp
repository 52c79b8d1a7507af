#include "images.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <sstream>
#include <thread>

namespace testing {

using eigendamage::ConvAxis;
using eigendamage::ConvGeometry;
using eigendamage::FactorView;
using eigendamage::ImageView;
using eigendamage::ParallelFor;
using eigendamage::ScalarType;

namespace {

constexpr double kGap = 12345;

std::uint16_t to_half(double value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) << 15);
  if (std::isnan(value)) return sign | 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  int exponent;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, -14);  // value = ±1.… · 2^exponent, or subnormal
  const auto steps = static_cast<int>(std::ldexp(std::fabs(value), 10 - exponent));
  return static_cast<std::uint16_t>(sign | (steps >= 1024 ? ((exponent + 15) << 10) + steps - 1024 : steps));
}

}  // namespace

std::int64_t pick(Random& random, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random);
}

Images::Images(const Shape& s, ScalarType type, Layout layout)
    : view_{nullptr, type, s.batch, s.channels, s.height, s.width, 0, 0, 0, 0} {
  ImageView& v = view_;
  const std::int64_t pixels = s.height * s.width;
  switch (layout) {
    case Layout::kPlanes:
    case Layout::kExpanded:
      v.batch_stride = layout == Layout::kPlanes ? s.channels * pixels : 0;
      v.channel_stride = pixels, v.height_stride = s.width, v.width_stride = 1;
      break;
    case Layout::kChannelsLast:
      v.batch_stride = s.channels * pixels, v.channel_stride = 1;
      v.height_stride = s.width * s.channels, v.width_stride = s.channels;
      break;
    case Layout::kSliced:  // every third column of a larger image, of every second channel
      v.width_stride = 3, v.height_stride = 3 * s.width + 2, v.channel_stride = 2 * s.height * v.height_stride;
      v.batch_stride = s.channels * v.channel_stride + 5;
      break;
    case Layout::kTransposed:
      v.batch_stride = pixels, v.channel_stride = s.batch * pixels, v.height_stride = 1, v.width_stride = s.height;
      break;
  }
  std::int64_t elements = 0;
  if (s.batch * s.channels * pixels > 0) {
    elements = 1 + (s.batch - 1) * v.batch_stride + (s.channels - 1) * v.channel_stride +
               (s.height - 1) * v.height_stride + (s.width - 1) * v.width_stride;
  }
  storage_.resize(static_cast<std::size_t>(elements) * static_cast<std::size_t>(bytes_of(type)));
  view_.data = storage_.data();
}

void Images::store(std::size_t index, double value) {
  const auto put = [&](auto number) { std::memcpy(storage_.data() + index * sizeof number, &number, sizeof number); };
  switch (view_.type) {
    case ScalarType::kFloat32: return put(static_cast<float>(value));
    case ScalarType::kFloat64: return put(value);
    case ScalarType::kBFloat16:
      return put(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16));
    case ScalarType::kFloat16: return put(to_half(value));
  }
}

void Images::fill_integers(Random& random) {
  for (std::size_t i = 0; i < storage_.size() / static_cast<std::size_t>(bytes_of(view_.type)); ++i) {
    store(i, static_cast<double>(pick(random, -4, 4)));
  }
}

void Images::fill_normal(Random& random, double mean) {
  std::normal_distribution<double> normal(mean, 1.0);
  for (std::size_t i = 0; i < storage_.size() / static_cast<std::size_t>(bytes_of(view_.type)); ++i)
    store(i, normal(random));
}

void Images::set(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, double value) {
  store(static_cast<std::size_t>(n * view_.batch_stride + c * view_.channel_stride + h * view_.height_stride +
                                 w * view_.width_stride),
        value);
}

Output::Output(std::int64_t groups, std::int64_t size, ScalarType input_type, std::int64_t gap, Random& random)
    : groups_(groups),
      size_(size),
      row_stride_(size + gap),
      group_stride_(size * (size + gap) + gap),
      twice_(input_type == ScalarType::kFloat64) {
  if (twice_) {
    double_.assign(static_cast<std::size_t>(groups * group_stride_), kGap);
  } else {
    single_.assign(static_cast<std::size_t>(groups * group_stride_), static_cast<float>(kGap));
  }
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < size; ++r) {
      for (std::int64_t c = r; c < size; ++c) {
        const auto value = static_cast<double>(pick(random, -9, 9));
        set(index(g, r, c), value);
        set(index(g, c, r), value);
      }
    }
  }
}

FactorView Output::view() {
  if (twice_) return {double_.data(), ScalarType::kFloat64, groups_, size_, group_stride_, row_stride_};
  return {single_.data(), ScalarType::kFloat32, groups_, size_, group_stride_, row_stride_};
}

std::int64_t Output::index(std::int64_t group, std::int64_t row, std::int64_t column) const {
  return group * group_stride_ + row * row_stride_ + column;
}

double Output::number(std::int64_t index) const {
  const auto i = static_cast<std::size_t>(index);
  return twice_ ? double_[i] : static_cast<double>(single_[i]);
}

void Output::set(std::int64_t index, double value) {
  const auto i = static_cast<std::size_t>(index);
  if (twice_) {
    double_[i] = value;
  } else {
    single_[i] = static_cast<float>(value);
  }
}

double Output::at(std::int64_t group, std::int64_t row, std::int64_t column) const {
  return number(index(group, row, column));
}

std::vector<double> Output::values() const {
  std::vector<double> all;
  for (std::int64_t g = 0; g < groups_; ++g) {
    for (std::int64_t r = 0; r < size_; ++r) {
      for (std::int64_t c = 0; c < size_; ++c) all.push_back(at(g, r, c));
    }
  }
  return all;
}

void Output::fill(double value) {
  for (std::int64_t g = 0; g < groups_; ++g) {
    for (std::int64_t r = 0; r < size_; ++r) {
      for (std::int64_t c = 0; c < size_; ++c) set(index(g, r, c), value);
    }
  }
}

bool Output::gaps_untouched() const {
  std::int64_t next = 0;  // everything between one row's end and the next one's begin is a gap
  for (std::int64_t g = 0; g < groups_; ++g) {
    for (std::int64_t r = 0; r <= size_; ++r) {
      const std::int64_t end = r < size_ ? index(g, r, 0) : (g + 1) * group_stride_;
      for (; next < end; ++next) {
        if (number(next) != kGap) return false;
      }
      next += r < size_ ? size_ : 0;
    }
  }
  return true;
}

bool Output::symmetric() const {
  for (std::int64_t g = 0; g < groups_; ++g) {
    for (std::int64_t r = 0; r < size_; ++r) {
      for (std::int64_t c = 0; c < r; ++c) {
        const double a = at(g, r, c), b = at(g, c, r);
        if (a != b && !(std::isnan(a) && std::isnan(b))) return false;
      }
    }
  }
  return true;
}

ParallelFor threads(std::int64_t count) {
  return [count](std::int64_t items, const std::function<void(std::int64_t, std::int64_t)>& body) {
    if (count == 1 && items > 0) return body(0, items);
    std::vector<std::thread> pool;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t begin = items * i / count, end = items * (i + 1) / count;
      if (begin < end) pool.emplace_back([&body, begin, end] { body(begin, end); });
    }
    for (std::thread& thread : pool) thread.join();
  };
}

ConvAxis random_axis(Random& random, std::int64_t size, std::int64_t largest) {
  ConvAxis axis{};
  axis.kernel = pick(random, 1, largest);
  axis.stride = pick(random, 1, 3);
  axis.dilation = pick(random, 1, 2);
  axis.pad = pick(random, 0, axis.dilation * (axis.kernel - 1) + 1);
  const std::int64_t room = size + 2 * axis.pad - axis.dilation * (axis.kernel - 1) - 1;
  const std::int64_t most = room < 0 ? 0 : room / axis.stride + 1;
  // Fewer outputs leave lines at the end unread, one more reads padding after the image that is not before it.
  axis.output = std::max<std::int64_t>(0, most + pick(random, -1, 1));
  return axis;
}

std::string describe(const ImageView& x, const ConvGeometry& geometry) {
  std::ostringstream text;
  text << "x " << x.batch << "×" << x.channels << "×" << x.height << "×" << x.width << " type "
       << static_cast<int>(x.type) << " strides " << x.batch_stride << ' ' << x.channel_stride << ' ' << x.height_stride
       << ' ' << x.width_stride;
  for (const ConvAxis& a : {geometry.vertical, geometry.horizontal}) {
    text << "; kernel " << a.kernel << " stride " << a.stride << " pad " << a.pad << " dilation " << a.dilation
         << " output " << a.output;
  }
  return text.str();
}

}  // namespace testing
