#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/eigh.h"
#include "cuda/eigh_certificate.cuh"
#include "eigenproblems.h"
#include "on_device.h"

using namespace eigendamage;
using namespace testing;
using cuda_on_cpu::DeviceRun;
using cuda_on_cpu::on_device;

namespace {

constexpr std::int64_t kSizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 40, 63, 64};
constexpr int kFew = 1 << 20, kMany = 0;  // multiprocessors with which the same matrices are few or many

template <class T>
EighProblem on(DeviceRun& device, Problem<T>& problem) {
  EighProblem view = problem.view();
  const auto n = static_cast<std::size_t>(view.size);
  view.matrix = device.input(view.matrix, problem.matrix_bytes());
  view.values = device.output(view.values, n * sizeof(T));
  view.vectors_t = device.output(view.vectors_t, n * n * sizeof(T));
  view.code = static_cast<std::int32_t*>(device.output(view.code, sizeof *view.code));
  return view;
}

template <class T>
void solve(std::vector<Problem<T>>& problems, int multiprocessors) {
  cuda_on_cpu::device().multiprocessors = multiprocessors;
  on_device([&](DeviceRun& device) {
    std::vector<EighProblem> views;
    for (Problem<T>& problem : problems) views.push_back(on(device, problem));
    cuda::eigh(views.data(), static_cast<std::int64_t>(views.size()), device.execution());
  });
}

/// body(T{}, name) for both types.
template <class Body>
void for_both_types(const Body& body) {
  body(float{}, std::string("float"));
  body(double{}, std::string("double"));
}

/// Jacobi's method, one pair after another.
template <class T>
std::vector<long double> exact_values(const Problem<T>& problem) {
  const std::int64_t n = problem.size();
  std::vector<long double> a(at(n * n));
  for (std::int64_t i = 0; i < n * n; ++i) a[at(i)] = static_cast<long double>(problem.get(i / n, i % n));
  const auto entry = [&](std::int64_t i, std::int64_t j) -> long double& { return a[at(i * n + j)]; };
  const auto turn = [](long double c, long double s, long double& x, long double& y) {
    const long double turned = c * x - s * y;
    y = s * x + c * y;
    x = turned;
  };
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (std::int64_t p = 0; p < n; ++p) {
      for (std::int64_t q = p + 1; q < n; ++q) {
        if (entry(p, q) == 0) continue;
        const long double angle = std::atan2(2 * entry(p, q), entry(q, q) - entry(p, p)) / 2;
        const long double c = std::cos(angle), s = std::sin(angle);
        for (std::int64_t k = 0; k < n; ++k) turn(c, s, entry(p, k), entry(q, k));
        for (std::int64_t k = 0; k < n; ++k) turn(c, s, entry(k, p), entry(k, q));
      }
    }
  }
  std::vector<long double> values;
  for (std::int64_t i = 0; i < n; ++i) values.push_back(entry(i, i));
  std::sort(values.begin(), values.end());
  return values;
}

/// How far eigenvalues are from the exact ones, in units of their gate.
template <class T>
double distance(const Problem<T>& problem) {
  const auto exact = exact_values(problem);
  const auto n = static_cast<long double>(exact.size());
  long double square = 0, norm_square = 0;
  for (std::size_t k = 0; k < exact.size(); ++k) {
    square += std::pow(exact[k] - static_cast<long double>(problem.value(static_cast<std::int64_t>(k))), 2.0L);
    norm_square += exact[k] * exact[k];
  }
  const long double gate = 4 * n * static_cast<long double>(std::numeric_limits<T>::epsilon()) * std::sqrt(norm_square);
  const long double least = n * static_cast<long double>(std::numeric_limits<T>::denorm_min());
  return static_cast<double>(std::sqrt(square) / (gate + least));
}

constexpr int kWidest = 64;

/// What a matrix takes to be diagonal, and whether the certificate holds of what it is told.
template <class T>
struct Trial {
  int n;
  T threshold;
  T a[kWidest * kWidest], values[kWidest], vectors_t[kWidest * kWidest];
  int sweeps, holds;
};

template <class T, int Pairs, int Warps>
__global__ void sweeps_kernel(Trial<T>* trial) {
  const int n = trial->n;
  const cuda::Seating seating{(n + 1) / 2};
  T* const numbers = cuda::shared_memory<T>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * seating.half; ++i) {
      for (int j = 0; j <= i; ++j) numbers[seating.slot(i, j)] = i < n ? trial->a[i * n + j] : T(0);
    }
  }
  cuda::Team<Warps>::sync();
  cuda::Components<T, Pairs, Warps> own;
  const int sweeps = cuda::diagonalise(seating, trial->threshold, numbers, own).sweeps;
  if (threadIdx.x == 0) trial->sweeps = sweeps;
}

