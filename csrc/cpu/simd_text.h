// The text of the inner loops. Each simd_<level>.cpp includes it below its target pragma, with EIGENDAMAGE_LEVEL
// (the namespace), EIGENDAMAGE_VECTOR_BYTES and EIGENDAMAGE_TILE_ROWS defined. No std template may be used here: the linker
// would merge its instances across levels.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

template <class T>
constexpr int kLanes = EIGENDAMAGE_VECTOR_BYTES / static_cast<int>(sizeof(T));
constexpr int kTileRows = EIGENDAMAGE_TILE_ROWS;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES), may_alias));
  typedef std::int32_t index __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES), may_alias));
  typedef std::int64_t index __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
Vector<T> load(const T* p) {  // any alignment
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// kTileRows × `Vectors` accumulators in registers: a row is broadcast, a column vector loaded.
template <class T, int Vectors, bool Fetch>
__attribute__((noinline)) void gram_rows(const T* a, const T* b, std::int64_t width, const Run* runs,
                                         std::int64_t run_count, T weight, bool fresh, T* tile, Ahead& ahead) {
  constexpr int kUnrolled = kTileRows * Vectors > 8 ? 1 : 4;  // so that the end of 64 short turns is foreseen
  const char* line = ahead.next;
  Vector<T> sum[kTileRows][Vectors] = {};
  for (const Run* run = runs; run != runs + run_count; ++run) {
    const T* row = a + run->first * width;
    const T* column = b + run->first * width;
    const std::int64_t step = run->step * width;
    const auto add = [&]() __attribute__((always_inline)) {
      if constexpr (Fetch) {
        __builtin_prefetch(line, 0, 2);
        line += 64;
      }
      Vector<T> right[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) right[v] = load(column + v * kLanes<T>);
#pragma GCC unroll 8
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[r][v] += right[v] * row[r];
      }
      row += step, column += step;
    };
    std::int64_t left = run->count;
    for (; left >= kUnrolled; left -= kUnrolled) {
#pragma GCC unroll 4
      for (int i = 0; i < kUnrolled; ++i) add();
    }
    for (; left > 0; --left) add();
  }
  if constexpr (Fetch) ahead.next = line;
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      T* out = tile + r * width + v * kLanes<T>;
      if (fresh) {
        store(out, sum[r][v] * weight);
      } else {
        store(out, load(out) + sum[r][v] * weight);
      }
    }
  }
}

template <class T>
void gram(const T* a, const T* b, std::int64_t width, const Run* runs, std::int64_t run_count, const Range& rows,
          std::int64_t columns, bool upper, T weight, bool fresh, T* tile, Ahead& ahead) {
  constexpr std::int64_t lanes = kLanes<T>;
  for (std::int64_t row = rows.begin; row < rows.end; row += kTileRows, tile += kTileRows * width) {
    const std::int64_t first = upper && row >= lanes ? lanes : 0;
    if (columns <= first) continue;
    const bool both = columns - first > lanes, fetch = ahead.next < ahead.end;
    const auto sum = both    ? fetch ? gram_rows<T, 2, true> : gram_rows<T, 2, false>
                     : fetch ? gram_rows<T, 1, true>
                             : gram_rows<T, 1, false>;
    sum(a + row, b + first, width, runs, run_count, weight, fresh, tile + first, ahead);
  }
}

// mixed[i] = first[at[i]], counting on into second.
template <class T>
Vector<T> shuffle(Vector<T> first, Vector<T> second, typename VectorOf<T>::index at) {
#ifdef __clang__
  Vector<T> mixed = first;
  for (int i = 0; i < kLanes<T>; ++i) mixed[i] = at[i] < kLanes<T> ? first[at[i]] : second[at[i] - kLanes<T>];
  return mixed;
#else
  return __builtin_shuffle(first, second, at);
#endif
}

