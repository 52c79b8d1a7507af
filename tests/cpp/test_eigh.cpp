#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/eigh/eigh.h"
#include "cpu/panels.h"
#include "cpu/simd.h"
#include "eigenproblems.h"

using namespace eigendamage;
using namespace testing;

namespace {

template <class T>
void solve(std::vector<Problem<T>>& problems, std::int64_t threads) {
  std::vector<EighProblem> views;
  for (Problem<T>& problem : problems) views.push_back(problem.view());
  const ParallelFor parallel_for = testing::threads(threads);
  cpu::eigh(views.data(), static_cast<std::int64_t>(views.size()), {&parallel_for});
}

template <class T>
void solve_alone(Problem<T>& problem) {
  const EighProblem view = problem.view();
  const ParallelFor parallel_for = testing::threads(1);
  cpu::eigh(&view, 1, {&parallel_for});
}

/// body(T{}, name) for both types under every instruction set of this CPU.
template <class Body>
void for_every_set(const Body& body) {
  for (const cpu::InstructionSet* set : cpu::supported_instruction_sets()) {
    cpu::force_instruction_set(*set);
    body(float{}, std::string(set->name) + " float");
    body(double{}, std::string(set->name) + " double");
  }
}

/// The one for T.
template <class T, class Single, class Double>
const auto& pick_tools(const Single& single, const Double& twofold) {
  if constexpr (sizeof(T) == 4) {
    return single;
  } else {
    return twofold;
  }
}

/// All sizes up to 20, and those around the sizes where the ways to solve part.
std::vector<std::int64_t> sizes() {
  std::vector<std::int64_t> chosen;
  for (std::int64_t n = 1; n <= 20; ++n) chosen.push_back(n);
  for (const std::int64_t n : {24, 25, 31, 32, 33, 34, 40, 41, 64, 80, 81, 96, 97}) chosen.push_back(n);
  return chosen;
}

}  // namespace

TEST(every_kind_of_matrix_is_decomposed_at_every_size_around_the_lanes) {
  for_every_set([]<class T>(T, const std::string& name) {
    Random random(1);
    for (const std::int64_t n : sizes()) {
      std::vector<Problem<T>> problems;
      for (const Kind kind : kKinds) {
        for (const double scale : {1.0, 1e30, 1e-40}) {
          problems.emplace_back(n, kind, scale, pick(random, 1, 2), random);
        }
      }
      solve(problems, 1);
      for (const Problem<T>& problem : problems) {
        CHECK(problem.fault().empty(), name + ", n = " + std::to_string(n) + ": " + problem.fault());
      }
    }
  });
}

TEST(a_matrix_gives_the_same_bits_alone_in_any_list_and_on_any_number_of_threads) {
  for_every_set([]<class T>(T, const std::string& name) {
    Random random(2);
    const std::vector<Problem<T>> given = mixed<T>(random, 160, 70);
    std::vector<Problem<T>> alone = given, reversed(given.rbegin(), given.rend());
    for (Problem<T>& problem : alone) solve_alone(problem);
    solve(reversed, 1);
    for (const std::int64_t threads : {1, 2, 5}) {
      std::vector<Problem<T>> listed = given;
      solve(listed, threads);
      for (std::size_t i = 0; i < given.size(); ++i) {
        const std::string where = name + ", n = " + std::to_string(given[i].size());
        CHECK(listed[i].same_bits(alone[i]), where + ", threads " + std::to_string(threads));
        CHECK(listed[i].same_bits(reversed[given.size() - 1 - i]), where + ", reversed");
      }
    }
  });
}

TEST(scaling_by_a_power_of_two_changes_no_bit_of_the_vectors) {
  for_every_set([]<class T>(T, const std::string& name) {
    Random random(3);
    for (const std::int64_t n : sizes()) {
      Problem<T> one(n, Kind::kNormal, 1, 1, random), scaled = one;
      solve_alone(one);
      for (const int exponent : {-90, -1, 1, 100}) {
        Problem<T> other = scaled;
        other.scale(exponent);
        solve_alone(other);
        other.scale(-exponent);
        CHECK(other.same_bits(one), name + ", n = " + std::to_string(n) + ", 2^" + std::to_string(exponent));
      }
    }
  });
}

