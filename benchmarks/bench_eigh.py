"""Eigendecompositions against `torch.linalg.eigh`: stacks of one size, single matrices, factors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.cases import eigh_factors, eigh_stack
from benchmarks.contest import Contest, Run
from eigendamage_ext import ops

SIZES = (8, 16, 32, 64, 128, 256, 576, 1024)
RESNET32 = {
    27: 1,
    144: 11,
    288: 10,
    576: 9,
    16: 11,
    32: 10,
    64: 11,
    10: 1,
}  # sizes of its factors, how many of each
DTYPES = (torch.float32, torch.float64)


def covariances(count: int, n: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    rows = torch.randn(count, 2 * n, n, dtype=dtype, device=device)
    return rows.mT @ rows / (2 * n)


def check(matrices: list[Tensor]) -> None:
    """Ours reproduces every matrix as well as the library does, in float64."""
    for matrix, lam, v in zip(matrices, *ops.eigh(matrices)[:2], strict=True):
        exact, (lam, v) = matrix.double(), (lam.double(), v.double())
        error = torch.linalg.norm(exact @ v - v * lam) / torch.linalg.norm(exact)
        skew = torch.linalg.norm(v.mT @ v - torch.eye(len(lam), dtype=torch.float64, device=v.device))
        assert max(error, skew) <= 8 * len(lam) * torch.finfo(matrix.dtype).eps


def stack(n: int, dtype: torch.dtype) -> Contest:
    count, case = eigh_stack(n, str(dtype).removeprefix("torch."))
    matrices = covariances(count, n, dtype)
    check([*matrices[:20]])
    baselines: dict[str, Run] = {"torch": lambda: torch.linalg.eigh(matrices)}
    return Contest("eigh", case, lambda: ops.eigh(matrices), baselines, threads=1, dtype=dtype)


def single(n: int, dtype: torch.dtype) -> Contest:
    matrix = covariances(1, n, dtype)[0]
    case = f"one of {n} {str(dtype).removeprefix('torch.')}"
    baselines: dict[str, Run] = {"torch": lambda: torch.linalg.eigh(matrix)}
    return Contest("eigh", case, lambda: ops.eigh(matrix), baselines, threads=1, dtype=dtype)


def factors(threads: int) -> Contest:
    """All factors of ResNet-32 in one call; the library gets them stacked by size."""
    stacks = [covariances(count, n, torch.float32) for n, count in RESNET32.items()]
    matrices = [matrix for one in stacks for matrix in one]
    check(matrices)
    baselines: dict[str, Run] = {"torch stacked by size": lambda: [torch.linalg.eigh(one) for one in stacks]}
    return Contest("eigh", eigh_factors(threads), lambda: ops.eigh(matrices), baselines, threads=threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("make", [stack, single])
def test_size(
    contest: Callable[[Contest], None],
    make: Callable[[int, torch.dtype], Contest],
    n: int,
    dtype: torch.dtype,
) -> None:
    contest(make(n, dtype))


@pytest.mark.parametrize("threads", [1, 2])
def test_factors(contest: Callable[[Contest], None], threads: int) -> None:
    contest(factors(threads))
