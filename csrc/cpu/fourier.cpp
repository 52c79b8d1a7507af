#include "fourier.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace eigendamage::cpu {
namespace {

constexpr std::int64_t kBlock = 256;  // numbers of a line at a time, which the nearest cache holds folded

std::int64_t round_up(std::int64_t size, std::int64_t to) { return (size + to - 1) / to * to; }

}  // namespace

template <class T>
FourierAxis<T>::FourierAxis(const SpectralKernels<T>& kernels, std::int64_t tile_rows, std::int64_t count,
                            std::int64_t length)
    : kernels_(kernels), count_(count), length_(length) {
  cosine_stride_ = round_up(cosines(), tile_rows);
  sine_stride_ = round_up(sines(), tile_rows);
  cosine_of_.resize(static_cast<std::size_t>(cosines() * cosine_stride_));
  sine_of_.resize(static_cast<std::size_t>(sines() * sine_stride_));
  const auto angle = [&](std::int64_t k, std::int64_t f) {
    return 2 * std::numbers::pi * static_cast<double>(k * f % length) / static_cast<double>(length);
  };
  for (std::int64_t k = 0; k < cosines(); ++k) {
    for (std::int64_t f = 0; f < cosines(); ++f) {
      cosine_of_[static_cast<std::size_t>(k * cosine_stride_ + f)] = static_cast<T>(std::cos(angle(k, f)));
    }
  }
  for (std::int64_t k = 1; k <= sines(); ++k) {
    for (std::int64_t f = 1; f <= sines(); ++f) {
      sine_of_[static_cast<std::size_t>((k - 1) * sine_stride_ + f - 1)] = static_cast<T>(std::sin(angle(k, f)));
    }
  }
}

template <class T>
void FourierAxis<T>::transform(const T* x, std::int64_t step, std::int64_t numbers, T* scratch, T* out) const {
  for (std::int64_t i = 0; i < numbers; i += kBlock) {
    const std::int64_t block = std::min(kBlock, numbers - i);
    T *even = scratch, *odd = scratch + cosines() * block;
    kernels_.fold(x + i, step, count_, length_, block, even, odd);
    kernels_.multiply(cosine_of_.data(), cosine_stride_, even, cosines(), block, cosines(), numbers, out + i);
    if (sines() == 0) continue;
    kernels_.multiply(sine_of_.data(), sine_stride_, odd + block, sines(), block, sines(), numbers,
                      out + cosines() * numbers + i);
  }
}

Frequencies::Frequencies(std::int64_t rows, std::int64_t columns) {
  first_.resize(static_cast<std::size_t>(columns / 2 + 1));
  for (std::int64_t across = columns / 2; across >= 0; --across) {
    const bool own = 2 * across % columns == 0;  // the conjugate lies in the same column
    first_[static_cast<std::size_t>(across)] = count();
    for (std::int64_t down = own ? rows / 2 : rows - 1; down >= 0; --down) {
      list_.push_back({down, across, own && 2 * down % rows == 0});
    }
  }
}

template <class T>
Fourier<T>::Fourier(const SpectralKernels<T>& kernels, std::int64_t tile_rows, std::int64_t height, std::int64_t width,
                    std::int64_t rows, std::int64_t columns)
    : kernels_(kernels),
      height_(height),
      width_(width),
      down_(kernels, tile_rows, height, rows),
      across_(kernels, tile_rows, width, columns) {}

template <class T>
std::int64_t Fourier<T>::scratch(std::int64_t numbers) const {
  const std::int64_t row = across_.lines() * numbers;
  return (height_ + down_.lines()) * row + std::max(down_.folded(), across_.folded()) * std::min(kBlock, row);
}

template <class T>
void Fourier<T>::transform(const Frequencies& frequencies, const T* pixels, std::int64_t images, std::int64_t width,
                           T* scratch, std::int64_t step, T* out) const {
  const std::int64_t numbers = images * width, row = across_.lines() * numbers;
  T *half = scratch, *whole = half + height_ * row, *folded = whole + down_.lines() * row;
  for (std::int64_t h = 0; h < height_; ++h) {
    across_.transform(pixels + h * width_ * numbers, numbers, numbers, folded, half + h * row);
  }
  down_.transform(half, row, row, folded, whole);

  const T* sines = whole + (down_.cosines() - 1) * row;  // of 0, where there is none
  for (std::int64_t f = 0; f < across_.cosines(); ++f) {
    const bool both = f > 0 && f <= across_.sines();
    const std::int64_t re = f * numbers, im = (across_.cosines() + f - 1) * numbers;
    kernels_.unfold(whole + re, sines + re, both ? whole + im : nullptr, sines + im, row, down_.length(), width, images,
                    step, out + frequencies.first_of(f) * step);
  }
}

template class FourierAxis<float>;
template class FourierAxis<double>;
template class Fourier<float>;
template class Fourier<double>;

}  // namespace eigendamage::cpu
