#pragma once

#include <cstdint>
#include <functional>

#include "views.h"

namespace eigendamage {

/// Calls body(begin, end) on disjoint ranges that cover [0, count), possibly from several threads; returns when all are done.
using ParallelFor =
    std::function<void(std::int64_t count, const std::function<void(std::int64_t begin, std::int64_t end)>& body)>;

/// How a sum enters the output: out = beta·out + alpha·sum. beta = 0 never reads out.
struct Update {
  double alpha, beta;
};

/// Memory of a device that lives until all that the caller enqueues on its stream is done, aligned to 256 bytes.
using Scratch = std::function<void*(std::int64_t bytes)>;

/// Where a kernel runs. CPU kernels use `parallel_for`. CUDA kernels enqueue on `stream` (a cudaStream_t of the current
/// device) and return; what they need besides their arguments is `scratch`.
struct Execution {
  const ParallelFor* parallel_for = nullptr;
  void* stream = nullptr;
  const Scratch* scratch = nullptr;
  bool tf32 = false;  ///< whether factors of products of floats may be rounded to TF32
};

/// The compiled core: one entry per kernel, the same for every backend. Callers have checked shapes, types and overlap.
/// Every factor is exactly symmetric, its `out` is assumed symmetric where beta ≠ 0, and results do not depend on the
/// number of threads. Channels of x are split into out.groups consecutive blocks of C/g. An empty batch has the sum 0.
struct Kernels {
  /// S[g] = Σ_p x_gp x_gpᵀ over positions p = (n, h, w).
  /// x (N, C, H, W); out (g, F, F), F = C/g, or C/g + 1 with `bias`, which appends the constant 1 to x_gp.
  void (*covariance)(const ImageView& x, bool bias, const Update& update, const FactorView& out, const Execution& run);

  /// S[g] = Σ_n Σ_t Σ_k a_gntk a_gntkᵀ = Σ_p m(p) x_gp x_gpᵀ, m(p) the number of windows that cover pixel p.
  /// x (N, C, H, W); out (g, C/g, C/g).
  void (*channel_covariance)(const ImageView& x, const ConvGeometry& geometry, const Update& update,
                             const FactorView& out, const Execution& run);

  /// S[g] = Σ_n Σ_t a_gnt a_gntᵀ, a_gnt the patch in the order (c, kh, kw), 0 where it leaves the image.
  /// x (N, C, H, W); out (g, D, D), D = C/g·kh·kw, plus 1 with `bias`, which appends the constant 1 to a_gnt.
  void (*patch_covariance)(const ImageView& x, const ConvGeometry& geometry, bool bias, const Update& update,
                           const FactorView& out, const Execution& run);

  /// S = Σ_n (Σ_t g_nt a_ntᵀ)², squared entry by entry: of the gradient of every example's own loss by the weight.
  /// x (N, C, H, W); g (N, O, Ho, Wo) of x's type, its O channels in the same C / out.inputs groups as x's; out (O, C/g,
  /// kh, kw).
  void (*gradient_second_moment)(const ImageView& x, const ImageView& g, const ConvGeometry& geometry,
                                 const Update& update, const WeightView& out, const Execution& run);

  /// A = V·diag(λ)·Vᵀ of `count` matrices of any sizes: eigenvalues λ ascend, row k of Vᵀ is the unit eigenvector of λ[k],
  /// its component of largest magnitude, the first of equals, positive. ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − 1‖ ≤ 8·n·eps
  /// are checked. A matrix fails alone: its code says why, its other outputs are NaN. The result for a matrix depends on no
  /// other, and scaling it by a power of two changes no bit of V.
  void (*eigh)(const EighProblem* problems, std::int64_t count, const Execution& run);

  /// The instruction set that runs, for `ops.build_info()`: "v2", "v3", "v4" (x86-64 levels), "amx" or
  /// "generic", and of CUDA all that were compiled, "sm_80 sm_90".
  const char* (*instruction_set)();
};

const Kernels* cpu_kernels();
const Kernels* cuda_kernels();  ///< null where the build has no CUDA

}  // namespace eigendamage