// Interleaving the upper with the lower half of the rows log2(lanes) times transposes them.
template <class T>
__attribute__((always_inline)) inline void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
  typename VectorOf<T>::index low, high;
  for (int i = 0; i < lanes; ++i) {
    low[i] = i / 2 + (i % 2) * lanes;
    high[i] = low[i] + lanes / 2;
  }
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vector<T> mixed[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      mixed[2 * i] = shuffle<T>(rows[i], rows[i + lanes / 2], low);
      mixed[2 * i + 1] = shuffle<T>(rows[i], rows[i + lanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = mixed[i];
  }
}

template <class T>
void add(T* total, const T* part, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(total + i, load(total + i) + load(part + i));
  for (; i < count; ++i) total[i] += part[i];
}

template <class T>
void square(T* values, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(values + i, load(values + i) * load(values + i));
  for (; i < count; ++i) values[i] *= values[i];
}

// Blocks are transposed as many at a time as a vector has lanes, the last ones first: a column's last vector may hold
// more than the blocks' numbers, which those of the next column then replace.
template <class T, int Vectors>
void combine_vectors(const T* row, const std::int64_t* terms, const Range* blocks, std::int64_t block_count,
                     std::int64_t slot_size, std::int64_t stride, T* out) {
  constexpr int lanes = kLanes<T>;
  for (std::int64_t b = (block_count - 1) / lanes * lanes; b >= 0; b -= lanes) {
    Vector<T> rows[Vectors][lanes] = {};
    const std::int64_t count = block_count - b < lanes ? block_count - b : lanes;
    for (std::int64_t i = 0; i < count; ++i) {
      Vector<T> sum[Vectors] = {};
      for (std::int64_t t = blocks[b + i].begin; t < blocks[b + i].end; ++t) {
        const T* slot = row + terms[t] * slot_size;
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) sum[v] += load(slot + v * lanes);
      }
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) rows[v][i] = sum[v];
    }
    for (int v = 0; v < Vectors; ++v) {
      if (stride == 1) {
        store(out + v * lanes, rows[v][0]);
        continue;
      }
      transpose<T>(rows[v]);
      for (int i = 0; i < lanes; ++i) store(out + (v * lanes + i) * stride + b, rows[v][i]);
    }
  }
}

template <class T>
void combine(const T* row, const std::int64_t* terms, const Range* blocks, std::int64_t block_count,
             std::int64_t slot_size, std::int64_t width, std::int64_t stride, T* out) {
  if (width == kLanes<T>) {
    combine_vectors<T, 1>(row, terms, blocks, block_count, slot_size, stride, out);
  } else {
    combine_vectors<T, 2>(row, terms, blocks, block_count, slot_size, stride, out);
  }
}

template <class T, class Place>
__attribute__((always_inline)) inline void interleave_by(const T* const* lines, std::int64_t count, std::int64_t stride,
                                                         const Place& place, T* out) {
  constexpr int lanes = kLanes<T>;
  std::int64_t p = 0;
  for (; p + lanes <= count; p += lanes) {
    Vector<T> rows[lanes];
#pragma GCC unroll 16
    for (int c = 0; c < lanes; ++c) rows[c] = lines[c] ? load(lines[c] + p) : Vector<T>{};
    transpose<T>(rows);
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) store(out + place(p + i) * stride, rows[i]);
  }
  for (; p < count; ++p) {
    for (int c = 0; c < lanes; ++c) out[place(p) * stride + c] = lines[c] ? lines[c][p] : T(0);
  }
}

template <class T>
void interleave(const T* const* lines, std::int64_t count, std::int64_t stride, const std::int32_t* places, T* out) {
  if (places) return interleave_by(lines, count, stride, [places](std::int64_t p) { return places[p]; }, out);
  interleave_by(lines, count, stride, [](std::int64_t p) { return p; }, out);
}

// Stores a vector, aligned to its size, without reading the lines that it replaces into a cache.
template <class T>
void store_around(T* p, Vector<T> v) {
#if defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 64
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__x86_64__) && EIGENDAMAGE_VECTOR_BYTES == 32
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store(p, v);
#endif
}

template <class T>
void write_around(const T* from, std::int64_t rows, std::int64_t columns, std::int64_t step, T* out, T* mirror,
                  std::int64_t out_step) {
  constexpr int lanes = kLanes<T>;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; c += lanes) store_around(out + r * out_step + c, load(from + r * step + c));
  }
  for (std::int64_t c = 0; c < columns; c += lanes) {
    for (std::int64_t r = 0; r < rows; r += lanes) {
      Vector<T> square[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) square[i] = load(from + (r + i) * step + c);
      transpose<T>(square);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store_around(mirror + (c + i) * out_step + r, square[i]);
    }
  }
#if defined(__x86_64__)
  _mm_sfence();  // what went around the caches is seen by others before what is stored next
#endif
}

template <class T>
void mirror_row(T* entries, std::int64_t size, std::int64_t stride, const T* ranks, std::int64_t r,
                std::int64_t first) {
  for (std::int64_t c = first; c < size; ++c) {
    T &entry = entries[r * stride + c], &other = entries[c * stride + r];
    if (ranks[r] <= ranks[c]) {
      other = entry;
    } else {
      entry = other;
    }
  }
}

