#include "simd.h"

#if EIGENDAMAGE_X86_LEVELS && defined(__linux__)
#include <immintrin.h>

// Below the pragma no template of std may be instantiated: the linker would merge it with those of other levels. Nor may
// anything run that was not asked for, such as the initialiser of a variable.
#pragma GCC target("arch=x86-64-v4,amx-tile,amx-bf16")

namespace eigendamage::cpu {
namespace {

constexpr int kRows = 16, kLine = 64;  // of a tile: rows, and bytes of each

struct alignas(64) Shapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {kLine, kLine, kLine, kLine, kLine, kLine, kLine, kLine};
  std::uint8_t rows[16] = {kRows, kRows, kRows, kRows, kRows, kRows, kRows, kRows};
};
constexpr Shapes kShapes;

typedef float Floats __attribute__((vector_size(64), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(64), may_alias));
typedef std::uint64_t Pairs __attribute__((vector_size(64), may_alias));
constexpr std::uint32_t kUpperHalf = 0xffff0000;

inline Floats vector(const float* p) { return (Floats)_mm512_loadu_ps(p); }

struct Parts {
  Floats part[3];
};

// Numbers of x for which sums of products of parts may be wrong: infinities, NaNs, and what is so large that such products
// might be infinities of either sign.
using Special = __mmask16;
constexpr std::uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000, kLarge = 0x57800000;  // 2^48

inline Special not_below(Floats x, std::uint32_t limit) {
  return _mm512_cmpge_epu32_mask((__m512i)((Words)x & kMagnitude), (__m512i)(Words{} + limit));
}

// x = the sum of its parts, the first one rounded, the others what is left.
template <int Count>
inline Parts parts_of(Floats x, Special& special) {
  special = _kor_mask16(special, not_below(x, Count == 1 ? kInfinity : kLarge));
  if constexpr (Count == 1) return {x};
  const auto high = (Floats)(((Words)x + 0x8000) & kUpperHalf);
  const Floats rest = x - high;
  if constexpr (Count == 2) return {high, rest};
  const auto middle = (Floats)((Words)rest & kUpperHalf);
  return {high, middle, rest - middle};
}

// The upper halves of two vectors' numbers as pairs.
inline Words paired(Floats first, Floats second) { return ((Words)first >> 16) | ((Words)second & kUpperHalf); }

// Rows and columns of 16 × 16 words exchanged: quarters of rows by loads, then words inside them.
inline void transpose_words(const std::uint16_t* from, std::uint16_t* to) {
  const auto quarter = [&](int row, int part) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(from + row * 32 + part * 8));
  };
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    Words t[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m512i row = _mm512_zextsi128_si512(quarter(r, q));
      row = _mm512_mask_broadcast_i32x4(row, 0x00f0, quarter(r + 4, q));
      row = _mm512_mask_broadcast_i32x4(row, 0x0f00, quarter(r + 8, q));
      t[r] = (Words)_mm512_mask_broadcast_i32x4(row, 0xf000, quarter(r + 12, q));
    }
    constexpr Words low{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29}, high = low + 2;
    constexpr Pairs even{0, 8, 2, 10, 4, 12, 6, 14}, odd = even + 1;
    const auto a = (Pairs)__builtin_shuffle(t[0], t[1], low), b = (Pairs)__builtin_shuffle(t[0], t[1], high);
    const auto c = (Pairs)__builtin_shuffle(t[2], t[3], low), d = (Pairs)__builtin_shuffle(t[2], t[3], high);
    auto* row = reinterpret_cast<Pairs*>(to + q * 4 * 32);
    row[0] = __builtin_shuffle(a, c, even);
    row[1] = __builtin_shuffle(a, c, odd);
    row[2] = __builtin_shuffle(b, d, even);
    row[3] = __builtin_shuffle(b, d, odd);
  }
}

constexpr std::int64_t kTile = 512, kRow = 32;  // bfloat16 numbers

// Two vectors' parts, as pairs of their numbers.
template <int Count>
inline void store_parts(Floats first, Floats second, std::uint16_t* row, Special& special) {
  const Parts a = parts_of<Count>(first, special), b = parts_of<Count>(second, special);
#pragma GCC unroll 3
  for (int part = 0; part < Count; ++part) {
    *reinterpret_cast<Words*>(row + part * kSide) = paired(a.part[part], b.part[part]);
  }
}

inline Floats some(const float* p, std::uint32_t mask) {
  return (Floats)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
}