constexpr int kRounds = 70;

/// Rounds that turn every pair by given angles, and Vᵀ by places after them.
template <class T>
struct Dance {
  int half, rounds;
  cuda::Rotation<T> rotations[kRounds][kWidest / 2];
  T vectors_t[kWidest * kWidest];
};

template <class T, int Pairs, int Warps>
__global__ void dance_kernel(Dance<T>* dance) {
  const int half = dance->half;
  cuda::Components<T, Pairs, Warps> own;
  own.start(cuda::Seating{half});
  for (int round = 0; round < dance->rounds; ++round) {
    own.move(half);
    own.turn(dance->rotations[round][min(own.pair(), half - 1)]);
  }
  own.move(half);
  own.store(2 * half, half, kWidest, dance->vectors_t);
}

template <class T, int Pairs, int Warps>
__global__ void certificate_kernel(Trial<T>* trial) {
  const int n = trial->n;
  T* free = cuda::shared_memory<T>();
  const auto take = [&](int rows) { return (free += rows * n) - rows * n; };
  constexpr int kProbes = cuda::kProbes;
  const cuda::Probing<T> probing{take(kProbes), take(kProbes), take(kProbes), take(kProbes), take(1)};
  const auto entry = [&](int i, int j) { return trial->a[max(i, j) * n + min(i, j)]; };
  const bool holds = cuda::certificate<T, Pairs, Warps>(n, entry, trial->values, trial->vectors_t, n, probing);
  if (threadIdx.x == 0) trial->holds = holds;
}

template <class Told>
void run(void (*kernel)(Told*), Told& told, unsigned threads) {
  on_device([&](DeviceRun& device) {
    cuda::launch(kernel, cuda::Grid{1, threads, 40 << 10}, device.execution(),
                 static_cast<Told*>(device.output(&told, sizeof told)));
  });
}

/// Sets trial.holds; a warp may work alone on up to 32 rows.
template <class T>
void certify(Trial<T>& trial, bool alone) {
  if (trial.n > 32) {
    run(certificate_kernel<T, 32, 8>, trial, 256);
  } else if (alone) {
    run(certificate_kernel<T, 16, 1>, trial, 32);
  } else {
    run(certificate_kernel<T, 16, 4>, trial, 128);
  }
}

}  // namespace

TEST(every_kind_of_matrix_is_decomposed_at_every_size) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(1);
    for (const int multiprocessors : {kFew, kMany}) {
      for (const std::int64_t n : kSizes) {
        if (n > 32 && multiprocessors == kMany) continue;  // no other kernel
        std::vector<Problem<T>> problems;
        for (std::size_t i = 0; i < std::size(kKinds); i += n > 17 ? 3 : 1) {
          const Kind kind = kKinds[(i + at(n)) % std::size(kKinds)];
          const double scale = std::pow(10.0, static_cast<double>(pick(random, -38, 34)));
          problems.emplace_back(n, kind, scale, pick(random, 1, 2), random);
        }
        solve(problems, multiprocessors);
        for (const Problem<T>& problem : problems) {
          CHECK(problem.fault().empty(), name + ", n = " + std::to_string(n) + ": " + problem.fault());
        }
      }
    }
  });
}

TEST(eigenvalues_are_accurate) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(2);
    std::vector<Problem<T>> problems;
    for (const Kind kind : kKinds) {
      for (const std::int64_t n : {2, 7, 16, 33}) problems.emplace_back(n, kind, 1e-20, 1, random);
    }
    solve(problems, kMany);
    for (const Problem<T>& problem : problems) {
      const double found = distance(problem);
      CHECK(found <= 1, name + ", n = " + std::to_string(problem.size()) + ": " + std::to_string(found));
    }
  });
}

TEST(a_matrix_gives_the_same_bits_alone_in_any_list_and_with_any_number_of_warps) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(3);
    const std::vector<Problem<T>> given = mixed<T>(random, 16, 40);
    std::vector<Problem<T>> few = given, many = given, reversed(given.rbegin(), given.rend());
    solve(few, kFew);
    solve(many, kMany);
    solve(reversed, kMany);
    for (std::size_t i = 0; i < given.size(); ++i) {
      std::vector<Problem<T>> alone{given[i]};
      solve(alone, kFew);
      const std::string where = name + ", n = " + std::to_string(given[i].size());
      CHECK(few[i].same_bits(alone[0]), where + ", few");
      CHECK(many[i].same_bits(alone[0]), where + ", many");
      CHECK(reversed[given.size() - 1 - i].same_bits(alone[0]), where + ", reversed");
    }
  });
}

