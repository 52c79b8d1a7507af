#pragma once

#include <cstdint>

#include "../lag_form/plan.h"

namespace eigendamage::cpu {

/// The inner loops of the spectral form, once per instruction set. A line of a panel is `width` numbers, one or two vectors;
/// a complex line is its real parts, then its imaginary parts.
template <class T>
struct SpectralKernels {
  /// The largest magnitude, infinite or NaN if one is. `count` is a multiple of lanes.
  T (*largest)(const T* values, std::int64_t count);

  /// even[k] = x[k] + x[length − k] for 0 ≤ k ≤ length/2, odd[k] = x[k] − x[length − k] for 0 < k < length/2, of lines x[0] to
  /// x[count − 1] of `numbers`, which is a multiple of lanes; those of x are `step` apart, of even and odd `numbers`. x[count]
  /// to x[length], and the second x[0] and x[length/2], are zero. Of odd[0] and odd[length/2] nothing is said.
  void (*fold)(const T* x, std::int64_t step, std::int64_t count, std::int64_t length, std::int64_t numbers, T* even,
               T* odd);

  /// out[f] = Σ_k coefficients[k·stride + f]·x[k] for k < terms, f < outputs ≤ stride, of lines of `numbers` as in fold;
  /// those of out are `step` apart. `stride` is a multiple of tile_rows.
  void (*multiply)(const T* coefficients, std::int64_t stride, const T* x, std::int64_t terms, std::int64_t numbers,
                   std::int64_t outputs, std::int64_t step, T* out);

  /// The transform z[k] of complex lines of `images` panels from those of their parts: re = cos_re − sin_im, im = −cos_im −
  /// sin_re, and of length − k too, where the sines change sign; without cos_im lines are real, and those up to length/2 are
  /// all. Lines k of the parts are `line` apart; the sines of k = 0 and length/2 are not read. Lines of z are `step` apart,
  /// the last one first: z[last] at `out`.
  void (*unfold)(const T* cos_re, const T* sin_re, const T* cos_im, const T* sin_im, std::int64_t line,
                 std::int64_t length, std::int64_t width, std::int64_t images, std::int64_t step, T* out);

  /// re + i·im = (fresh ? 0 : re + i·im) + Σ_n conj(a_n) b_nᵀ of complex lines, n < count: in rows `rows` of re and im, `width`
  /// long, and with `upper` only where r ≤ c. `real` lines have no imaginary part, and then im stays 0. Whole halves of
  /// tile_rows and whole lanes are computed: the other entries hold rubbish afterwards. All are summed in registers.
  void (*correlate)(const T* a, const T* b, std::int64_t width, std::int64_t count, std::int64_t rows,
                    std::int64_t columns, bool upper, bool real, bool fresh, T* re, T* im);

  /// minus = cosines − sines, plus = cosines + sines.
  void (*split)(const T* cosines, const T* sines, std::int64_t count, T* minus, T* plus);
};

}  // namespace eigendamage::cpu