template <int Count>
bool split_positions_into(const float* const* positions, std::uint32_t channels, std::uint32_t constant,
                          std::uint16_t* left, std::uint16_t* right) {
  Special special = 0;
  alignas(64) std::uint16_t aside[Count * kSide];
  if (!right) right = aside;
  for (int half = 0; half < 2; ++half, channels >>= kRows, constant >>= kRows) {
    const auto at = [&](const float* position) {
      if (!position) return Floats{};
      const Floats numbers = some(position + half * kRows, channels);
      return (Floats)_mm512_mask_mov_ps((__m512)numbers, static_cast<__mmask16>(constant), (__m512)(Floats{} + 1));
    };
    std::uint16_t* rows = right + half * kTile;
    for (int i = 0; i < kRows; ++i) {
      store_parts<Count>(at(positions[i]), at(positions[i + kRows]), rows + i * kRow, special);
    }
    for (int part = 0; left && part < Count; ++part) {
      transpose_words(rows + part * kSide, left + half * kTile + part * kSide);
    }
  }
  return special == 0;
}

bool split_positions(const float* const* positions, std::uint32_t channels, std::uint32_t constant, std::int64_t parts,
                     std::uint16_t* left, std::uint16_t* right) {
  if (parts == 1) return split_positions_into<1>(positions, channels, constant, left, right);
  if (parts == 2) return split_positions_into<2>(positions, channels, constant, left, right);
  return split_positions_into<3>(positions, channels, constant, left, right);
}

template <bool Weighted>
bool split_lines_of(const float* const* lines, const Segment16* segments, const std::int64_t* next,
                    std::uint16_t* chunk) {
  const Segment16 a = segments[0], b = segments[1];
  const Floats a_weights = vector(a.weights), b_weights = vector(b.weights);
  Special special = 0;
  alignas(64) std::uint16_t once[3 * kSide];  // what is not weighted, as rows of channels
  for (int half = 0; half < 2; ++half) {
    std::uint16_t* left = chunk + half * kTile;
    std::uint16_t* plain = Weighted ? once : left;
    for (int i = 0; i < kRows; ++i) {
      const float* line = lines[half * kRows + i];
      const Floats first = line ? some(line + a.offset, a.mask) : Floats{};
      const Floats second = line ? some(line + b.offset, b.mask) : Floats{};
      if (line) {
        __builtin_prefetch(line + next[0], 0, 2);
        __builtin_prefetch(line + next[1], 0, 2);
      }
      store_parts<3>(first, second, plain + i * kRow, special);
      if constexpr (Weighted) store_parts<3>(first * a_weights, second * b_weights, left + i * kRow, special);
    }
    for (int part = 0; part < 3; ++part) transpose_words(plain + part * kSide, left + (3 + part) * kSide);
  }
  return special == 0;
}

bool split_lines(const float* const* lines, const Segment16* segments, bool weighted, const std::int64_t* next,
                 std::uint16_t* chunk) {
  return weighted ? split_lines_of<true>(lines, segments, next, chunk)
                  : split_lines_of<false>(lines, segments, next, chunk);
}

// Which of the four tiles of 16 rows by 16 columns are summed.
enum Tiles : unsigned { kFirst = 1, kRightTile = 2, kBelow = 4, kLast = 8 };

template <unsigned Wanted>
struct Products {
  static constexpr bool kUpper = (Wanted & (kFirst | kRightTile)) != 0, kLower = (Wanted & (kBelow | kLast)) != 0;
  static constexpr bool kLeft = (Wanted & (kFirst | kBelow)) != 0, kRightSide = (Wanted & (kRightTile | kLast)) != 0;

  static void rows(const std::uint16_t* a, int part) {
    a += part * kSide;
    if constexpr (kUpper) _tile_loadd(4, a, kLine);
    if constexpr (kLower) _tile_loadd(5, a + kTile, kLine);
  }
  static void columns(const std::uint16_t* b, int part) {
    b += part * kSide;
    if constexpr (kLeft) _tile_loadd(6, b, kLine);
    if constexpr (kRightSide) _tile_loadd(7, b + kTile, kLine);
  }
  static void add() {
    if constexpr (Wanted & kFirst) _tile_dpbf16ps(0, 4, 6);
    if constexpr (Wanted & kRightTile) _tile_dpbf16ps(1, 4, 7);
    if constexpr (Wanted & kBelow) _tile_dpbf16ps(2, 5, 6);
    if constexpr (Wanted & kLast) _tile_dpbf16ps(3, 5, 7);
  }
};

// tile = (fresh ? 0 : tile) + weight·sums
inline void add_tile(const float* sums, float weight, bool fresh, float* tile) {
  for (int r = 0; r < kRows; ++r, sums += kRows, tile += kTileWidth) {
    const Floats sum = vector(sums) * weight;
    _mm512_storeu_ps(tile, (__m512)(fresh ? sum : vector(tile) + sum));
  }
}