// Two tiles that are each other's mirror at a time.
template <class T>
void mirror(T* entries, std::int64_t size, std::int64_t stride, const T* ranks, const Range& rows) {
  constexpr int lanes = kLanes<T>;
  std::int64_t r = rows.begin;
  for (; r + lanes <= rows.end; r += lanes) {
    std::int64_t c = r;
    for (; c + lanes <= size; c += lanes) {
      T *const tile = entries + r * stride + c, *const other = entries + c * stride + r;
      const bool more = c + 4 * lanes <= size;
      Vector<T> down[lanes], across[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (more) __builtin_prefetch(other + (3 * lanes + i) * stride, 1, 3);
        across[i] = load(tile + i * stride);
        down[i] = load(other + i * stride);
      }
      transpose<T>(down);
      const Vector<T> of_columns = load(ranks + c);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        across[i] = Vector<T>{} + ranks[r + i] <= of_columns ? across[i] : down[i];
        store(tile + i * stride, across[i]);
      }
      if (c == r) continue;
      transpose<T>(across);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) store(other + i * stride, across[i]);
    }
    for (std::int64_t i = r; i < r + lanes; ++i) mirror_row(entries, size, stride, ranks, i, c);
  }
  for (; r < rows.end; ++r) mirror_row(entries, size, stride, ranks, r, r + 1);
}

template <class T>
Vector<T> gathered(const T* source, const std::int32_t* offsets) {
  Vector<T> v;
#pragma GCC unroll 16
  for (int c = 0; c < kLanes<T>; ++c) v[c] = source[offsets[c]];
  return v;
}
#if EIGENDAMAGE_X86_LEVELS && EIGENDAMAGE_VECTOR_BYTES == 64
Vector<float> gathered(const float* source, const std::int32_t* offsets) {  // the compiler finds no such instruction
  VectorOf<float>::index at;
  __builtin_memcpy(&at, offsets, sizeof at);
  return __builtin_ia32_gathersiv16sf(Vector<float>{}, source, at, -1, sizeof(float));
}
#endif

template <class T, int Vectors>
void gather_positions(const T* from, std::int64_t positions, std::int64_t step, std::int64_t images,
                      std::int64_t image_step, const std::int32_t* offsets, std::int64_t stride, T* out) {
  for (std::int64_t p = 0; p < positions; ++p, from += step, out += stride) {
    for (std::int64_t n = 0; n < images; ++n) {
      const T* source = from + n * image_step;
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        store(out + (n * Vectors + v) * kLanes<T>, gathered(source, offsets + v * kLanes<T>));
      }
    }
  }
}

template <class T>
void gather(const T* from, std::int64_t positions, std::int64_t step, std::int64_t images, std::int64_t image_step,
            const std::int32_t* offsets, std::int64_t width, std::int64_t stride, T* out) {
  if (width == kLanes<T>) {
    gather_positions<T, 1>(from, positions, step, images, image_step, offsets, stride, out);
  } else {
    gather_positions<T, 2>(from, positions, step, images, image_step, offsets, stride, out);
  }
}

typedef float HalfVector __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES / 2)));

Vector<double> doubles(const float* p) {
  HalfVector v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vector<double>);
}
Vector<double> doubles(const double* p) { return load(p); }

void store_as(float* p, Vector<double> v) {
  const HalfVector narrow = __builtin_convertvector(v, HalfVector);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}
void store_as(double* p, Vector<double> v) { store(p, v); }

template <class T>
void update(T* entries, const T* sums, std::int64_t count, double alpha, double beta) {
  std::int64_t i = 0;
  if (const auto factor = static_cast<T>(alpha); beta == 0 && factor == alpha) {  // the same, without a double
    for (; i + kLanes<T> <= count; i += kLanes<T>) store(entries + i, load(sums + i) * factor);
    for (; i < count; ++i) entries[i] = sums[i] * factor;
    return;
  }
  for (; i + kLanes<double> <= count; i += kLanes<double>) {
    const Vector<double> added = doubles(sums + i) * alpha;
    store_as(entries + i, beta == 0 ? added : doubles(entries + i) * beta + added);
  }
  for (; i < count; ++i) {
    const double added = static_cast<double>(sums[i]) * alpha;
    entries[i] = static_cast<T>(beta == 0 ? added : static_cast<double>(entries[i]) * beta + added);
  }
}

typedef std::uint16_t Halves __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES / 2)));
typedef std::uint32_t Words __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES)));
typedef float Floats __attribute__((vector_size(EIGENDAMAGE_VECTOR_BYTES)));

Words words(const std::uint16_t* halves) {
  Halves h;
  __builtin_memcpy(&h, halves, sizeof h);
  return __builtin_convertvector(h, Words);
}

