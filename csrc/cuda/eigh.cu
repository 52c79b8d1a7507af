// A block owns a matrix of at most 64 rows, in its shared memory from reading it to writing its eigenvectors.
// A thread owns some entries of the eigenvectors, in registers, and turns the entries that some pairs of rows share.
// Few matrices are bound by the latency of a round, some 2·n rounds times sweeps; many by shared memory and arithmetic alike.

#include <algorithm>
#include <iterator>
#include <vector>

#include "eigh.h"
#include "eigh_certificate.cuh"
#include "table.cuh"

namespace eigendamage::cuda {
namespace {

/// `count` matrices of one size, `step` elements from one to the next; their results and codes follow one another. They
/// are problems first … of a launch.
struct Run {
  const void* matrix;
  void *values, *vectors_t;
  std::int32_t* code;
  std::int64_t row_stride, column_stride, step;
  std::int32_t size, first;
};

constexpr int kFewRuns = 63;  // what 4 KB of parameters hold

/// The runs of a launch: few are parameters of the kernel, many lie in memory.
struct Runs {
  const Run* many;
  int count;
  Run few[kFewRuns];
};
static_assert(sizeof(Runs) <= 4096);

template <class T>
struct Problem {
  int size;
  const T* matrix;
  std::int64_t row_stride, column_stride;
  T *values, *vectors_t;
  std::int32_t* code;
};

/// Problem `number` of the launch: of the last run that starts no later.
template <class T>
__device__ Problem<T> find_problem(const Run* runs, int count, int number) {
  int found = 0;
  for (int end = count; end - found > 1;) {
    const int middle = (found + end) / 2;
    (runs[middle].first <= number ? found : end) = middle;
  }
  const Run& run = runs[found];
  const std::int64_t place = number - run.first, n = run.size;
  return {run.size,
          static_cast<const T*>(run.matrix) + place * run.step,
          run.row_stride,
          run.column_stride,
          static_cast<T*>(run.values) + place * n,
          static_cast<T*>(run.vectors_t) + place * n * n,
          run.code + place};
}

/// A factor 2^exponent, in two steps because it may be beyond the range of T.
template <class T>
struct Scaling {
  T half, rest;
  __device__ explicit Scaling(int exponent)
      : half(ldexp(T(1), exponent >> 1)), rest(ldexp(T(1), exponent - (exponent >> 1))) {}
  __device__ T operator()(T x) const { return x * half * rest; }
};

/// The block's shared memory.
template <class T>
struct Workspace {
  T* numbers;  ///< the matrix by places, twice; then Vᵀ (n, stride)
  T* values;
  Probing<T> probing;
  T *ranks, *signs;

  static __host__ __device__ int size(int order) { return order * (order + 1) + (2 + 4 * kProbes) * order; }

