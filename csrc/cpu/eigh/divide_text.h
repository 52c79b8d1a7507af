// Cuppen's divide and conquer for a tridiagonal matrix, under the rules of simd_text.h.

#pragma once

#include "lanes_text.h"
#include "product_text.h"
#include "secular_text.h"

namespace eigendamage::cpu::EIGENDAMAGE_LEVEL {
namespace {

constexpr std::int64_t kLeaf = 18;

/// The problem and its scratch. Row r of `rows` holds, in the columns of the block that r belongs to, an eigenvector of the
/// block with eigenvalue diagonal[r]; order[first …] lists the rows of the block from `first` on by eigenvalue.
template <class T>
struct Tridiagonal {
  T *diagonal, *beside;
  T* const* rows;
  std::int32_t* order;
  T *z, *poles, *weights, *roots;             // n + kLanes numbers each
  std::int32_t *merged, *kept, *out, *place;  // n each
  signed char* side;                          // n
  T** table;                                  // n
  Vector<T>* products;                        // n
  T *vectors, *packed;                        // n·eigh_stride(n), n·(n + 4·kPanel)
};

/// Rows i and j ← c·i + s·j and c·j − s·i over some columns, in whole vectors.
template <class T>
void rotate(T* i, T* j, T c, T s, std::int64_t columns) {
  for (std::int64_t k = 0; k < columns; k += kLanes<T>) {
    const Vector<T> x = load(i + k), y = load(j + k);
    store(i + k, x * c + y * s);
    store(j + k, y * c - x * s);
  }
}

template <class T>
void sort_rows(const T* diagonal, std::int32_t* order, std::int64_t count) {
  for (std::int64_t i = 1; i < count; ++i) {
    const std::int32_t row = order[i];
    std::int64_t to = i;
    for (; to > 0 && diagonal[order[to - 1]] > diagonal[row]; --to) order[to] = order[to - 1];
    order[to] = row;
  }
}

/// QL on the blocks that start at leaves[0 … count], one in each lane; a block ends where the next one starts.
template <class T>
bool solve_leaves(const Tridiagonal<T>& problem, const std::int32_t* leaves, std::int64_t count) {
  Vector<T> d[kLeaf] = {}, e[kLeaf] = {}, padded[(kLeaf + 2 * kSpareRows) * kLeaf] = {};
  Vector<T>* const z = padded + kSpareRows * kLeaf;
  lanes::Step<T, 1, lanes::kDepth> steps[lanes::recorded_steps(kLeaf)];
  std::int64_t size = 0;
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const std::int64_t first = leaves[lane], height = leaves[lane + 1] - first;
    for (std::int64_t i = 0; i < height; ++i) {
      d[i][lane] = problem.diagonal[first + i];
      if (i + 1 < height) e[i][lane] = problem.beside[first + i];
    }
    size = height > size ? height : size;
  }
  Vector<T> largest{};
  for (std::int64_t i = 0; i < size; ++i) {
    z[i * size + i] = spread(T(1));
    largest = larger(largest, larger(magnitude(d[i]), magnitude(e[i])));
  }
  // Each leaf is brought to order 1, where lanes::diagonalise tells noise from numbers.
  const typename VectorOf<T>::index exponent = lanes::exponent_of<T>(largest);
  const lanes::Scaling<T> down(-exponent), up(exponent);
  for (std::int64_t i = 0; i < size; ++i) d[i] = down(d[i]), e[i] = down(e[i]);
  const bool solved = !any<T>(lanes::diagonalise<T>(size, d, e, z, steps));
  for (std::int64_t lane = 0; lane < count; ++lane) {
    const std::int64_t first = leaves[lane], height = leaves[lane + 1] - first;
    for (std::int64_t k = 0; k < height; ++k) {
      problem.diagonal[first + k] = up(d[k])[lane];
      problem.order[first + k] = static_cast<std::int32_t>(first + k);
      for (std::int64_t i = 0; i < height; ++i) problem.rows[first + k][first + i] = z[k * size + i][lane];
    }
    sort_rows(problem.diagonal, problem.order + first, height);
  }
  return solved;
}

/// Leaves out what of D + ρ·z·zᵀ is an eigenvalue already: where z is negligible, and where a rotation of two close
/// poles makes it so. `merged` lists the rows by eigenvalue; the rows that remain go to `kept`, the others to `out`. Returns
/// how many remain.
template <class T>
std::int64_t deflate(const Tridiagonal<T>& problem, std::int64_t first, std::int64_t count, T rho) {
  T *d = problem.diagonal, *z = problem.z, largest = 0;
  for (std::int64_t r = first; r < first + count; ++r) {
    largest = larger(largest, larger(magnitude(d[r]), magnitude(z[r])));
  }
  const T negligible = 8 * Limits<T>::eps * largest;
  std::int64_t kept = 0, out = 0;
  std::int32_t last = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t row = problem.merged[i];
    if (rho * magnitude(z[row]) <= negligible) {
      problem.out[out++] = row;
      continue;
    }
    if (last >= 0) {
      const T square = z[row] * z[row] + z[last] * z[last];
      if (magnitude((d[row] - d[last]) * z[row] * z[last]) <= negligible * square) {
        const T length = square_root(square), c = z[row] / length, s = -z[last] / length;
        rotate(problem.rows[last] + first, problem.rows[row] + first, c, s, count);
        const T low = d[last] * c * c + d[row] * s * s;
        d[row] = d[last] * s * s + d[row] * c * c;
        d[last] = low;
        z[row] = length;
        problem.side[row] = problem.side[row] == problem.side[last] ? problem.side[row] : 1;
        problem.out[out++] = last;
      } else {
        problem.kept[kept++] = last;
      }
    }
    last = row;
  }
  if (last >= 0) problem.kept[kept++] = last;
  sort_rows(d, problem.out, out);
  return kept;
}

