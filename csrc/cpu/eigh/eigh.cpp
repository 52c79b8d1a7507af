#include "eigh.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <limits>
#include <tuple>
#include <vector>

#include "../scratch.h"
#include "../simd.h"

namespace eigendamage::cpu {
namespace {

/// One matrix, or several of one size and type that share a vector's lanes.
struct Task {
  std::vector<const EighProblem*> problems;
  double cost;
};

template <class T>
struct Tools {
  const PanelKernels<T>& panels;
  const EighKernels<T>& one;
  const GroupSolver<T>& groups;
  const LaneSolver<T>& lanes;
  const Certificate<T>& certificate;
  const TriangleReader<T>& triangles;
};

/// f(tools of the problem's type).
template <class F>
void dispatch(ScalarType type, const F& f) {
  const InstructionSet& set = instruction_set();
  if (type == ScalarType::kFloat64) {
    f(Tools<double>{set.double_precision, set.double_eigh, set.double_groups, set.double_lanes, set.double_certificate,
                    set.double_triangles});
  } else {
    f(Tools<float>{set.single_precision, set.single_eigh, set.single_groups, set.single_lanes, set.single_certificate,
                   set.single_triangles});
  }
}

template <class T>
void fail(const EighProblem& problem, EighCode code) {
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  std::fill_n(static_cast<T*>(problem.values), problem.size, nan);
  std::fill_n(static_cast<T*>(problem.vectors_t), problem.size * problem.size, nan);
  *problem.code = code;
}

/// A factor 2^exponent, applied in two steps because it may be beyond the range of T.
template <class T>
struct Scaling {
  explicit Scaling(int exponent)
      : half(std::ldexp(T(1), exponent >> 1)), rest(std::ldexp(T(1), exponent - (exponent >> 1))) {}
  T operator()(T x) const { return x * half * rest; }
  T half, rest;
};

/// Copies the lower triangle, scaled, to rows `stride` apart.
template <class T>
void read_lower(const Tools<T>& tools, const EighProblem& problem, const Scaling<T>& scale, std::int64_t stride, T* a) {
  tools.triangles.copy(problem.size, static_cast<const T*>(problem.matrix), problem.row_stride, problem.column_stride,
                       scale.half, scale.rest, stride, a);
}

/// A thread's memory, used again from task to task.
class Scratch {
 public:
  template <class T>
  T* take(std::int64_t size) {
    const std::int64_t bytes = size * static_cast<std::int64_t>(sizeof(T));
    if (bytes > bytes_) {
      memory_.reset();
      memory_ = make_buffer<std::byte>(bytes);
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  Buffer<std::byte> memory_;
  std::int64_t bytes_ = 0;
};

/// Solves the matrices of a task in the lanes of vectors. Zeros fill the other lanes.
template <class T>
void solve_lanes(const Tools<T>& tools, const Task& task, Scratch& scratch) {
  const std::int64_t n = task.problems.front()->size, size = n * n, lanes = tools.lanes.lanes;
  const std::int64_t staged = (size + lanes - 1) / lanes * lanes;  // whole vectors
  T* const memory = scratch.take<T>((3 * staged + 2 * (kSpareRows + 1) * n) * lanes + tools.lanes.workspace(n));
  T *const staging = memory, *const a = staging + staged * lanes,
           *const vectors = a + (staged + kSpareRows * n) * lanes,
           *const values = vectors + (staged + kSpareRows * n) * lanes, *const ranks = values + n * lanes;
  const T* lines[kMaxLanes] = {};
  std::int32_t codes[kMaxLanes];
  for (std::size_t lane = 0; lane < task.problems.size(); ++lane) {
    const EighProblem& problem = *task.problems[lane];
    lines[lane] = static_cast<const T*>(problem.matrix);
    if (problem.row_stride == n && problem.column_stride == 1) continue;
    T* const copy = staging + static_cast<std::int64_t>(lane) * staged;
    std::fill_n(copy, size, T(0));
    read_lower(tools, problem, Scaling<T>(0), n, copy);
    lines[lane] = copy;
  }
  tools.panels.interleave(lines, size, lanes, nullptr, a);
  tools.lanes.solve(n, a, values, ranks, vectors, codes, ranks + n * lanes);

  for (std::int64_t first = 0; first < size; first += lanes) {  // what lies behind the last row is not used
    for (std::int64_t i = 0; i < lanes; ++i) lines[i] = vectors + (first + i) * lanes;
    tools.panels.interleave(lines, lanes, staged, nullptr, staging + first);
  }
  for (std::size_t lane = 0; lane < task.problems.size(); ++lane) {
    const EighProblem& problem = *task.problems[lane];
    *problem.code = codes[lane];
    if (codes[lane] != kSolved) {
      fail<T>(problem, static_cast<EighCode>(codes[lane]));
      continue;
    }
    const T* row = staging + static_cast<std::int64_t>(lane) * staged;
    for (std::int64_t k = 0; k < n; ++k, row += n) {
      const std::size_t place = static_cast<std::size_t>(k * lanes) + lane;
      const auto rank = static_cast<std::int64_t>(ranks[place]);
      static_cast<T*>(problem.values)[rank] = values[place];
      std::copy(row, row + n, static_cast<T*>(problem.vectors_t) + rank * n);
    }
  }
}

/// Copies the lower triangle to rows `stride` apart, brought to a largest magnitude in [1/2, 1) by 2^-exponent. Returns
/// whether it is finite.
template <class T>
bool read_scaled(const Tools<T>& tools, const EighProblem& problem, std::int64_t stride, T* a, int& exponent) {
  const T largest = tools.triangles.largest(problem.size, static_cast<const T*>(problem.matrix), problem.row_stride,
                                            problem.column_stride);
  if (!std::isfinite(largest)) return false;
  std::frexp(largest, &exponent);
  read_lower(tools, problem, Scaling<T>(-exponent), stride, a);
  return true;
}

/// An eigendecomposition of the matrix times 2^-exponent: rows of vectors_t are `stride` apart, in the order of the values.
template <class T>
struct Solution {
  int exponent;
  const T *values, *vectors_t;
  std::int64_t stride;
};

/// Writes the solution in ascending order, if it passes the certificate. a and workspace are scratch.
template <class T>
void finish(const Tools<T>& tools, const EighProblem& problem, const Solution<T>& solution, T* a, T* workspace) {
  const std::int64_t n = problem.size, stride = solution.stride;
  read_lower(tools, problem, Scaling<T>(-solution.exponent), stride, a);
  if (!tools.certificate.holds(n, stride, a, solution.values, solution.vectors_t, workspace)) {
    return fail<T>(problem, kNotAccurate);
  }
  T *const found = workspace, *const ranks = workspace + eigh_stride(n);
  const Scaling<T> up(solution.exponent);
  for (std::int64_t k = 0; k < n; ++k) found[k] = up(solution.values[k]) + T(0);  // −0 becomes 0
  tools.certificate.rank(n, found, ranks);
  tools.certificate.place_rows(n, stride, solution.vectors_t, ranks, static_cast<T*>(problem.vectors_t));
  T* const values = static_cast<T*>(problem.values);
  for (std::int64_t k = 0; k < n; ++k) values[static_cast<std::int64_t>(ranks[k])] = found[k];
  if (!std::isfinite(values[0]) || !std::isfinite(values[n - 1])) return fail<T>(problem, kOverflow);
  *problem.code = kSolved;
}

/// Solves the matrices of a task as a group.
template <class T>
void solve_group(const Tools<T>& tools, const Task& task, Scratch& scratch) {
  const std::int64_t n = task.problems.back()->size;  // the largest is the last
  const auto count = static_cast<std::int64_t>(task.problems.size());
  const std::int64_t members = count <= tools.groups.lanes ? tools.groups.lanes : tools.groups.members;
  const std::int64_t one = (n + 2 * kSpareGroupRows) * group_stride(n), probes = certificate_workspace(n);
  T* const memory = scratch.take<T>(2 * n * members + kTogether * n * group_stride(n) + count * one +
                                    std::max(tools.groups.workspace(n), probes));
  T *const diagonal = memory, *const beside = diagonal + n * members, *const values = beside,
           *const a = beside + n * members, *const vectors = a + kTogether * n * group_stride(n),
           *const workspace = vectors + count * one;
  std::fill(diagonal, a, T(0));
  std::vector<Reduction<T>> read;  // matrices of one size
  std::int64_t size = 0;
  const auto reduce = [&] {
    if (!read.empty()) {
      tools.groups.reduce(size, static_cast<std::int64_t>(read.size()), read.data(), members, workspace);
    }
    read.clear();
  };
  std::int64_t sizes[kMaxLanes] = {};
  int exponents[kMaxLanes];
  T* vectors_t[kMaxLanes];
  for (std::size_t m = 0; m < task.problems.size(); ++m) {
    const EighProblem& problem = *task.problems[m];
    if (size != problem.size || static_cast<std::int64_t>(read.size()) == kTogether) reduce();
    size = problem.size;
    vectors_t[m] = vectors + static_cast<std::int64_t>(m) * one + kSpareGroupRows * group_stride(size);
    T* const copy = a + static_cast<std::int64_t>(read.size()) * n * group_stride(n);
    if (!read_scaled(tools, problem, eigh_stride(size), copy, exponents[m])) {
      fail<T>(problem, kNotFinite);
      continue;
    }
    sizes[m] = size;
    read.push_back({copy, diagonal + m, beside + m, vectors_t[m]});
  }
  reduce();
  const std::uint32_t stuck = tools.groups.diagonalise(members, n, sizes, diagonal, beside, vectors_t, workspace);
  for (std::size_t m = 0; m < task.problems.size(); ++m) {
    if (sizes[m] == 0) continue;
    if (stuck >> m & 1) {
      fail<T>(*task.problems[m], kNotAccurate);
      continue;
    }
    for (std::int64_t k = 0; k < sizes[m]; ++k) values[k] = diagonal[static_cast<std::size_t>(k * members) + m];
    finish(tools, *task.problems[m], Solution<T>{exponents[m], values, vectors_t[m], group_stride(sizes[m])}, a,
           workspace);
  }
}

/// Solves one matrix alone.
template <class T>
void solve_one(const Tools<T>& tools, const EighProblem& problem, Scratch& scratch) {
  const std::int64_t n = problem.size, stride = eigh_stride(n);
  if (n > kMaxEighSize) return fail<T>(problem, kNotAccurate);
  T* const memory = scratch.take<T>(2 * n * stride + stride + eigh_hybrid_workspace(n) + certificate_workspace(n));
  T *const a = memory, *const vectors = a + n * stride, *const values = vectors + n * stride,
           *const workspace = values + stride;
  Solution<T> solution{0, values, vectors, stride};
  if (!read_scaled(tools, problem, stride, a, solution.exponent)) return fail<T>(problem, kNotFinite);
  if (tools.one.hybrid(n, a, values, vectors, workspace) != 0) return fail<T>(problem, kNotAccurate);
  finish(tools, problem, solution, a, workspace);
}

/// How many matrices may be solved together with `problem`, and whether `other`, no smaller and of its type, may be one.
template <class T>
std::int64_t company(const Tools<T>& tools, const EighProblem& problem) {
  return problem.size <= kMaxLaneSize<T>    ? tools.lanes.lanes
         : problem.size <= kMaxGroupSize<T> ? tools.groups.members
                                            : 1;
}

template <class T>
bool may_join(const EighProblem& problem, const EighProblem& other) {
  if (problem.size <= kMaxLaneSize<T>) return other.size == problem.size;
  return other.size <= std::min(kMaxGroupSize<T>, problem.size + problem.size / 4);
}

/// Problems in the order (type, size), those that may be solved together in one task, longest task first.
std::vector<Task> make_tasks(const EighProblem* problems, std::int64_t count) {
  std::vector<const EighProblem*> order;
  for (std::int64_t i = 0; i < count; ++i) {
    *problems[i].code = kSolved;
    if (problems[i].size > 0) order.push_back(problems + i);
  }
  const auto key = [](const EighProblem* problem) { return std::tuple(problem->type, problem->size); };
  std::stable_sort(order.begin(), order.end(), [&](const auto* a, const auto* b) { return key(a) < key(b); });

  std::vector<Task> tasks;
  for (const EighProblem* problem : order) {
    const auto size = static_cast<double>(problem->size);
    dispatch(problem->type, [&]<class T>(const Tools<T>& tools) {
      const double cost = size * size * size * sizeof(T);
      if (!tasks.empty()) {
        Task& last = tasks.back();
        const EighProblem& first = *last.problems.front();
        if (first.type == problem->type && may_join<T>(first, *problem) &&
            static_cast<std::int64_t>(last.problems.size()) < company(tools, first)) {
          last.problems.push_back(problem);
          last.cost += cost;
          return;
        }
      }
      tasks.push_back({{problem}, cost});
    });
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  return tasks;
}

}  // namespace

void eigh(const EighProblem* problems, std::int64_t count, const Execution& run) {
  const std::vector<Task> tasks = make_tasks(problems, count);
  std::atomic<std::size_t> next{0};
  (*run.parallel_for)(static_cast<std::int64_t>(tasks.size()), [&](std::int64_t, std::int64_t) {
    Scratch scratch;
    for (std::size_t i = next++; i < tasks.size(); i = next++) {
      const Task& task = tasks[i];
      dispatch(task.problems.front()->type, [&]<class T>(const Tools<T>& tools) {
        const std::int64_t size = task.problems.front()->size;
        if (size <= kMaxLaneSize<T>) {
          solve_lanes(tools, task, scratch);
        } else if (size <= kMaxGroupSize<T>) {
          solve_group(tools, task, scratch);
        } else {
          solve_one(tools, *task.problems.front(), scratch);
        }
      });
    }
  });
}

}  // namespace eigendamage::cpu
