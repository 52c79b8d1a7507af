// Implicit QL sweeps over tridiagonal matrices, one in each lane of one or more vectors, under the rules of simd_text.h.
// The rotations are recorded; rotations_text.h applies them.

#pragma once

#include "lane_numbers_text.h"
#include "lanes.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {
namespace lanes {

// A step of Depth sweeps, whose rotations are applied in one pass, each one row behind the last: sweep k turns rows i + k
// and i + k + 1, by an angle θ in [−π/2, π/2]. Element 2·k of a part is tan θ/2, 2·k + 1 is sin θ.
template <class T, int Parts, int Depth>
struct Step {
  Vector<T> turn[Parts][2 * Depth];
};

// Numbers of steps that `depth` sweeps over n rows need.
constexpr std::int64_t steps_of(std::int64_t n, int depth) { return n + depth; }

// The steps low − Depth < i < high of some sweeps; and low and high for each lane, equal where it has nothing to do.
template <class T, int Parts, int Depth>
struct Sweeps {
  Step<T, Parts, Depth>* steps;  // from i = 1 − Depth on
  std::int64_t low, high;
  Mask<T> first[Parts], last[Parts];
};

// In each lane, the first block of the tridiagonal matrix that is not yet diagonal: rows first … last.
template <class T, int Parts>
struct Block {
  Mask<T> first[Parts], last[Parts];
  std::int64_t least_first, most_last;  // over the lanes that have one
  Vector<T> shift[Parts];               // d[last] minus Wilkinson's shift
  Mask<T> open[Parts];                  // there is one
};

// The tridiagonal matrices, of n rows: d on the diagonal, e[i] between i and i + 1. Part p of row i is at i·Parts + p.
template <class T, int Parts, int Depth>
struct Chase {
  std::int64_t n;
  Vector<T>*d, *e;
  Vector<T> negligible[Parts];
  std::int64_t begin = 0;  // what lies above is diagonal in all lanes

  Chase(std::int64_t size, Vector<T>* diagonal, Vector<T>* beside) : n(size), d(diagonal), e(beside) {
    for (int p = 0; p < Parts; ++p) {
      Vector<T> largest = {};
      for (std::int64_t i = 0; i < n; ++i) {
        const Vector<T> on = magnitude<T>(d[i * Parts + p]), off = magnitude<T>(e[i * Parts + p]);
        largest = on > largest ? on : largest;
        largest = i < n - 1 && off > largest ? off : largest;
      }
      negligible[p] = largest * (Format<T>::epsilon / 2);
    }
  }

  // Sets what is negligible in e to 0 and finds the blocks. Returns whether there is one.
  bool find(Block<T, Parts>& block) {
    constexpr T epsilon = Format<T>::epsilon;
    block = {};
    block.least_first = n - 1;
    for (int p = 0; p < Parts; ++p) {
      Mask<T> end = Mask<T>{} + static_cast<int>(n - 1);
      Vector<T> d_end = d[(n - 1) * Parts + p], d_below = d_end;
      Vector<T> d_last = {}, d_first = {}, d_second = {}, beside = all_lanes<T>(1);
      for (std::int64_t i = n - 2; i >= begin; --i) {
        const Vector<T> here = d[i * Parts + p], off = e[i * Parts + p], size = magnitude<T>(off);
        const Mask<T> joined =
            ~((size <= negligible[p]) | (off * off <= epsilon * epsilon * magnitude<T>(here * d_below)));
        e[i * Parts + p] = (Vector<T>)((Mask<T>)off & joined);
        const Mask<T> index = Mask<T>{} + static_cast<int>(i);
        end = joined ? end : index;
        d_end = joined ? d_end : here;
        block.first[p] = joined ? index : block.first[p];
        block.last[p] = joined ? end : block.last[p];
        d_last = joined ? d_end : d_last;
        d_first = joined ? here : d_first;
        d_second = joined ? d_below : d_second;
        beside = joined ? off : beside;
        block.open[p] |= joined;
        d_below = here;
        if (i < block.least_first && any<T>(joined)) block.least_first = i;
      }
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        block.most_last = block.last[p][lane] > block.most_last ? block.last[p][lane] : block.most_last;
      }
      const Vector<T> slope = (d_second - d_first) / (2 * beside);
      const Vector<T> root = square_root<T>(slope * slope + 1);
      block.shift[p] = d_last - d_first + beside / (slope + (slope < 0 ? -root : root));
    }
    begin = block.least_first;
    return begin < n - 1;
  }