/// The kept rows' columns [begin, end) of the rows with side ≤ 1 or ≥ 1, packed in the order of `place`.
template <class T>
void pack_rows(const Tridiagonal<T>& problem, std::int64_t kept, bool upper, std::int64_t begin, std::int64_t end,
               std::int64_t from, std::int64_t height) {
  constexpr std::int64_t width = kPanel<T>;
  for (std::int64_t k = 0; k < kept; ++k) {
    const std::int32_t row = problem.kept[k];
    if (upper ? problem.side[row] > 1 : problem.side[row] < 1) continue;
    T* to = problem.packed + (problem.place[k] - from) * width;
    for (std::int64_t column = begin; column < end; column += width, to += height * width) {
      const T* x = problem.rows[row] + column;
      if (column + width <= end) {
        store(to, load(x));
        store(to + kLanes<T>, load(x + kLanes<T>));
      } else {
        for (std::int64_t c = 0; c < width; ++c) to[c] = column + c < end ? x[c] : T(0);
      }
    }
  }
}

/// Replaces the kept rows by the eigenvectors of D + ρ·z·zᵀ.
template <class T>
void multiply_rows(const Tridiagonal<T>& problem, std::int64_t kept, std::int64_t begin, std::int64_t cut,
                   std::int64_t end, const std::int64_t* sides) {
  constexpr std::int64_t width = kPanel<T>, lanes = kLanes<T>;
  for (std::int64_t k = 0; k < kept; ++k) problem.table[k] = problem.rows[problem.kept[k]];
  // Both halves are packed before the rows are written.
  const std::int64_t upper = sides[0] + sides[1], lower = sides[1] + sides[2];
  const T* upper_packed = problem.packed;
  pack_rows(problem, kept, true, begin, cut, 0, upper);
  Tridiagonal<T> rest = problem;
  rest.packed += upper * round_up(cut - begin, width);
  pack_rows(rest, kept, false, cut, end, sides[0], lower);
  for (int half = 0; half < 2; ++half) {
    const std::int64_t low = half ? cut : begin, high = half ? end : cut, inner = half ? lower : upper;
    const T* right = half ? rest.packed : upper_packed;
    for (std::int64_t column = low; column < high; column += width, right += inner * width) {
      const std::int64_t columns = column + width < high ? width : high - column;
      for (std::int64_t k = 0; k < kept; k += lanes) {
        const T* left = problem.vectors + k * kept + (half ? sides[0] * lanes : 0);
        const std::int64_t height = k + lanes < kept ? lanes : kept - k;
        product<T, false>({left, 1, lanes}, {right, width}, inner, height, problem.table + k, column, columns);
      }
    }
  }
}