TEST(a_matrix_fails_alone) {
  for_every_set([]<class T>(T, const std::string& name) {
    for (const std::int64_t n : {3, 8, 16, 18, 32, 40, 97}) {
      Random random(4);
      std::vector<Problem<T>> problems;
      for (int i = 0; i < 9; ++i) problems.emplace_back(n, Kind::kNormal, 1, 1, random);
      problems[2].set(n - 1, 0, std::nan(""));
      problems[5].set(1, 1, kInfinity);
      problems[7] = Problem<T>(n, Kind::kOnes, static_cast<double>(std::numeric_limits<T>::max()), 1, random);
      solve(problems, 2);
      for (std::size_t i = 0; i < problems.size(); ++i) {
        const std::string where = name + ", n = " + std::to_string(n) + ", " + std::to_string(i);
        if (i == 2 || i == 5) {
          CHECK(problems[i].failed_with(kNotFinite), where);
        } else if (i == 7) {
          CHECK(problems[i].failed_with(kOverflow), where);
        } else {
          CHECK(problems[i].fault().empty(), where + ": " + problems[i].fault());
        }
      }
    }
  });
}

TEST(both_types_and_empty_matrices_share_a_list) {
  Random random(5);
  Problem<float> single(5, Kind::kNormal, 1, 1, random), none(0, Kind::kNormal, 1, 1, random);
  Problem<double> twofold(5, Kind::kNormal, 1, 1, random), large(30, Kind::kCovariance, 1, 1, random);
  const EighProblem views[] = {single.view(), none.view(), twofold.view(), large.view()};
  const ParallelFor parallel_for = testing::threads(2);
  cpu::eigh(views, 4, {&parallel_for});
  CHECK(single.fault().empty() && twofold.fault().empty() && large.fault().empty(), "both solved");
  CHECK(none.code() == kSolved, "nothing to solve");
  cpu::eigh(nullptr, 0, {&parallel_for});
}

TEST(a_matrix_too_large_for_the_kernel_is_left) {
  const std::int64_t n = cpu::kMaxEighSize + 1;
  std::vector<float> numbers(at(n * n)), values(at(n));
  std::int32_t code = -1;
  const EighProblem problem{numbers.data(), ScalarType::kFloat32, n, n, 1, values.data(), numbers.data(), &code};
  const ParallelFor parallel_for = testing::threads(1);
  cpu::eigh(&problem, 1, {&parallel_for});
  CHECK(code == kNotAccurate && std::isnan(values.back()), std::to_string(code));
}

TEST(the_certificate_is_near_its_gate) {
  for_every_set([]<class T>(T, const std::string& name) {
    const auto& certificate =
        pick_tools<T>(cpu::instruction_set().single_certificate, cpu::instruction_set().double_certificate);
    Random random(6);
    std::normal_distribution<double> normal;
    for (const std::int64_t n : {12, 17, 50}) {
      const std::int64_t stride = cpu::eigh_stride(n) + 3;
      const auto a = cpu::make_buffer<T>(n * stride), v = cpu::make_buffer<T>(n * stride);
      const auto values = cpu::make_buffer<T>(n), workspace = cpu::make_buffer<T>(4 * cpu::kProbes * stride);
      const auto holds = [&] { return certificate.holds(n, stride, a.get(), values.get(), v.get(), workspace.get()); };
      const double gate = 8 * static_cast<double>(n) * static_cast<double>(std::numeric_limits<T>::epsilon());
      const auto count = static_cast<double>(n);
      for (int repeat = 0; repeat < 20; ++repeat) {
        for (const double size : {0.0, 0.3, 5.0}) {
          const auto reset = [&] {  // diag(1, −1, 1, …)
            for (std::int64_t i = 0; i < n; ++i) {
              for (std::int64_t j = 0; j < stride; ++j) {
                v[at(i * stride + j)] = j < n ? T(i == j) : T(kInfinity);
                a[at(i * stride + j)] = j > i ? T(kInfinity) : T(i == j ? 1 - i % 2 * 2 : 0);
              }
              values[at(i)] = T(1 - i % 2 * 2);
            }
          };
          const auto noise = [&](double scale) { return static_cast<T>(scale * size * gate * normal(random)); };
          reset();
          for (std::int64_t i = 0; i < n; ++i) values[at(i)] += noise(1);  // norm √n relative to ‖A‖ = √n
          CHECK(holds() == (size < 1), name + " values, n = " + std::to_string(n) + ", " + std::to_string(size));
          reset();
          for (std::int64_t i = 0; i < n; ++i) {
            for (std::int64_t j = 0; j < n; ++j) v[at(i * stride + j)] += noise(1 / count);
          }
          CHECK(holds() == (size < 1), name + " vectors, n = " + std::to_string(n) + ", " + std::to_string(size));
        }
      }
    }
  });
}

