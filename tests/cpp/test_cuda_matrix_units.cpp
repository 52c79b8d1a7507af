#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "covariance_cases.h"
#include "cuda/launch.cuh"
#include "cuda/matrix_units.cuh"
#include "images.h"
#include "on_device.h"

using namespace eigendamage;
using cuda::Factor;
using cuda::Order;
using cuda::WarpTile;
using cuda_on_cpu::DeviceRun;
using testing::pick;
using testing::Random;

namespace {

constexpr int kSize = 32, kDepth = 64;

/// 32 rows of 64 numbers, in either order.
template <class T, Order order>
struct Tile {
  static constexpr int kStride = order == Order::kDepthInside ? kDepth + 16 / sizeof(T) : sizeof(T) == 8 ? 33 : 40;
  std::vector<T> elements = std::vector<T>((order == Order::kDepthInside ? kSize : kDepth) * kStride, T(1e30));

  T& at(int row, int k) {
    return elements[static_cast<std::size_t>(order == Order::kDepthInside ? row * kStride + k : k * kStride + row)];
  }

  template <class Number>
  void fill(const Number& number) {
    for (int row = 0; row < kSize; ++row) {
      for (int k = 0; k < kDepth; ++k) at(row, k) = static_cast<T>(number());
    }
  }
};

template <class T>
struct Products {
  std::vector<T> sums = std::vector<T>(kSize * kSize), plain = sums;
  std::vector<int> finite = std::vector<int>(32);

  T at(int row, int column) const { return sums[static_cast<std::size_t>(row * kSize + column)]; }
  T plain_at(int row, int column) const { return plain[static_cast<std::size_t>(row * kSize + column)]; }
};

template <class T, Order order, Factor a_factor, Factor b_factor>
__global__ void products_kernel(const T* a, const T* b, int elements, T* sums, T* plain, int* finite) {
  using Layout = Tile<T, order>;
  T* tiles = cuda::shared_memory<T>();
  for (int i = static_cast<int>(threadIdx.x); i < elements; i += 32) {
    tiles[i] = a[i];
    tiles[elements + i] = b[i];
  }
  __syncthreads();
  WarpTile<T> tile;
  tile.zero();
  tile.template multiply_add<order, a_factor, b_factor>({tiles, Layout::kStride}, {tiles + elements, Layout::kStride},
                                                        kDepth);
  finite[threadIdx.x] = tile.finite();
  const int first = tile.first_row() * kSize + tile.first_column();
  tile.for_each([&](int row, int column, T& sum) { sums[first + row * kSize + column] = sum; });
  tile.zero();
  tile.template multiply_add_plainly<order>({tiles, Layout::kStride}, {tiles + elements, Layout::kStride}, kDepth);
  tile.for_each([&](int row, int column, T& sum) { plain[first + row * kSize + column] = sum; });
}

template <Factor a_factor, Factor b_factor, class T, Order order>
Products<T> products(Tile<T, order>& a, Tile<T, order>& b) {
  Products<T> result;
  const std::size_t bytes = a.elements.size() * sizeof(T), sum_bytes = result.sums.size() * sizeof(T);
  cuda_on_cpu::on_device([&](DeviceRun& device) {
    cuda::launch(products_kernel<T, order, a_factor, b_factor>, {dim3(1), 32, 2 * bytes}, device.execution(),
                 static_cast<const T*>(device.input(a.elements.data(), bytes)),
                 static_cast<const T*>(device.input(b.elements.data(), bytes)), static_cast<int>(a.elements.size()),
                 static_cast<T*>(device.output(result.sums.data(), sum_bytes)),
                 static_cast<T*>(device.output(result.plain.data(), sum_bytes)),
                 static_cast<int*>(device.output(result.finite.data(), 32 * sizeof(int))));
  });
  return result;
}

double exact(auto& a, auto& b, int row, int column) {
  double sum = 0;
  for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a.at(row, k)) * static_cast<double>(b.at(column, k));
  return sum;
}

/// f(type, order, factors) for all there are.
template <class F>
void for_each_kind(const F& f) {
  const auto both_orders = [&]<class T, Factor a, Factor b>() {
    f.template operator()<T, Order::kDepthInside, a, b>();
    f.template operator()<T, Order::kDepthOutside, a, b>();
  };
  both_orders.template operator()<float, Factor::kSplit, Factor::kSplit>();
  both_orders.template operator()<float, Factor::kSplit, Factor::kExact>();
  both_orders.template operator()<float, Factor::kExact, Factor::kSplit>();
  both_orders.template operator()<float, Factor::kExact, Factor::kExact>();
  both_orders.template operator()<float, Factor::kRounded, Factor::kRounded>();
  both_orders.template operator()<double, Factor::kExact, Factor::kExact>();
}

}  // namespace

