// The text of the inner loops of spectral_kernels.h, under the rules of simd_text.h.

#pragma once

#include "simd_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

// Numbers without their sign are in the order of their bits, with infinity and then NaN as the largest.
template <class T>
T largest(const T* values, std::int64_t count) {
  typedef typename VectorOf<T>::index Bits;
  Bits most = {};
  for (std::int64_t i = 0; i < count; i += kLanes<T>) {
    Bits bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    bits &= ~(Bits)-Vector<T>{};
    most = bits > most ? bits : most;
  }
  Vector<T> magnitudes;
  __builtin_memcpy(&magnitudes, &most, sizeof most);
  T result = 0;
  for (int i = 0; i < kLanes<T>; ++i) result = magnitudes[i] <= result ? result : magnitudes[i];
  return result;
}

template <class T>
void fold(const T* x, std::int64_t step, std::int64_t count, std::int64_t length, std::int64_t numbers, T* even,
          T* odd) {
  for (std::int64_t k = 0; 2 * k <= length; ++k, even += numbers, odd += numbers) {
    const T *near = x + k * step, *far = x + (length - k) * step;
    const bool alone = k == 0 || 2 * k == length || length - k >= count;
    for (std::int64_t i = 0; i < numbers; i += kLanes<T>) {
      const Vector<T> first = k < count ? load(near + i) : Vector<T>{}, second = alone ? Vector<T>{} : load(far + i);
      store(even + i, first + second);
      store(odd + i, first - second);
    }
  }
}

template <class T, int Rows, int Vectors>
__attribute__((noinline)) void multiply_lines(const T* coefficients, std::int64_t stride, const T* x,
                                              std::int64_t terms, std::int64_t numbers, std::int64_t outputs,
                                              std::int64_t step, T* out) {
  Vector<T> sum[Rows][Vectors] = {};
  for (std::int64_t k = 0; k < terms; ++k, coefficients += stride, x += numbers) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += load(x + v * kLanes<T>) * coefficients[r];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    if (r >= outputs) return;
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) store(out + r * step + v * kLanes<T>, sum[r][v]);
  }
}

template <class T, int Vectors>
void multiply_columns(const T* coefficients, std::int64_t stride, const T* x, std::int64_t terms, std::int64_t numbers,
                      std::int64_t outputs, std::int64_t step, T* out) {
  constexpr int half = kTileRows / 2;
  std::int64_t f = 0;
  for (; outputs - f > half; f += kTileRows) {
    multiply_lines<T, kTileRows, Vectors>(coefficients + f, stride, x, terms, numbers, outputs - f, step,
                                          out + f * step);
  }
  if (f < outputs) {
    multiply_lines<T, half, Vectors>(coefficients + f, stride, x, terms, numbers, outputs - f, step, out + f * step);
  }
}

template <class T>
void multiply(const T* coefficients, std::int64_t stride, const T* x, std::int64_t terms, std::int64_t numbers,
              std::int64_t outputs, std::int64_t step, T* out) {
  std::int64_t i = 0;
  for (; i + 2 * kLanes<T> <= numbers; i += 2 * kLanes<T>) {
    multiply_columns<T, 2>(coefficients, stride, x + i, terms, numbers, outputs, step, out + i);
  }
  if (i < numbers) multiply_columns<T, 1>(coefficients, stride, x + i, terms, numbers, outputs, step, out + i);
}

template <class T>
void unfold(const T* cos_re, const T* sin_re, const T* cos_im, const T* sin_im, std::int64_t line, std::int64_t length,
            std::int64_t width, std::int64_t images, std::int64_t step, T* out) {
  const std::int64_t last = cos_im ? length - 1 : length / 2;
  const Vector<T> zero = {};
  for (std::int64_t k = 0; 2 * k <= length; ++k) {
    const bool alone = k == 0 || 2 * k == length;
    T* z = out + (last - k) * step;
    T* mirrored = cos_im && !alone ? out + (last - length + k) * step : nullptr;
    for (std::int64_t n = 0; n < images; ++n) {
      for (std::int64_t i = 0; i < width; i += kLanes<T>) {
        const std::int64_t at = k * line + n * width + i, to = 2 * n * width + i;
        const Vector<T> re = load(cos_re + at), im = cos_im ? -load(cos_im + at) : zero;
        const Vector<T> turned_re = cos_im && !alone ? load(sin_im + at) : zero;
        const Vector<T> turned_im = alone ? zero : load(sin_re + at);
        store(z + to, re - turned_re);
        store(z + to + width, im - turned_im);
        if (!mirrored) continue;
        store(mirrored + to, re + turned_re);
        store(mirrored + to + width, im + turned_im);
      }
    }
  }
}