TEST(scaling_by_a_power_of_two_changes_no_bit_of_the_vectors) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(4);
    for (const std::int64_t n : {1, 2, 5, 16, 31, 33}) {
      const Problem<T> given(n, Kind::kNormal, 1, 1, random);
      std::vector<Problem<T>> problems{given};
      for (const int exponent : {-90, -1, 1, 100}) {
        problems.push_back(given);
        problems.back().scale(exponent);
      }
      solve(problems, kFew);
      for (const std::size_t i : {1, 2, 3, 4}) {
        const int exponents[] = {0, 90, 1, -1, -100};
        problems[i].scale(exponents[i]);
        CHECK(problems[i].same_bits(problems[0]), name + ", n = " + std::to_string(n) + ", " + std::to_string(i));
      }
    }
  });
}

TEST(a_matrix_fails_alone) {
  for_both_types([]<class T>(T, const std::string& name) {
    for (const std::int64_t n : {3, 18, 33}) {
      Random random(5);
      std::vector<Problem<T>> problems;
      for (int i = 0; i < 6; ++i) problems.emplace_back(n, Kind::kNormal, 1, 1, random);
      problems[1].set(n - 1, 0, std::nan(""));
      problems[2].set(1, 1, -kInfinity);
      problems[4] = Problem<T>(n, Kind::kOnes, static_cast<double>(std::numeric_limits<T>::max()), 1, random);
      for (const int multiprocessors : {kFew, kMany}) {
        solve(problems, multiprocessors);
        for (std::size_t i = 0; i < problems.size(); ++i) {
          const std::string where = name + ", n = " + std::to_string(n) + ", " + std::to_string(i);
          if (i == 1 || i == 2) {
            CHECK(problems[i].failed_with(kNotFinite), where);
          } else if (i == 4) {
            CHECK(problems[i].failed_with(kOverflow), where);
          } else {
            CHECK(problems[i].fault().empty(), where + ": " + problems[i].fault());
          }
        }
      }
    }
  });
}

TEST(both_types_empty_matrices_and_ones_too_large_share_a_list) {
  Random random(6);
  Problem<float> single(5, Kind::kNormal, 1, 1, random), none(0, Kind::kNormal, 1, 1, random),
      large(65, Kind::kNormal, 1, 1, random);
  Problem<double> twofold(5, Kind::kNormal, 1, 1, random), wide(40, Kind::kCovariance, 1, 1, random);
  for (const int multiprocessors : {kFew, kMany}) {
    cuda_on_cpu::device().multiprocessors = multiprocessors;
    on_device([&](DeviceRun& device) {
      const EighProblem views[] = {on(device, single), on(device, none), on(device, large), on(device, twofold),
                                   on(device, wide)};
      cuda::eigh(views, 5, device.execution());
    });
    CHECK(single.fault().empty() && twofold.fault().empty() && wide.fault().empty(), "all solved");
    CHECK(none.code() == kSolved, "nothing to solve");
    CHECK(large.failed_with(kNotAccurate), std::to_string(large.code()));
  }
  on_device([](DeviceRun& device) { cuda::eigh(nullptr, 0, device.execution()); });
}