/// Joins the blocks of rows [begin, cut) and [cut, end), solved without the rank one that `coupling` adds between them.
template <class T>
void merge(const Tridiagonal<T>& problem, std::int64_t begin, std::int64_t cut, std::int64_t end, T coupling) {
  T *d = problem.diagonal, *z = problem.z;
  const T root_half = T(0.70710678118654752440), rho = 2 * magnitude(coupling);
  const std::int64_t count = end - begin;
  std::int64_t left = begin, right = cut;
  for (std::int64_t i = 0; i < count; ++i) {
    const bool upper = right == end || (left < cut && d[problem.order[left]] <= d[problem.order[right]]);
    const std::int32_t row = problem.order[upper ? left++ : right++];
    problem.merged[i] = row;
    problem.side[row] = upper ? 0 : 2;
    z[row] = upper ? problem.rows[row][cut - 1] * root_half
                   : problem.rows[row][cut] * (coupling < 0 ? -root_half : root_half);
  }
  const std::int64_t kept = deflate(problem, begin, count, rho);
  if (kept == 1) {
    const std::int32_t row = problem.kept[0];
    d[row] += rho * z[row] * z[row];
  } else if (kept > 1) {
    std::int64_t sides[3] = {}, places[3];
    for (std::int64_t k = 0; k < kept; ++k) ++sides[problem.side[problem.kept[k]]];
    places[0] = 0, places[1] = sides[0], places[2] = sides[0] + sides[1];
    T squares = 0;
    for (std::int64_t k = 0; k < kept; ++k) {
      const std::int32_t row = problem.kept[k];
      squares += z[row] * z[row];
      problem.place[k] = static_cast<std::int32_t>(places[problem.side[row]]++);
      problem.poles[k] = d[row];
      problem.weights[k] = z[row];
    }
    const Secular<T> equation{kept, problem.poles, problem.weights, rho, rho * squares};
    solve_secular(equation, problem.place, problem.roots, problem.vectors, problem.products);
    multiply_rows(problem, kept, begin, cut, end, sides);
    for (std::int64_t k = 0; k < kept; ++k) d[problem.kept[k]] = problem.roots[k];
  }
  for (std::int64_t i = 0, k = 0, o = 0; i < count; ++i) {
    const bool take = o == count - kept || (k < kept && d[problem.kept[k]] <= d[problem.out[o]]);
    problem.order[begin + i] = take ? problem.kept[k++] : problem.out[o++];
  }
}

constexpr std::int64_t middle(std::int64_t begin, std::int64_t end) { return begin + (end - begin) / 2; }

/// Takes from the diagonal what makes the coupling of the blocks a matrix of rank one, and lists the leaves' first rows.
template <class T>
void tear(const Tridiagonal<T>& problem, std::int64_t begin, std::int64_t end, std::int32_t*& leaves) {
  if (end - begin <= kLeaf) {
    *leaves++ = static_cast<std::int32_t>(begin);
    return;
  }
  const std::int64_t cut = middle(begin, end);
  const T coupling = magnitude(problem.beside[cut - 1]);
  problem.diagonal[cut - 1] -= coupling;
  problem.diagonal[cut] -= coupling;
  tear(problem, begin, cut, leaves);
  tear(problem, cut, end, leaves);
}

template <class T>
void merge_all(const Tridiagonal<T>& problem, std::int64_t begin, std::int64_t end) {
  if (end - begin <= kLeaf) return;
  const std::int64_t cut = middle(begin, end);
  merge_all(problem, begin, cut);
  merge_all(problem, cut, end);
  merge(problem, begin, cut, end, problem.beside[cut - 1]);
}

/// Diagonalises the tridiagonal matrix of n rows; `rows` is zero before. Returns whether the iteration converged.
template <class T>
bool divide_and_conquer(const Tridiagonal<T>& problem, std::int64_t n) {
  std::int32_t *const leaves = problem.merged, *end = leaves;
  tear(problem, 0, n, end);
  *end = static_cast<std::int32_t>(n);
  for (std::int32_t* some = leaves; some < end; some += kLanes<T>) {
    if (!solve_leaves(problem, some, end - some < kLanes<T> ? end - some : kLanes<T>)) return false;
  }
  merge_all(problem, 0, n);
  return true;
}

}  // namespace
}  // namespace eigendamage::cpu::EIGENDAMAGE_LEVEL