// Half of kTileRows × `Vectors` complex accumulators. Lines are fetched into the cache from `ahead_a` and `ahead_b` on, half
// a cache line of each for every line here: only the first rows of a panel would wait for memory.
template <class T, int Vectors, bool Real>
__attribute__((noinline)) void correlate_rows(const T* a, const T* b, std::int64_t width, std::int64_t count,
                                              bool fresh, const T* ahead_a, const T* ahead_b, T* re, T* im) {
  constexpr int rows = kTileRows / 2;
  constexpr std::int64_t ahead = 32 / sizeof(T);
  Vector<T> real[rows][Vectors] = {}, imaginary[rows][Vectors] = {};
  for (std::int64_t n = 0; n < count; ++n, a += 2 * width, b += 2 * width, ahead_a += ahead, ahead_b += ahead) {
    __builtin_prefetch(ahead_a);
    __builtin_prefetch(ahead_b);
    Vector<T> right[Vectors], turned[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      right[v] = load(b + v * kLanes<T>);
      if (!Real) turned[v] = load(b + width + v * kLanes<T>);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        real[r][v] += right[v] * a[r];
        if (Real) continue;
        imaginary[r][v] += turned[v] * a[r];
        real[r][v] += turned[v] * a[width + r];
        imaginary[r][v] -= right[v] * a[width + r];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      const std::int64_t at = r * width + v * kLanes<T>;
      store(re + at, fresh ? real[r][v] : load(re + at) + real[r][v]);
      store(im + at, fresh ? imaginary[r][v] : load(im + at) + imaginary[r][v]);
    }
  }
}

template <class T, bool Real>
void correlate_panels(const T* a, const T* b, std::int64_t width, std::int64_t count, std::int64_t rows,
                      std::int64_t columns, bool upper, bool fresh, T* re, T* im) {
  constexpr std::int64_t lanes = kLanes<T>, ahead = 32 / sizeof(T);
  const T *ahead_a = a + 2 * width * count, *ahead_b = b + 2 * width * count;
  for (std::int64_t row = 0; row < rows; row += kTileRows / 2, ahead_a += ahead * count, ahead_b += ahead * count) {
    const std::int64_t first = upper && row >= lanes ? lanes : 0, at = row * width + first;
    if (columns - first > lanes) {
      correlate_rows<T, 2, Real>(a + row, b + first, width, count, fresh, ahead_a, ahead_b, re + at, im + at);
    } else if (columns > first) {
      correlate_rows<T, 1, Real>(a + row, b + first, width, count, fresh, ahead_a, ahead_b, re + at, im + at);
    }
  }
}

template <class T>
void correlate(const T* a, const T* b, std::int64_t width, std::int64_t count, std::int64_t rows, std::int64_t columns,
               bool upper, bool real, bool fresh, T* re, T* im) {
  if (real) {
    correlate_panels<T, true>(a, b, width, count, rows, columns, upper, fresh, re, im);
  } else {
    correlate_panels<T, false>(a, b, width, count, rows, columns, upper, fresh, re, im);
  }
}

template <class T>
void split(const T* cosines, const T* sines, std::int64_t count, T* minus, T* plus) {
  for (std::int64_t i = 0; i < count; i += kLanes<T>) {
    const Vector<T> c = load(cosines + i), s = load(sines + i);
    store(minus + i, c - s);
    store(plus + i, c + s);
  }
}

template <class T>
constexpr SpectralKernels<T> kSpectralKernels{
    .largest = largest<T>,
    .fold = fold<T>,
    .multiply = multiply<T>,
    .unfold = unfold<T>,
    .correlate = correlate<T>,
    .split = split<T>,
};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