TEST(products_of_integers_are_exact) {
  Random random(1);
  for_each_kind([&]<class T, Order order, Factor a_factor, Factor b_factor>() {
    Tile<T, order> a, b;
    const auto integer = [&](Factor factor) {
      return [&random, most = factor == Factor::kSplit ? 4095 : 15] { return pick(random, -most, most); };
    };
    a.fill(integer(a_factor));
    b.fill(integer(b_factor == Factor::kSplit && a_factor == Factor::kSplit ? Factor::kExact : b_factor));
    const Products<T> result = products<a_factor, b_factor>(a, b);
    int wrong = 0;
    for (int row = 0; row < kSize; ++row) {
      for (int column = 0; column < kSize; ++column) {
        const double expected = exact(a, b, row, column);
        wrong += !(static_cast<double>(result.at(row, column)) == expected) +
                 !(static_cast<double>(result.plain_at(row, column)) == expected);
      }
    }
    CHECK(wrong == 0, std::to_string(wrong) + " of type of " + std::to_string(sizeof(T)) + " bytes, factors " +
                          std::to_string(static_cast<int>(a_factor)) + std::to_string(static_cast<int>(b_factor)));
  });
}

TEST(errors_are_those_of_the_type) {
  Random random(2);
  for (const double mean : {0.0, 3.0}) {
    for_each_kind([&]<class T, Order order, Factor a_factor, Factor b_factor>() {
      Tile<T, order> a, b;
      std::normal_distribution<double> normal(mean);
      const auto number = [&](Factor factor) {
        return [&normal, &random, factor] {
          const auto x = static_cast<float>(normal(random));
          return factor == Factor::kExact && sizeof(T) == 4 ? cuda_on_cpu::rounded_to_tf32(x) : x;
        };
      };
      a.fill(number(a_factor));
      b.fill(number(b_factor));
      const Products<T> result = products<a_factor, b_factor>(a, b);
      double error = 0, plain_error = 0, norm = 0;
      for (int row = 0; row < kSize; ++row) {
        for (int column = 0; column < kSize; ++column) {
          const double expected = exact(a, b, row, column);
          error += std::pow(static_cast<double>(result.at(row, column)) - expected, 2);
          plain_error += std::pow(static_cast<double>(result.plain_at(row, column)) - expected, 2);
          norm += expected * expected;
        }
      }
      error = std::sqrt(error / norm), plain_error = std::sqrt(plain_error / norm);
      const bool rounded = a_factor == Factor::kRounded;
      const double bound = sizeof(T) == 8 ? 1e-15 : rounded ? 6e-4 : 1.2e-7;
      CHECK(error < bound && (!rounded || error > 1e-5), "factors " + std::to_string(static_cast<int>(a_factor)) +
                                                             std::to_string(static_cast<int>(b_factor)) + " " +
                                                             std::to_string(error * 1e7) + "e-7");
      CHECK(plain_error < (sizeof(T) == 8 ? 1e-15 : 2.5e-7), std::to_string(plain_error * 1e7) + "e-7");
    });
  }
}

TEST(numbers_beyond_the_range_show_where_they_are_factors) {
  constexpr float kLargest = std::numeric_limits<float>::max();
  Random random(3);
  for (const float special : {INFINITY, -INFINITY, NAN, std::bit_cast<float>(0x7FFFFFFFU), kLargest}) {
    Tile<float, Order::kDepthInside> a, b;
    std::uniform_real_distribution<double> number(0.1, 0.4);
    a.fill([&] { return number(random); });
    b.fill([&] { return number(random); });
    a.at(5, 17) = special;
    const Products<float> result = products<Factor::kSplit, Factor::kSplit>(a, b);
    for (int row = 0; row < kSize; ++row) {
      for (int column = 0; column < kSize; ++column) {
        const double expected = exact(a, b, row, column);
        const auto plain = static_cast<double>(result.plain_at(row, column));
        CHECK(std::isfinite(result.at(row, column)) == (row != 5), std::to_string(row) + " " + std::to_string(column));
        CHECK(std::isnan(expected) ? std::isnan(plain) : plain == expected || std::fabs(plain / expected - 1) < 1e-6,
              std::to_string(row) + " " + std::to_string(column) + ": " + std::to_string(plain));
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      CHECK(result.finite[static_cast<std::size_t>(lane)] == (lane / 4 != 1), std::to_string(lane));
    }
  }
}

TEST(small_numbers_are_not_flushed_to_zero) {
  Tile<float, Order::kDepthOutside> a, b;
  Random random(4);
  const double least_normal = std::ldexp(1.0, -126), large = std::ldexp(1.0, 100);
  std::uniform_real_distribution<double> number(-4, 4);
  a.fill([&] { return least_normal * number(random); });
  b.fill([&] { return large; });
  const Products<float> result = products<Factor::kSplit, Factor::kSplit>(a, b);
  for (int row = 0; row < kSize; ++row) {
    const double error = static_cast<double>(result.at(row, 0)) - exact(a, b, row, 0);
    CHECK(std::fabs(error) < kDepth * large * least_normal / 1024, std::to_string(error / large / least_normal));
  }
}

int main() { return check::run_tests(); }