TEST(stacks_repeated_matrices_and_long_lists_are_solved) {
  constexpr std::int64_t kCount = 150, kSize = 4, kNumbers = kSize * kSize;
  Random random(7);
  std::vector<float> matrices, values(kCount * kSize), vectors(kCount * kNumbers);
  for (std::int64_t i = 0; i < kCount * kNumbers; ++i) {
    matrices.push_back(std::normal_distribution<float>()(random));
  }
  std::vector<std::int32_t> codes(kCount, -1);
  // From one matrix to the next: a stack, the same matrix again and again, and no two steps the same.
  for (const auto& step : {+[](std::int64_t i) { return i; }, +[](std::int64_t) { return std::int64_t{3}; },
                           +[](std::int64_t i) { return i * i % kCount; }}) {
    on_device([&](DeviceRun& device) {
      const auto* from = static_cast<const float*>(device.input(matrices.data(), matrices.size() * sizeof(float)));
      auto* to_values = static_cast<float*>(device.output(values.data(), values.size() * sizeof(float)));
      auto* to_vectors = static_cast<float*>(device.output(vectors.data(), vectors.size() * sizeof(float)));
      auto* to_codes = static_cast<std::int32_t*>(device.output(codes.data(), codes.size() * sizeof(std::int32_t)));
      std::vector<EighProblem> problems;
      for (std::int64_t i = 0; i < kCount; ++i) {
        problems.push_back({from + step(i) * kNumbers, ScalarType::kFloat32, kSize, kSize, 1, to_values + i * kSize,
                            to_vectors + i * kNumbers, to_codes + i});
      }
      cuda::eigh(problems.data(), kCount, device.execution());
    });
    for (std::int64_t i = 0; i < kCount; ++i) {
      const float *const a = &matrices[at(step(i) * kNumbers)], *const v = &vectors[at(i * kNumbers)];
      double residual = 0;
      for (std::int64_t k = 0; k < kSize; ++k) {
        for (std::int64_t row = 0; row < kSize; ++row) {
          double image = -static_cast<double>(values[at(i * kSize + k)]) * static_cast<double>(v[k * kSize + row]);
          for (std::int64_t j = 0; j < kSize; ++j) {
            image += static_cast<double>(a[std::max(row, j) * kSize + std::min(row, j)]) *
                     static_cast<double>(v[k * kSize + j]);
          }
          residual = std::max(residual, std::fabs(image));
        }
      }
      CHECK(codes[at(i)] == kSolved && residual < 1e-5, std::to_string(i) + ": " + std::to_string(residual));
    }
  }
}

TEST(as_many_different_matrices_as_a_kernel_has_parameters_for_are_solved_and_more) {
  for (const std::int64_t count : {63, 64}) {
    Random random(12);
    std::vector<Problem<float>> problems;
    for (std::int64_t i = 0; i < count; ++i) problems.emplace_back(1 + i % 3, Kind::kNormal, 1, 1, random);
    solve(problems, kMany);
    for (const Problem<float>& problem : problems) CHECK(problem.fault().empty(), problem.fault());
  }
}

TEST(a_dozen_sweeps_suffice) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(8);
    for (const Kind kind : kKinds) {
      for (const int n : {9, 32, 64}) {
        if (n > 32 && kind != Kind::kNormal) continue;
        const Problem<T> problem(n, kind, 1, 1, random);
        Trial<T> trial{};
        trial.n = n;
        T square = 0;
        for (int i = 0; i < n * n; ++i) {
          trial.a[i] = static_cast<T>(problem.get(i / n, i % n));
          square += trial.a[i] * trial.a[i];
        }
        trial.threshold = cuda::kEpsilon<T> * std::sqrt(square / static_cast<T>(n));
        if (n <= 32) {
          run(sweeps_kernel<T, 16, 1>, trial, 32);
        } else {
          run(sweeps_kernel<T, 32, 8>, trial, 256);
        }
        CHECK(trial.sweeps <= 12, name + ", n = " + std::to_string(n) + ": " + std::to_string(trial.sweeps));
      }
    }
  });
}

TEST(eigenvectors_follow_their_rows_around_the_table) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(11);
    for (const int half : {1, 2, 3, 7, 16, 17, 31, 32}) {
      for (const int rounds : {0, 1, 2, 2 * half - 1, kRounds}) {
        Dance<T> given{};
        given.half = half;
        given.rounds = rounds;
        std::vector<std::vector<T>> rows(at(2 * half), std::vector<T>(at(2 * half)));  // of Vᵀ
        for (int i = 0; i < 2 * half; ++i) rows[at(i)][at(i)] = 1;
        for (int round = 0; round < rounds; ++round) {
          for (int k = 0; k < half; ++k) {
            const T sine = static_cast<T>(pick(random, -1, 1));  // of no turn or a quarter
            given.rotations[round][k] = {1 - sine * sine, sine};
            for (int i = 0; i < 2 * half; ++i) {
              T &near = rows[at(k)][at(i)], &far = rows[at(half + k)][at(i)];
              if (sine != 0) near = -sine * std::exchange(far, sine * near);
            }
          }
          std::vector<std::vector<T>> moved = rows;  // 0 stays; 1 … half − 1, 2·half − 1 … half, and 1 again
          for (int place = 1; place < 2 * half; ++place) {
            const int to = place == half ? 1 : place > half ? place - 1 : place + 1 < half ? place + 1 : 2 * half - 1;
            moved[at(to)] = rows[at(place)];
          }
          rows = moved;
        }
        const auto check = [&](auto kernel, unsigned threads) {
          Dance<T> dance = given;
          run(kernel, dance, threads);
          bool same = true;
          for (int place = 0; place < 2 * half; ++place) {
            for (int i = 0; i < 2 * half; ++i) {
              same &= dance.vectors_t[place * kWidest + i] == rows[at(place)][at(i)];
            }
          }
          CHECK(same, name + ", " + std::to_string(half) + " pairs, " + std::to_string(rounds) + " rounds, " +
                          std::to_string(threads) + " threads");
        };
        check(dance_kernel<T, 32, 8>, 256);
        if (half > 16) continue;
        check(dance_kernel<T, 16, 4>, 128);
        check(dance_kernel<T, 16, 1>, 32);
      }
    }
  });
}