  // A sweep over the block of each lane. What a lane computes outside its block is rubbish and goes nowhere.
  void sweep(const Block<T, Parts>& block, int which, Step<T, Parts, Depth>* steps) {
    Vector<T> s[Parts], c[Parts], moved[Parts], g[Parts], below[Parts];
    Mask<T> chasing[Parts] = {};
    for (int p = 0; p < Parts; ++p) {
      s[p] = c[p] = all_lanes<T>(1);
      moved[p] = Vector<T>{};
      g[p] = block.shift[p];
      below[p] = d[block.most_last * Parts + p];
    }
    for (std::int64_t i = block.most_last - 1; i >= block.least_first; --i) {
      Vector<T>*const on = d + i * Parts, *const off = e + i * Parts;
#pragma GCC unroll 8
      for (int p = 0; p < Parts; ++p) {
        const Mask<T> here = Mask<T>{} + static_cast<int>(i), joined = chasing[p];
        const Mask<T> starts = block.open[p] & (here + 1 == block.last[p]);
        if (any<T>(starts)) {
          chasing[p] |= starts;
          s[p] = starts ? all_lanes<T>(1) : s[p];
          c[p] = starts ? all_lanes<T>(1) : c[p];
          moved[p] = starts ? Vector<T>{} : moved[p];
          g[p] = starts ? block.shift[p] : g[p];
        }
        const Vector<T> f = s[p] * off[p], b = c[p] * off[p];
        const Vector<T> square = f * f + g[p] * g[p];
        const Vector<T> inverse = with_sign<T>(inverse_square_root<T>(square), g[p]);  // so that cos θ ≥ 0
        const Vector<T> next_s = f * inverse, next_c = g[p] * inverse;
        const Vector<T> rest = below[p] - moved[p], r = ((on[p] - rest) * f + 2 * b * g[p]) * inverse;
        const Vector<T> next_moved = next_s * r;
        const Mask<T> split = chasing[p] & (square <= Format<T>::least_square);
        if (any<T>(split)) {  // the bulge has vanished: the block splits below row i, the rest of it waits
          off[p] = split ? b : off[p];
          off[Parts + p] = where<T>(~split, off[Parts + p]);
          below[p] = split ? rest : below[p];
          chasing[p] &= ~split;
        }
        off[Parts + p] = joined & chasing[p] ? square * inverse : off[Parts + p];
        on[Parts + p] = chasing[p] ? rest + next_moved : below[p];
        below[p] = on[p];
        s[p] = next_s;
        c[p] = next_c;
        moved[p] = next_moved;
        g[p] = next_c * r - b;
        Vector<T>* const turn = steps[i - which].turn[p] + 2 * which;
        turn[0] = where<T>(chasing[p], next_s * reciprocal<T>(1 + next_c));
        turn[1] = where<T>(chasing[p], next_s);
        const Mask<T> finished = chasing[p] & (here == block.first[p]);
        if (any<T>(finished)) {
          below[p] = on[p] = finished ? on[p] - moved[p] : on[p];
          off[p] = finished ? g[p] : off[p];
          chasing[p] &= ~finished;
        }
      }
    }
  }

  // Sweep `which` does not turn rows i and i + 1, from ≤ i < to.
  static void pause(int which, std::int64_t from, std::int64_t to, Step<T, Parts, Depth>* steps) {
    for (std::int64_t i = from; i < to; ++i) {
      for (int p = 0; p < Parts; ++p) {
        Vector<T>* const turn = steps[i - which].turn[p] + 2 * which;
        turn[0] = turn[1] = Vector<T>{};
      }
    }
  }

  // Depth sweeps, or as many as there are to be done. Returns false if there was none.
  bool next(Sweeps<T, Parts, Depth>& sweeps) {
    Block<T, Parts> blocks[Depth];
    int count = 0;
    for (; count < Depth && find(blocks[count]); ++count) sweep(blocks[count], count, sweeps.steps);
    if (count == 0) return false;
    sweeps.low = blocks[0].least_first;  // no sweep begins above the one before
    sweeps.high = 0;
    for (int p = 0; p < Parts; ++p) sweeps.first[p] = sweeps.last[p] = Mask<T>{};
    for (int k = 0; k < count; ++k) {
      const Block<T, Parts>& block = blocks[k];
      sweeps.high = block.most_last > sweeps.high ? block.most_last : sweeps.high;
      for (int p = 0; p < Parts; ++p) {
        const Mask<T> new_here = sweeps.first[p] == sweeps.last[p];
        const Mask<T> above = block.open[p] & (new_here | (block.first[p] < sweeps.first[p]));
        const Mask<T> below = block.open[p] & (block.last[p] > sweeps.last[p]);
        sweeps.first[p] = above ? block.first[p] : sweeps.first[p];
        sweeps.last[p] = below ? block.last[p] : sweeps.last[p];
      }
    }
    for (int k = 0; k < Depth; ++k) {
      const std::int64_t low = sweeps.low - Depth + 1 + k, high = sweeps.high + k;
      pause(k, low, k < count ? blocks[k].least_first : high, sweeps.steps);
      if (k < count) pause(k, blocks[k].most_last, high, sweeps.steps);
    }
    return true;
  }
};

}  // namespace lanes
}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
