#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "../views.h"

namespace eigendamage::cuda {

/// What elements of x are summed in.
template <class Element>
using Sum = std::conditional_t<std::is_same_v<Element, double>, double, float>;

__device__ inline float widened(float x) { return x; }
__device__ inline double widened(double x) { return x; }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widened(__half x) { return __half2float(x); }

/// f(an element of the type).
template <class F>
void dispatch(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::kFloat32: return f(float{});
    case ScalarType::kFloat64: return f(double{});
    case ScalarType::kBFloat16: return f(__nv_bfloat16{});
    case ScalarType::kFloat16: return f(__half{});
  }
}

}  // namespace eigendamage::cuda