  __device__ explicit Workspace(int order) : numbers(shared_memory<T>()) {
    T* free = numbers + order * (order + 1);
    const auto take = [&](int rows) { return (free += rows * order) - rows * order; };
    values = take(1);
    probing.signs = take(kProbes);
    probing.images = take(kProbes);
    probing.residuals = take(kProbes);
    probing.skews = take(kProbes);
    probing.squares = take(1);
    ranks = probing.signs;
    signs = probing.images;
  }
};

template <class T, int Warps>
__device__ void fail(const Problem<T>& problem, EighCode code) {
  const std::int64_t n = problem.size, rank = Team<Warps>::rank(), threads = Team<Warps>::kThreads;
  for (std::int64_t i = rank; i < n; i += threads) problem.values[i] = kNan<T>;
  for (std::int64_t i = rank; i < n * n; i += threads) problem.vectors_t[i] = kNan<T>;
  if (rank == 0) *problem.code = code;
}

/// Copies the lower triangle, and zeros for a row that makes the order even, to their slots. Some loads are under way at
/// once.
template <class T, int Warps>
__device__ void read_lower(const Problem<T>& problem, Seating seating, T* numbers) {
  constexpr int kAtOnce = 8;
  const int n = problem.size, order = 2 * seating.half;
  const bool along_rows = problem.column_stride <= problem.row_stride;
  for (int begin = Team<Warps>::warp(); begin < order; begin += kAtOnce * Warps) {
    for (int inner = Team<Warps>::lane(); inner < order; inner += 32) {
      T found[kAtOnce];
      const auto each = [&](const auto& visit) {
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int outer = begin + u * Warps, i = along_rows ? outer : inner, j = along_rows ? inner : outer;
          if (j <= i && i < order) visit(i, j, found[u]);
        }
      };
      each([&](int i, int j, T& x) {
        x = i < n ? __ldg(problem.matrix + i * problem.row_stride + j * problem.column_stride) : T(0);
      });
      each([&](int i, int j, T x) { numbers[seating.slot(i, j)] = x; });
    }
  }
}

/// The largest magnitude; NaN if any number is not finite. Every warp looks for itself.
template <class T>
__device__ T largest_magnitude(const T* numbers, int count, int lane) {
  T largest = 0;
  bool finite = true;
  for (int i = lane; i < count; i += 32) {
    const T size = fabs(numbers[i]);
    finite &= size <= kLargest<T>;
    largest = max(largest, size);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) largest = max(largest, __shfl_xor_sync(0xFFFFFFFF, largest, lanes));
  return __all_sync(0xFFFFFFFF, finite) ? largest : kNan<T>;
}

/// eps·‖A‖/√n: pairs below it are left alone.
template <class T>
__device__ T negligible(const T* numbers, Seating seating, int n, int lane) {
  T square = 0;
  for (int i = lane; i < seating.size(); i += 32) {
    square = fma(numbers[i] * (i < seating.diagonal() ? T(2) : T(1)), numbers[i], square);
  }
  for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(0xFFFFFFFF, square, lanes);
  return kEpsilon<T> * sqrt(square / static_cast<T>(n));
}

/// Writes values and vectors in ascending order, signs chosen. The first barrier is the caller's.
template <class T, int Warps>
__device__ void write(const Problem<T>& problem, const Workspace<T>& space, int stride, const Scaling<T>& up) {
  const int n = problem.size, lane = Team<Warps>::lane();
  for (int k = Team<Warps>::rank(); k < n; k += Team<Warps>::kThreads) {
    const T value = space.values[k], *const row = space.numbers + k * stride;
    int rank = 0;
    T largest = 0;
    for (int i = 0; i < n; ++i) {
      const T other = space.values[i], x = row[i];
      rank += other < value || (other == value && i < k);
      if (fabs(x) > fabs(largest)) largest = x;
    }
    space.ranks[k] = static_cast<T>(rank);
    space.signs[k] = largest < 0 ? T(-1) : T(1);
    problem.values[rank] = up(value) + T(0);  // −0 becomes 0
  }
  Team<Warps>::sync();
  for (int k = Team<Warps>::warp(); k < n; k += Warps) {
    T* const to = problem.vectors_t + static_cast<int>(space.ranks[k]) * n;
    for (int i = lane; i < n; i += 32) to[i] = fma(space.signs[k], space.numbers[k * stride + i], T(0));
  }
  if (Team<Warps>::rank() == 0) *problem.code = kSolved;
}

template <class T, int Pairs, int Warps>
__global__ void __launch_bounds__(32 * Warps, 1) eigh_kernel(const __grid_constant__ Runs runs) {
  const int rank = Team<Warps>::rank(), lane = Team<Warps>::lane();
  const int number = static_cast<int>(blockIdx.x);
  const Problem<T> problem = runs.count <= kFewRuns ? find_problem<T>(runs.few, runs.count, number)
                                                    : find_problem<T>(runs.many, runs.count, number);
  const int n = problem.size;
  if (n > 2 * Pairs) return fail<T, Warps>(problem, kNotAccurate);
  if (n == 0) {
    if (rank == 0) *problem.code = kSolved;
    return;
  }

  const Seating seating{(n + 1) / 2};
  const Workspace<T> space(2 * seating.half);
  read_lower<T, Warps>(problem, seating, space.numbers);
  Team<Warps>::sync();
  const T largest = largest_magnitude(space.numbers, seating.size(), lane);
  if (!(largest <= kLargest<T>)) return fail<T, Warps>(problem, kNotFinite);
  int exponent = 0;
  frexp(largest, &exponent);
  const Scaling<T> down(-exponent), up(exponent);
  Team<Warps>::sync();
  for (int i = rank; i < seating.size(); i += Team<Warps>::kThreads) space.numbers[i] = down(space.numbers[i]);
  Team<Warps>::sync();

  Components<T, Pairs, Warps> own;
  const T threshold = negligible(space.numbers, seating, n, lane);
  const auto found = diagonalise(seating, threshold, space.numbers, own);
  for (int k = rank; k < n; k += Team<Warps>::kThreads) space.values[k] = found.numbers[seating.diagonal() + k];
  Team<Warps>::sync();
  const int stride = n | 1;  // columns without bank conflicts
  own.store(n, seating.half, stride, space.numbers);
  Team<Warps>::sync();

  const auto entry = [&](int i, int j) {
    return down(__ldg(problem.matrix + max(i, j) * problem.row_stride + min(i, j) * problem.column_stride));
  };
  if (!certificate<T, Pairs, Warps>(n, entry, space.values, space.numbers, stride, space.probing)) {
    return fail<T, Warps>(problem, kNotAccurate);
  }
  bool fits = true;
  for (int k = lane; k < n; k += 32) fits &= fabs(up(space.values[k])) <= kLargest<T>;
  if (!__all_sync(0xFFFFFFFF, fits)) return fail<T, Warps>(problem, kOverflow);
  write<T, Warps>(problem, space, stride, up);
}

struct TypedRun {
  Run run;
  ScalarType type;
  std::int64_t count;
};

/// Whether the problem continues the run.
bool continues(TypedRun& last, const EighProblem& problem) {
  const std::int64_t bytes = last.type == ScalarType::kFloat64 ? 8 : 4, n = problem.size;
  const auto lies = [&](const void* from, const void* to, std::int64_t elements) {
    return static_cast<const char*>(from) + last.count * elements * bytes == to;
  };
  const Run& run = last.run;
  if (problem.type != last.type || n != run.size || problem.row_stride != run.row_stride ||
      problem.column_stride != run.column_stride || !lies(run.values, problem.values, n) ||
      !lies(run.vectors_t, problem.vectors_t, n * n) || run.code + last.count != problem.code) {
    return false;
  }
  if (last.count == 1) {
    const std::int64_t distance = static_cast<const char*>(problem.matrix) - static_cast<const char*>(run.matrix);
    if (distance % bytes != 0) return false;
    last.run.step = distance / bytes;
  }
  return lies(run.matrix, problem.matrix, last.run.step);
}

std::vector<TypedRun> find_runs(const EighProblem* problems, std::int64_t count) {
  std::vector<TypedRun> runs;
  for (const EighProblem* p = problems; p < problems + count; ++p) {
    if (!runs.empty() && continues(runs.back(), *p)) {
      ++runs.back().count;
      continue;
    }
    runs.push_back({{p->matrix, p->values, p->vectors_t, p->code, p->row_stride, p->column_stride, 0,
                     static_cast<std::int32_t>(p->size), 0},
                    p->type,
                    1});
  }
  return runs;
}

Runs listed(const std::vector<Run>& runs, const Execution& run) {
  Runs list{nullptr, static_cast<int>(runs.size()), {}};
  if (list.count <= kFewRuns) {
    std::copy(runs.begin(), runs.end(), list.few);
    return list;
  }
  Table table;
  table.add(runs);
  void* const stored = (*run.scratch)(table.bytes());
  table.send(stored, run);
  list.many = static_cast<const Run*>(stored);
  return list;
}

/// Solves runs of one type, none larger than the first, in one launch.
template <class T, int Pairs, int Warps>
void solve(const std::vector<TypedRun>& chosen, const Execution& run) {
  std::vector<Run> runs;
  std::int64_t blocks = 0;
  for (const TypedRun& typed : chosen) {
    runs.push_back(typed.run);
    runs.back().first = static_cast<std::int32_t>(blocks);
    blocks += typed.count;
  }
  const int largest = std::min(2 * Pairs, runs.front().size), numbers = Workspace<T>::size(largest + largest % 2);
  const Grid grid{static_cast<unsigned>(blocks), 32 * Warps, static_cast<std::size_t>(numbers) * sizeof(T)};
  launch(eigh_kernel<T, Pairs, Warps>, grid, run, listed(runs, run));
}

/// Few matrices share a launch, each with several warps; of many, each that fits gets one warp.
template <class T>
void solve_all(std::vector<TypedRun> runs, const Execution& run) {
  if (runs.empty()) return;
  std::int64_t count = 0;
  for (const TypedRun& typed : runs) count += typed.count;
  std::stable_sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.run.size > b.run.size; });
  const auto small = std::find_if(runs.begin(), runs.end(), [](const auto& typed) { return typed.run.size <= 32; });
  if (count < 4 * std::int64_t{device_attribute(cudaDevAttrMultiProcessorCount)}) {
    if (small == runs.begin()) return solve<T, 16, 4>(runs, run);
    return solve<T, 32, 8>(runs, run);
  }
  if (small != runs.begin()) solve<T, 32, 8>({runs.begin(), small}, run);
  if (small != runs.end()) solve<T, 16, 1>({small, runs.end()}, run);
}

}  // namespace

void eigh(const EighProblem* problems, std::int64_t count, const Execution& run) {
  const std::vector<TypedRun> runs = find_runs(problems, count);
  std::vector<TypedRun> singles, doubles;
  for (const TypedRun& typed : runs) (typed.type == ScalarType::kFloat64 ? doubles : singles).push_back(typed);
  solve_all<float>(std::move(singles), run);
  solve_all<double>(std::move(doubles), run);
}

}  // namespace eigendamage::cuda