/// Eigenvalues 1 … 1e-14 in equal steps of their logarithm, or as many 1 as −1, in a basis of reflections.
TEST(spectra_that_take_more_sweeps_are_decomposed) {
  constexpr int n = 64;
  for (const bool graded : {true, false}) {
    Random random(10);
    std::vector<Problem<double>> problems{Problem<double>(n, Kind::kZero, 1, 1, random)};
    std::vector<std::vector<double>> a(n, std::vector<double>(n));
    for (int i = 0; i < n; ++i) a[at(i)][at(i)] = graded ? std::pow(10.0, -14.0 * i / (n - 1)) : 1 - 2 * (i % 2);
    for (int reflection = 0; reflection < n; ++reflection) {
      std::vector<double> v(n);
      double square = 0;
      for (double& x : v) {
        x = std::normal_distribution<double>()(random);
        square += x * x;
      }
      for (const bool columns : {true, false}) {
        for (int i = 0; i < n; ++i) {
          double dot = 0;
          const auto entry = [&](int j) -> double& { return columns ? a[at(i)][at(j)] : a[at(j)][at(i)]; };
          for (int j = 0; j < n; ++j) dot += entry(j) * v[at(j)];
          for (int j = 0; j < n; ++j) entry(j) -= 2 * dot / square * v[at(j)];
        }
      }
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) problems[0].set(i, j, (a[at(i)][at(j)] + a[at(j)][at(i)]) / 2);
    }
    solve(problems, kFew);
    CHECK(problems[0].fault().empty(), problems[0].fault());
  }
}

TEST(the_certificate_is_near_its_gate) {
  for_both_types([]<class T>(T, const std::string& name) {
    Random random(9);
    std::normal_distribution<double> normal;
    for (const int n : {12, 17, 50}) {
      const double gate = 8 * n * static_cast<double>(cuda::kEpsilon<T>);
      for (int repeat = 0; repeat < 4; ++repeat) {
        for (const double size : {0.0, 0.3, 5.0}) {
          for (const bool of_values : {true, false}) {  // of diag(1, −1, 1, …)
            Trial<T> trial{};
            trial.n = n;
            const auto noise = [&](double scale) { return static_cast<T>(scale * size * gate * normal(random)); };
            for (int i = 0; i < n; ++i) {
              trial.a[i * n + i] = trial.values[i] = T(1 - i % 2 * 2);
              for (int j = 0; j < n; ++j) trial.vectors_t[i * n + j] = T(i == j) + (of_values ? 0 : noise(1.0 / n));
              if (of_values) trial.values[i] += noise(1);  // norm √n relative to ‖A‖ = √n
            }
            certify(trial, repeat % 2 == 0);
            CHECK(trial.holds == (size < 1),
                  name + ", n = " + std::to_string(n) + ", " + std::to_string(size) + (of_values ? " values" : ""));
          }
        }
      }
    }
  });
}

TEST(no_error_of_two_columns_hides_from_all_probes) {
  for_both_types([]<class T>(T, const std::string& name) {
    for (const int n : {12, 50}) {
      for (const bool alone : {true, false}) {
        for (const int k : {1, 2, 3, n - 1}) {
          for (const T sign : {T(1), T(-1)}) {  // V = 1 + δ·(e₀ ± eₖ)(e₀ ± eₖ)ᵀ, A = Λ = 1
            Trial<T> trial{};
            trial.n = n;
            for (int i = 0; i < n; ++i) trial.a[i * n + i] = trial.values[i] = trial.vectors_t[i * n + i] = 1;
            const T delta = static_cast<T>(40 * n) * cuda::kEpsilon<T>;
            for (const int i : {0, k}) trial.vectors_t[i * n + i] += delta;
            trial.vectors_t[k] = trial.vectors_t[k * n] = sign * delta;
            certify(trial, alone);
            CHECK(!trial.holds,
                  name + ", n = " + std::to_string(n) + ", " + std::to_string(k) + (sign < 0 ? " −" : " +"));
          }
        }
      }
    }
  });
}

int main() { return check::run_tests(); }