struct BFloat16 {
  static Floats widen(Words w) { return (Floats)(w << 16); }
};

// The exponent is moved over to float's; a subnormal is normalised by a subtraction, Inf and NaN get float's exponent.
struct Float16 {
  static Floats widen(Words w) {
    const Words magnitude = (w & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const Words shifted = magnitude + 0x38000000;
    const Words special = exponent == 0x0f800000 ? shifted + 0x38000000 : shifted;
    const Words one = Words{} + 0x38800000;
    const Words subnormal = (Words)((Floats)(shifted + 0x00800000) - (Floats)one);
    return (Floats)((exponent == 0 ? subnormal : special) | (w & 0x8000) << 16);
  }
};

template <class Half>
float widen_one(std::uint16_t bits) {
  Words w = {bits};
  return Half::widen(w)[0];
}

template <class Half>
void widen_halves(const std::uint16_t* in, std::int64_t count, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes<float> <= count; i += kLanes<float>) store<float>(out + i, Half::widen(words(in + i)));
  for (; i < count; ++i) out[i] = widen_one<Half>(in[i]);
}

template <class T>
void copy(const T* in, std::int64_t count, T* out) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(out + i, load(in + i));
  __builtin_memcpy(out + i, in + i, static_cast<std::size_t>(count - i) * sizeof(T));
}

// read(in, n, out): n scalars as T.
template <class T, class In, class Read>
void copy_pixels_of(const In* in, std::int64_t step, std::int64_t count, std::int64_t channels, std::int64_t width,
                    std::int64_t stride, const std::int32_t* places, T* out, Read read) {
  for (std::int64_t p = 0; p < count; ++p, in += step) {
    T* const position = out + (places ? places[p] : p) * stride;
    read(in, channels, position);
    for (std::int64_t c = channels; c < width; ++c) position[c] = T(0);
  }
}

void copy_pixels(const void* pixels, ScalarType type, std::int64_t step, std::int64_t count, std::int64_t channels,
                 std::int64_t width, std::int64_t stride, const std::int32_t* places, float* out) {
  const auto* halves = static_cast<const std::uint16_t*>(pixels);
  if (type == ScalarType::kFloat32) {
    copy_pixels_of(static_cast<const float*>(pixels), step, count, channels, width, stride, places, out, copy<float>);
  } else if (type == ScalarType::kBFloat16) {
    copy_pixels_of(halves, step, count, channels, width, stride, places, out, widen_halves<BFloat16>);
  } else {
    copy_pixels_of(halves, step, count, channels, width, stride, places, out, widen_halves<Float16>);
  }
}

void copy_pixels(const void* pixels, ScalarType, std::int64_t step, std::int64_t count, std::int64_t channels,
                 std::int64_t width, std::int64_t stride, const std::int32_t* places, double* out) {
  copy_pixels_of(static_cast<const double*>(pixels), step, count, channels, width, stride, places, out, copy<double>);
}

template <class T>
void copy_every(const T* in, std::int64_t step, std::int64_t count, T* line) {
  if (step == 1) return copy(in, count, line);
  for (std::int64_t p = 0; p < count; ++p) line[p] = in[p * step];
}

template <class Half>
void widen_every(const std::uint16_t* in, std::int64_t step, std::int64_t count, float* line) {
  if (step == 1) return widen_halves<Half>(in, count, line);
  for (std::int64_t p = 0; p < count; ++p) line[p] = widen_one<Half>(in[p * step]);
}

void widen(const void* in, ScalarType type, std::int64_t step, std::int64_t count, float* line) {
  const auto* halves = static_cast<const std::uint16_t*>(in);
  if (type == ScalarType::kFloat32) return copy_every(static_cast<const float*>(in), step, count, line);
  if (type == ScalarType::kBFloat16) return widen_every<BFloat16>(halves, step, count, line);
  widen_every<Float16>(halves, step, count, line);
}

void widen(const void* in, ScalarType, std::int64_t step, std::int64_t count, double* line) {
  copy_every(static_cast<const double*>(in), step, count, line);
}

template <class T>
constexpr PanelKernels<T> kPanelKernels{
    .lanes = kLanes<T>,
    .tile_rows = kTileRows,
    .min_width = kLanes<T> < kTileRows ? 2 * kLanes<T> : kLanes<T>,
    .gram = gram<T>,
    .add = add<T>,
    .square = square<T>,
    .combine = combine<T>,
    .update = update<T>,
    .interleave = interleave<T>,
    .write_around = write_around<T>,
    .mirror = mirror<T>,
    .gather = gather<T>,
    .copy_pixels = copy_pixels,
    .widen = widen,
};

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