// The sums of products of parts of one chunk. meanwhile(i) runs after the i-th of them, of which there are kProducts<Count>.
template <int Count>
constexpr int kProducts = Count == 1   ? 1
                          : Count == 2 ? 4
                                       : 6;

template <int Count, unsigned Wanted, class Meanwhile>
inline void multiply(const std::uint16_t* a, const std::uint16_t* b, const Meanwhile& meanwhile) {
  using P = Products<Wanted>;
  if constexpr (Count == 1) {
    P::rows(a, 0);
    P::columns(b, 0);
    P::add();
    meanwhile(0);
  } else if constexpr (Count == 2) {
    P::rows(a, 1);
    P::columns(b, 1);
    P::add();
    meanwhile(0);
    P::columns(b, 0);
    P::add();
    meanwhile(1);
    P::rows(a, 0);
    P::add();
    meanwhile(2);
    P::columns(b, 1);
    P::add();
    meanwhile(3);
  } else {
    P::rows(a, 2);
    P::columns(b, 0);
    P::add();
    meanwhile(0);
    P::rows(a, 1);
    P::add();
    meanwhile(1);
    P::columns(b, 1);
    P::add();
    meanwhile(2);
    P::rows(a, 0);
    P::add();
    meanwhile(3);
    P::columns(b, 2);
    P::add();
    meanwhile(4);
    P::columns(b, 0);
    P::add();
    meanwhile(5);
  }
}

inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

template <int Count, unsigned Wanted>
void gram_tiles(const std::uint16_t* a, const std::uint16_t* b, std::int64_t step, const Run* runs,
                std::int64_t run_count, float weight, bool fresh, float* tile) {
  _tile_loadconfig(&kShapes);
  clear_sums();
  b += Count * kSide;
  for (const Run* run = runs; run != runs + run_count; ++run) {
    const std::int64_t first = run->first * step, apart = run->step * step;
    for (std::int64_t i = 0; i < run->count; ++i) {
      multiply<Count, Wanted>(a + first + i * apart, b + first + i * apart, [](int) {});
    }
  }
  alignas(64) float sums[kRows * kRows];
  if constexpr (Wanted & kFirst) {
    _tile_stored(0, sums, kLine);
    add_tile(sums, weight, fresh, tile);
  }
  if constexpr (Wanted & kRightTile) {
    _tile_stored(1, sums, kLine);
    add_tile(sums, weight, fresh, tile + kRows);
  }
  if constexpr (Wanted & kBelow) {
    _tile_stored(2, sums, kLine);
    add_tile(sums, weight, fresh, tile + kRows * kTileWidth);
  }
  if constexpr (Wanted & kLast) {
    _tile_stored(3, sums, kLine);
    add_tile(sums, weight, fresh, tile + kRows * kTileWidth + kRows);
  }
  _tile_release();
}

template <int Count>
auto tiles_for(unsigned wanted) {
  switch (wanted) {
    case kFirst: return gram_tiles<Count, kFirst>;
    case kRightTile: return gram_tiles<Count, kRightTile>;
    case kFirst | kRightTile: return gram_tiles<Count, kFirst | kRightTile>;
    case kFirst | kBelow: return gram_tiles<Count, kFirst | kBelow>;
    case kFirst | kRightTile | kLast: return gram_tiles<Count, kFirst | kRightTile | kLast>;
    default: return gram_tiles<Count, kFirst | kRightTile | kBelow | kLast>;
  }
}

void gram(const std::uint16_t* a, const std::uint16_t* b, std::int64_t step, const Run* runs, std::int64_t run_count,
          std::int64_t parts, const Range& rows, std::int64_t columns, bool upper, float weight, bool fresh,
          float* tile) {
  const bool both_rows = rows.end - rows.begin > kRows, both_columns = columns > kRows;
  const bool left = !(upper && rows.begin >= kRows);
  if (!left && !both_columns) return;
  unsigned wanted = (left ? kFirst : 0u) | (both_columns ? kRightTile : 0u);
  if (both_rows && !upper) wanted |= kBelow;
  if (both_rows && both_columns) wanted |= kLast;
  const auto sum = parts == 1 ? tiles_for<1>(wanted) : parts == 2 ? tiles_for<2>(wanted) : tiles_for<3>(wanted);
  sum(a + rows.begin / kRows * kTile, b, step, runs, run_count, weight, fresh, tile);
}

constexpr int kTileSums = kRows * kRows;

template <unsigned Wanted>
inline void store_sums(float* sums) {
  if constexpr (Wanted & kFirst) _tile_stored(0, sums, kLine);
  if constexpr (Wanted & kRightTile) _tile_stored(1, sums + kTileSums, kLine);
  if constexpr (Wanted & kBelow) _tile_stored(2, sums + 2 * kTileSums, kLine);
  if constexpr (Wanted & kLast) _tile_stored(3, sums + 3 * kTileSums, kLine);
}

