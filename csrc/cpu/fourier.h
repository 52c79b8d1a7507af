#pragma once

#include <cstdint>
#include <vector>

#include "simd.h"

namespace eigendamage::cpu {

/// Σ_k x[k] cos(2π·k·f/length) and Σ_k x[k] sin(2π·k·f/length) of `count` real lines, zero after them, for 0 ≤ f ≤ length/2.
/// Lines k and length − k are folded first, which halves the work: about length²/2 multiply-adds of lines.
template <class T>
class FourierAxis {
 public:
  FourierAxis(const SpectralKernels<T>& kernels, std::int64_t tile_rows, std::int64_t count, std::int64_t length);

  std::int64_t length() const { return length_; }
  std::int64_t cosines() const { return length_ / 2 + 1; }
  std::int64_t sines() const { return (length_ - 1) / 2; }  ///< of f = 1 and on; the others are zero
  std::int64_t lines() const { return cosines() + sines(); }
  std::int64_t folded() const { return 2 * cosines(); }  ///< lines of scratch

  /// Lines of x, of `numbers`, are `step` apart. The lines of cosines go to out, then the sines.
  void transform(const T* x, std::int64_t step, std::int64_t numbers, T* scratch, T* out) const;

 private:
  const SpectralKernels<T>& kernels_;
  std::int64_t count_, length_, cosine_stride_, sine_stride_;
  std::vector<T> cosine_of_, sine_of_;  ///< (k, f)
};

/// Where the frequencies of a two-dimensional transform of real images lie, of every conjugate pair one. The last one is the
/// sum of all, by far the largest where numbers have a mean: sums over frequencies are best begun with the others.
class Frequencies {
 public:
  Frequencies(std::int64_t rows, std::int64_t columns);

  struct Frequency {
    std::int64_t down, across;
    bool real;  ///< its own conjugate
  };
  std::int64_t count() const { return static_cast<std::int64_t>(list_.size()); }
  const Frequency& operator[](std::int64_t i) const { return list_[static_cast<std::size_t>(i)]; }
  /// Of column `across`: all of its rows, last to first, or the first half where the others are their conjugates.
  std::int64_t first_of(std::int64_t across) const { return first_[static_cast<std::size_t>(across)]; }

 private:
  std::vector<Frequency> list_;
  std::vector<std::int64_t> first_;
};

/// The two-dimensional transform of a panel of some images, `width` channels.
template <class T>
class Fourier {
 public:
  /// Images of height × width, zero after that up to rows × columns.
  Fourier(const SpectralKernels<T>& kernels, std::int64_t tile_rows, std::int64_t height, std::int64_t width,
          std::int64_t rows, std::int64_t columns);

  std::int64_t scratch(std::int64_t numbers) const;  ///< numbers, for pixels of that many

  /// pixels (height, width, images, `width` of a panel). Frequency i goes to out + i·step: (images, 2, width), the real parts
  /// and the imaginary ones.
  void transform(const Frequencies& frequencies, const T* pixels, std::int64_t images, std::int64_t width, T* scratch,
                 std::int64_t step, T* out) const;

 private:
  const SpectralKernels<T>& kernels_;
  const std::int64_t height_, width_;
  const FourierAxis<T> down_, across_;
};

}  // namespace eigendamage::cpu
