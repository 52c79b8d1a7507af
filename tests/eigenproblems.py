"""Symmetric matrices that are hard to decompose, and the gates every decomposition is held to."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def with_spectrum(values: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues, in float64."""
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))).Q
    matrix = (q * values) @ q.T
    return (matrix + matrix.T) / 2


def factor(n: int, rank: int) -> Tensor:
    rows = torch.randn(rank, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    return rows.T @ rows / rank


def wilkinson(n: int) -> Tensor:
    """W⁺: 1 beside the diagonal, distances from the middle on it."""
    beside = torch.ones(n - 1, dtype=torch.float64)
    distances = (torch.arange(n) - n // 2).abs().double()
    return torch.diag(distances) + torch.diag(beside, 1) + torch.diag(beside, -1)


def glued_wilkinson(n: int) -> Tensor:
    matrix = torch.block_diag(*[wilkinson(21)] * (n // 21 + 1))[:n, :n].clone()
    for i in range(21, n, 21):
        matrix[i, i - 1] = matrix[i - 1, i] = 1e-7
    return matrix


def second_difference(n: int) -> Tensor:
    beside = -torch.ones(n - 1, dtype=torch.float64)
    return 2 * torch.eye(n, dtype=torch.float64) + torch.diag(beside, 1) + torch.diag(beside, -1)


def arrow(n: int) -> Tensor:
    matrix = torch.diag(torch.arange(1.0, n + 1, dtype=torch.float64))
    matrix[-1, :-1] = matrix[:-1, -1] = 1
    return matrix


def hilbert(n: int) -> Tensor:
    i = torch.arange(n, dtype=torch.float64)
    return 1 / (i[:, None] + i + 1)


def integers(n: int) -> Tensor:
    drawn = torch.randint(-2, 3, (n, n), generator=torch.Generator().manual_seed(n)).double()
    return drawn.tril() + drawn.tril(-1).T


def signs(n: int) -> Tensor:
    return 1 - 2 * (torch.arange(n) % 2).double()


FAMILIES: dict[str, Callable[[int], Tensor]] = {
    "zero": lambda n: torch.zeros(n, n, dtype=torch.float64),
    "multiple of one": lambda n: 3.7 * torch.eye(n, dtype=torch.float64),
    "diagonal, ascending": lambda n: torch.diag(torch.arange(n).double()),
    "diagonal, descending": lambda n: torch.diag(torch.arange(n).double().flip(0)),
    "diagonal, shuffled": lambda n: torch.diag(
        torch.randperm(n, generator=torch.Generator().manual_seed(n)).double() - n / 2
    ),
    "ones": lambda n: torch.ones(n, n, dtype=torch.float64),
    "rank 1": lambda n: factor(n, 1),
    "rank n/4": lambda n: factor(n, n // 4 + 1),
    "covariance": lambda n: factor(n, 2 * n),
    "integers": integers,
    "repeated groups": lambda n: with_spectrum((torch.arange(n) // 4).double()),
    "plus and minus one": lambda n: with_spectrum(signs(n)),
    "cluster": lambda n: with_spectrum(1 + 1e-6 * torch.arange(n).double() / n),
    "geometric": lambda n: with_spectrum(torch.logspace(0, -14, n, dtype=torch.float64)),
    "hilbert": hilbert,
    "wilkinson": wilkinson,
    "glued wilkinson": glued_wilkinson,
    "1-2-1": second_difference,
    "arrow": arrow,
    "blocks": lambda n: (
        torch.block_diag(factor(n - n // 2, n), 5 * factor(n // 2, n)) if n > 1 else factor(1, 1)
    ),
    "scale 1e34": lambda n: 1e34 * factor(n, n),
    "scale 1e-34": lambda n: 1e-34 * factor(n, n),
    "scale 1e-40": lambda n: 1e-40 * factor(n, n),
    "near the largest float": lambda n: with_spectrum(
        torch.linspace(-3.2e38, 3.2e38, n, dtype=torch.float64)
    ),
}


def assert_decomposition(matrix: Tensor, values: Tensor, vectors: Tensor) -> None:
    """The gates in float64: residual and orthogonality 8·n·eps, eigenvalues 4·n·eps; order and signs."""
    n, eps = len(matrix), torch.finfo(values.dtype).eps
    exact = matrix.tril().double() + matrix.tril(-1).T.double()
    scale = max(exact.abs().max().item(), math.ulp(0.0)) if n else 1.0
    scaled, lam, v = exact / scale, values.double() / scale, vectors.double()
    norm = torch.linalg.norm(scaled)
    tiny = n * 1.4e-45 / scale if values.dtype == torch.float32 else n * 5e-324 / scale
    assert torch.linalg.norm(scaled @ v - v * lam) <= 8 * n * eps * norm + tiny
    assert torch.linalg.norm(v.T @ v - torch.eye(n, dtype=torch.float64)) <= 8 * n * eps
    assert torch.linalg.norm(lam - torch.linalg.eigvalsh(scaled)) <= 4 * n * eps * norm + tiny
    assert (values.diff() >= 0).all()
    if n:
        assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()
