"""CP decomposition of a convolution's core: a sum of outer products, by alternating least squares.

    W[o, i, k] ≈ Σ_r a[o, r] b[i, r] d[k, r]        Carroll & Chang 1970, Harshman 1970

Below, slice k of the core is the matrix W_k ``(o, i)``, about a diag(d_k) bᵀ.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PULL = 1e-2


class CP(NamedTuple):
    """Factors of a core; the three columns of a component have the same norm.

    Attributes:
        outputs: a ``(r_G, R)``.
        inputs: b ``(r_A, R)``.
        kernels: d ``(K, R)``.
        error: ‖W − Σ a ⊗ b ⊗ d‖ / ‖W‖, Frobenius; 0 for a core of zeros.
    """

    outputs: Tensor
    inputs: Tensor
    kernels: Tensor
    error: float


def decompose(
    core: Tensor, rank: int | None = None, *, seed: int = 0, tolerance: float = 1e-4, sweeps: int = 200
) -> CP:
    """Decomposes a core from three starts, of which the one that is best after ten sweeps goes on.

    Two starts come from singular vectors: one is exact for a matrix, the other for a core that is such a sum,
    if the components are linearly independent. The third is drawn.

    Args:
        core: W ``(r_G, r_A, K)``, finite; computed in float64 on the CPU.
        rank: R, in 1…min(r_A, r_G), which is also what None stands for.
        seed: Of the start that is drawn, from a generator of its own.
        tolerance: Stop when a sweep lowers the error by less than this share of it.
        sweeps: Stop after so many in any case.
    """
    slices = core.detach().to("cpu", torch.float64).permute(2, 0, 1).contiguous()
    most = min(slices.shape[1:])
    rank = most if rank is None else rank
    assert 1 <= rank <= most
    assert slices.isfinite().all()
    starts = [_aligned(slices, rank), _simultaneous(slices, rank), _drawn(slices, rank, seed)]
    best = min((_descend(slices, start, 10, tolerance) for start in starts), key=lambda cp: cp.error)
    found = _descend(slices, best, sweeps, tolerance)
    return found._replace(error=_error(slices, found))


def sweep(slices: Tensor, cp: CP) -> CP:
    """Solves for outputs, inputs and kernels in turn, so that the error falls or stays.

    Each solution x is pulled a little towards what it was, argmin ‖W − x …‖² + μ‖x − x_old‖². That leaves
    the points where alternating least squares comes to rest as they are, but keeps it from running away
    along components that grow and cancel.

    Args:
        slices: ``(K, r_G, r_A)``.
        cp: Where it stands.
    """
    a, b, d, _ = cp
    a = _solve(((slices @ b) * d[:, None, :]).sum(0), b, d, a)
    projected = slices.mT @ a
    b = _solve((projected * d[:, None, :]).sum(0), a, d, b)
    right = (projected * b).sum(1)
    d = _solve(right, a, b, d)
    # ‖W − Ŵ‖² without forming Ŵ; below 1e-8 of ‖W‖ it is rounding.
    whole = slices.square().sum()
    rest = whole - 2 * (right * d).sum() + ((a.mT @ a) * (b.mT @ b) * (d.mT @ d)).sum()
    return _balanced(a, b, d, float((rest / whole).clamp(min=0).sqrt()) if whole else 0.0)


def _solve(right: Tensor, one: Tensor, other: Tensor, before: Tensor) -> Tensor:
    """Solves for x: x (oneᵀone ∘ otherᵀother + μ) = right + μ·before."""
    gram = (one.mT @ one) * (other.mT @ other)
    pull = (PULL * gram.diagonal().mean()).clamp(min=torch.finfo(gram.dtype).tiny)
    gram.diagonal().add_(pull)
    return torch.cholesky_solve((right + pull * before).mT, torch.linalg.cholesky(gram)).mT


def _descend(slices: Tensor, cp: CP, sweeps: int, tolerance: float) -> CP:
    for _ in range(sweeps):
        before, cp = cp, sweep(slices, cp)
        if before.error - cp.error <= tolerance * cp.error:
            return min(before, cp, key=lambda cp: cp.error)
    return cp


def _balanced(a: Tensor, b: Tensor, d: Tensor, error: float = math.inf) -> CP:
    """The same components with columns of the same norm."""
    norms = [factor.norm(dim=0) for factor in (a, b, d)]
    size = (norms[0] * norms[1] * norms[2]).pow(1 / 3)
    a, b, d = (
        factor * torch.where(norm > 0, size / norm, 0) for factor, norm in zip((a, b, d), norms, strict=True)
    )
    return CP(a, b, d, error)


def _error(slices: Tensor, cp: CP) -> float:
    whole = slices.norm()
    rest = slices - (cp.outputs * cp.kernels[:, None, :]) @ cp.inputs.mT
    return float(rest.norm() / whole) if whole else 0.0


def _aligned(slices: Tensor, rank: int) -> CP:
    """Singular vectors of the combination of slices that is largest; d by projection."""
    leading = torch.linalg.svd(slices.flatten(1), full_matrices=False).U[:, 0]
    U, _, Vh = torch.linalg.svd(torch.einsum("koi,k->oi", slices, leading), full_matrices=False)
    a, b = U[:, :rank], Vh[:rank].mT
    return _balanced(a, b, ((slices.mT @ a) * b).sum(1))


def _simultaneous(slices: Tensor, rank: int) -> CP:
    """Eigenvectors of Y X⁻¹, X and Y the two leading combinations of slices.

    With X = a D_x bᵀ and Y = a D_y bᵀ they are the columns of a (Leurgans, Ross & Abel 1993); then each row
    of a⁺W is an outer product of b and d.
    """
    K, outputs, inputs = slices.shape
    left = torch.linalg.svd(slices.transpose(0, 1).flatten(1), full_matrices=False).U[:, :rank]
    right = torch.linalg.svd(slices.permute(2, 0, 1).flatten(1), full_matrices=False).U[:, :rank]
    small = left.mT @ slices @ right
    leading = torch.linalg.svd(small.flatten(1), full_matrices=False).Vh
    X = leading[0].reshape(rank, rank)
    Y = leading[1].reshape(rank, rank) if len(leading) > 1 else torch.zeros_like(X)
    values, vectors = torch.linalg.eig(Y @ torch.linalg.pinv(X))
    a = left @ torch.where(values.imag < 0, vectors.imag, vectors.real)  # a pair gives one of each
    rest = torch.linalg.lstsq(a, slices.transpose(0, 1).reshape(outputs, K * inputs), driver="gelsd").solution
    U, S, Vh = torch.linalg.svd(rest.reshape(rank, K, inputs), full_matrices=False)
    return _balanced(a, Vh[:, 0].mT, (U[:, :, 0] * S[:, :1]).mT)


def _drawn(slices: Tensor, rank: int, seed: int) -> CP:
    """Normal random numbers."""
    generator = torch.Generator("cpu").manual_seed(seed)
    K, outputs, inputs = slices.shape
    a, b, d = (
        torch.randn(n, rank, generator=generator, dtype=slices.dtype, device="cpu")
        for n in (outputs, inputs, K)
    )
    return _balanced(a, b, d)