// tile += f(sums), of one of the four tiles.
template <unsigned Wanted, bool Squared>
inline void add_to(float* tile, const float* sums, int which) {
  if (!(Wanted >> which & 1)) return;
  sums += which * kTileSums;
  tile += which / 2 * kRows * kTileWidth + which % 2 * kRows;
  for (int r = 0; r < kRows; ++r, sums += kRows, tile += kTileWidth) {
    const Floats sum = vector(sums);
    _mm512_storeu_ps(tile, (__m512)(vector(tile) + (Squared ? sum * sum : sum)));
  }
}

// Where more chunks than this are added up, their sums are taken out of the units and added to each other: a float sum of fewer
// roundings.
constexpr std::int64_t kListed = 16;

template <unsigned Wanted>
__attribute__((noinline)) void take_sums(float* taken, bool first) {
  alignas(64) float sums[4 * kTileSums] = {};
  store_sums<Wanted>(sums);
  clear_sums();
  for (int i = 0; i < 4 * kTileSums; i += kRows) {
    _mm512_store_ps(taken + i, (__m512)(first ? vector(sums + i) : vector(taken + i) + vector(sums + i)));
  }
}

// What a panel of an example sums is added while the next one is multiplied. Panels follow each other faster than
// examples, so that what is on the right stays near.
template <int Count, unsigned Wanted, bool Squared>
void sum_tiles(const Sides& sides, float* tiles) {
  constexpr std::int64_t step = Count * kSide;
  constexpr int added = kProducts<Count> < 4 ? kProducts<Count> : 4;
  alignas(64) float sums[2][4 * kTileSums] = {}, taken[4 * kTileSums];
  _tile_loadconfig(&kShapes);
  float *now = sums[0], *before = sums[1], *tile_before = tiles;
  for (std::int64_t n = 0; n < sides.examples; ++n) {
    const std::uint16_t *a = sides.a + n * sides.a_step, *b = sides.b + n * sides.b_step;
    for (std::int64_t panel = 0; panel < sides.panels; ++panel, a += sides.a_panel) {
      clear_sums();
      multiply<Count, Wanted>(a, b, [&](int i) {
        if (i < 4) add_to<Wanted, Squared>(tile_before, before, i);
      });
      for (int i = added; i < 4; ++i) add_to<Wanted, Squared>(tile_before, before, i);
      for (std::int64_t c = 1; c < sides.chunks; ++c) {
        if (c % kListed == 0) take_sums<Wanted>(taken, c == kListed);
        multiply<Count, Wanted>(a + c * step, b + c * step, [](int) {});
      }
      if (sides.chunks <= kListed) {
        store_sums<Wanted>(now);
      } else {
        take_sums<Wanted>(taken, false);
        __builtin_memcpy(now, taken, sizeof taken);
      }
      float* const next = before;
      before = now;
      now = next;
      tile_before = tiles + panel * sides.tile_step;
    }
  }
  for (int i = 0; i < 4; ++i) add_to<Wanted, Squared>(tile_before, before, i);
  _tile_release();
}

template <int Count, bool Squared>
void sums_of(const Sides& sides, std::int64_t rows, std::int64_t columns, float* tile) {
  const bool below = rows > kRows, right = columns > kRows;
  if (below && right) return sum_tiles<Count, kFirst | kRightTile | kBelow | kLast, Squared>(sides, tile);
  if (below) return sum_tiles<Count, kFirst | kBelow, Squared>(sides, tile);
  if (right) return sum_tiles<Count, kFirst | kRightTile, Squared>(sides, tile);
  sum_tiles<Count, kFirst, Squared>(sides, tile);
}

template <bool Squared>
void sums_with(const Sides& sides, std::int64_t rows, std::int64_t columns, bool fresh, float* tile) {
  for (std::int64_t panel = 0; fresh && panel < sides.panels; ++panel) {
    for (int i = 0; i < kTileWidth * kTileWidth; i += kRows) {
      _mm512_storeu_ps(tile + panel * sides.tile_step + i, (__m512)Floats{});
    }
  }
  if (sides.parts == 1) return sums_of<1, Squared>(sides, rows, columns, tile);
  if (sides.parts == 2) return sums_of<2, Squared>(sides, rows, columns, tile);
  sums_of<3, Squared>(sides, rows, columns, tile);
}

}  // namespace

constinit const TileKernels kAmxTiles{.split_positions = split_positions,
                                      .split_lines = split_lines,
                                      .gram = gram,
                                      .sums = sums_with<false>,
                                      .squares = sums_with<true>};

}  // namespace eigendamage::cpu
#endif