TEST(a_triangle_is_read_whole_and_nothing_else) {
  for_every_set([]<class T>(T, const std::string& name) {
    const auto& triangles =
        pick_tools<T>(cpu::instruction_set().single_triangles, cpu::instruction_set().double_triangles);
    for (const std::int64_t n : {1, 3, 4, 8, 15, 16, 17, 31, 33, 40}) {
      for (const std::int64_t step : {1, 2}) {
        const std::string where = name + ", n = " + std::to_string(n) + ", step " + std::to_string(step);
        const std::int64_t row = n * step, stride = n + 1;
        std::vector<T> matrix(at(((n - 1) * n + n - 1) * step + 1), T(kInfinity)), a(at(n * stride), T(-1));
        const auto entry = [&](std::int64_t i, std::int64_t j) -> T& { return matrix[at(i * row + j * step)]; };
        for (std::int64_t i = 0; i < n; ++i) {
          for (std::int64_t j = 0; j <= i; ++j) entry(i, j) = static_cast<T>(i * n + j + 1);
        }
        triangles.copy(n, matrix.data(), row, step, T(0.5), T(8), stride, a.data());
        for (std::int64_t i = 0; i < n; ++i) {
          for (std::int64_t j = 0; j < stride; ++j) {
            CHECK(a[at(i * stride + j)] == (j <= i ? 4 * entry(i, j) : T(-1)), where + ", copy");
          }
          for (std::int64_t j = 0; j <= i; ++j) {
            const T kept = entry(i, j), huge = std::numeric_limits<T>::max();
            const auto largest = [&] { return triangles.largest(n, matrix.data(), row, step); };
            entry(i, j) = -huge;
            CHECK(largest() == huge, where + ", largest");
            entry(i, j) = -std::numeric_limits<T>::quiet_NaN();
            CHECK(std::isnan(largest()), where + ", NaN");
            entry(i, j) = kept;
          }
        }
      }
    }
  });
}

TEST(values_are_ranked_with_equals_in_their_order) {
  for_every_set([]<class T>(T, const std::string& name) {
    const auto& certificate =
        pick_tools<T>(cpu::instruction_set().single_certificate, cpu::instruction_set().double_certificate);
    Random random(7);
    for (std::int64_t n = 1; n <= 40; ++n) {
      std::vector<T> values(at(cpu::eigh_stride(n)), T(-kInfinity)), ranks(values);
      std::vector<std::pair<T, std::int64_t>> order;
      for (std::int64_t k = 0; k < n; ++k) {
        values[at(k)] = static_cast<T>(pick(random, -9, 9));
        order.emplace_back(values[at(k)], k);
      }
      std::sort(order.begin(), order.end());
      certificate.rank(n, values.data(), ranks.data());
      for (std::int64_t place = 0; place < n; ++place) {
        CHECK(ranks[at(order[at(place)].second)] == static_cast<T>(place), name + ", n = " + std::to_string(n));
      }
    }
  });
}

int main(int argc, char** argv) { return check::run_tests(argc > 1 ? argv[1] : ""); }
