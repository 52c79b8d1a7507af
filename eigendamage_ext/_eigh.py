"""Symmetric eigendecomposition: the kernel, LAPACK for what it leaves or where there is none, errors."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eigendamage_ext import _C

NOT_FINITE, NOT_ACCURATE, OVERFLOW = 1, 2, 3
REASONS = {
    NOT_FINITE: "the input is not finite",
    NOT_ACCURATE: "no decomposition passed the accuracy check, nor did float64",
    OVERFLOW: "an eigenvalue is beyond the range of the dtype",
}

PROBES = 4


class Failure(NamedTuple):
    """A matrix without a result: its name or index, its size and why."""

    name: str | int | tuple[int, ...]
    n: int
    reason: str


class EighError(ValueError):
    """Some matrices have no eigendecomposition.

    Attributes:
        failures: a `Failure` for each of them.
        result: what ``eigh(..., errors="info")`` returns: NaN for these, the others complete.
    """

    def __init__(self, failures: Sequence[tuple[Any, int, str]], result: Any) -> None:
        self.failures = [Failure(*failure) for failure in failures]
        self.result = result
        listed = "; ".join(f"{name} (n = {n}): {reason}" for name, n, reason in self.failures)
        count = f"{len(self.failures)} that failed" if len(self.failures) > 1 else "one that failed"
        super().__init__(f"eigh: matrices must be solvable, got {count}: {listed}; the others are in .result")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures, self.result)


def raise_failures(result: tuple[Any, Any, Tensor], names: Sequence[str] | None) -> None:
    """Raise an `EighError` if any code in the result is not 0."""
    values, _, info = result
    if not info.any():
        return
    failures: list[tuple[Any, int, str]] = []
    flat = info.flatten().nonzero().flatten().tolist()
    for position, index in zip(flat, info.nonzero().tolist(), strict=True):
        n = values.shape[-1] if isinstance(values, Tensor) else len(values[position])
        name = names[position] if names is not None else tuple(index) if len(index) > 1 else position
        failures.append((name, n, REASONS[int(info.flatten()[position])]))
    if failures:
        raise EighError(failures, result)


def solve(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Decompose every matrix of a list of stacks ``(…, n, n)``, of any sizes, on one device.

    Returns:
        Eigenvalues ``(…, n)`` and eigenvectors ``(…, n, n)`` of each stack, each vector contiguous; int32
        codes of all matrices in order.
    """
    stacks = [matrix.to(_solved_in(matrix)) for matrix in matrices]
    if all(stack.is_cpu for stack in stacks):
        return _solve_by_kernel(stacks)
    return _solve_by_library(stacks)


def fake(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Shapes and dtypes of what `solve` returns."""
    count = sum(math.prod(matrix.shape[:-2]) for matrix in matrices)
    return (
        [m.new_empty(m.shape[:-1], dtype=_solved_in(m)) for m in matrices],
        [_contiguous_columns(m.new_empty(m.shape, dtype=_solved_in(m))) for m in matrices],
        matrices[0].new_empty(count, dtype=torch.int32) if matrices else torch.empty(0, dtype=torch.int32),
    )


def _solved_in(matrix: Tensor) -> torch.dtype:
    return torch.promote_types(matrix.dtype, torch.float32)


def _contiguous_columns(vectors: Tensor) -> Tensor:
    """A copy of ``(…, n, n)`` in which each column is contiguous."""
    return torch.empty_like(vectors.mT, memory_format=torch.contiguous_format).mT.copy_(vectors)


def _solve_by_kernel(stacks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Solve on the CPU; what the kernel leaves, because it is too large or hard, is left to LAPACK."""
    values, vectors, codes, left = _C.eigh(stacks)
    for number in left:
        index, place = _locate(stacks, number)
        shape = stacks[index].shape
        solved = _solve_stack(stacks[index].reshape(-1, *shape[-2:])[place : place + 1])
        values[index].view(-1, shape[-1])[place] = solved[0][0]
        vectors[index].mT.view(-1, *shape[-2:])[place] = solved[1][0].mT
        codes[number] = solved[2][0]
    return values, vectors, codes


def _locate(stacks: Sequence[Tensor], number: int) -> tuple[int, int]:
    """The stack that holds the matrix with this number, and its place there."""
    for index, stack in enumerate(stacks):
        count = math.prod(stack.shape[:-2])
        if number < count:
            return index, number
        number -= count
    raise IndexError(number)


def _solve_by_library(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Solve with one call of `torch.linalg.eigh` for each size."""
    stacks = [matrix.reshape(-1, *matrix.shape[-2:]) for matrix in matrices]
    classes: dict[tuple[int, torch.dtype], list[int]] = defaultdict(list)
    for index, stack in enumerate(stacks):
        classes[stack.shape[-1], stack.dtype].append(index)
    solved: dict[int, tuple[Tensor, ...]] = {}
    for members in classes.values():
        results = _solve_stack(torch.cat([stacks[index] for index in members]))
        parts = [torch.split(result, [len(stacks[index]) for index in members]) for result in results]
        for index, *found in zip(members, *parts, strict=True):
            solved[index] = tuple(
                part.clone() for part in found
            )  # an operator's results may not share memory
    order = range(len(stacks))
    return (
        [solved[index][0].reshape(matrices[index].shape[:-1]) for index in order],
        [_contiguous_columns(solved[index][1].reshape(matrices[index].shape)) for index in order],
        torch.cat([solved[index][2] for index in order]),
    )


def _solve_stack(stack: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues ``(b, n)``, eigenvectors ``(b, n, n)`` and codes ``(b,)`` of ``stack (b, n, n)``."""
    codes = torch.zeros(len(stack), dtype=torch.int32, device=stack.device)
    if stack.numel() == 0:
        return stack.new_empty(stack.shape[:-1]), torch.empty_like(stack), codes
    lower = stack.tril()
    finite = lower.isfinite().flatten(1).all(dim=1)
    identity = torch.eye(stack.shape[-1], dtype=stack.dtype, device=stack.device)
    matrices = torch.where(finite[:, None, None], lower + lower.tril(-1).mT, identity)

    # A power of two costs no accuracy and keeps squares and products inside the range of the dtype.
    exponents = torch.frexp(matrices.abs().amax(dim=(1, 2))).exponent.to(stack.dtype)
    matrices = _scale(matrices, -exponents[:, None, None])
    values, vectors = _library(matrices)
    accurate = _certify(matrices, values, vectors)
    for index in (~accurate).nonzero().flatten().tolist():
        one = slice(index, index + 1)
        repaired = _library(matrices[one].double())
        values[one], vectors[one] = repaired
        accurate[one] = _certify(matrices[one], values[one], vectors[one])

    values = _scale(values, exponents[:, None])
    codes[values.isinf().any(dim=1)] = OVERFLOW
    codes[~accurate] = NOT_ACCURATE
    codes[~finite] = NOT_FINITE
    failed = codes != 0
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    vectors = torch.where(vectors.gather(1, largest) < 0, -vectors, vectors)
    return (
        values.masked_fill(failed[:, None], math.nan),
        vectors.masked_fill(failed[:, None, None], math.nan),
        codes,
    )


def _library(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`, with NaN for the whole of a stack in which it gives up on any matrix."""
    try:
        values, vectors = torch.linalg.eigh(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return torch.full_like(matrices[..., 0], math.nan), torch.full_like(matrices, math.nan)
    return values, vectors


def _certify(matrices: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − I‖ ≤ 8·n·eps, ``(b,)``, in O(n²) for a matrix.

    ‖Ez‖² averages to ‖E‖² over vectors z of random signs, so a few of them measure a Frobenius norm.
    """
    n = matrices.shape[-1]
    generator = torch.Generator().manual_seed(n)
    signs = (
        torch.randint(0, 2, (n, PROBES), generator=generator).mul(2).sub(1).to(matrices.device, torch.float64)
    )
    gate = 8 * n * torch.finfo(vectors.dtype).eps
    a, v = matrices.double(), vectors.double()
    image = v @ signs
    residual = a @ image - v @ (values.double()[..., None] * signs)
    skew = v.mT @ image - signs
    residual_norm, skew_norm = (
        (probed.square().sum(dim=(1, 2)) / PROBES).sqrt() for probed in (residual, skew)
    )
    norm = a.square().sum(dim=(1, 2)).sqrt()
    return (residual_norm <= gate * norm) & (skew_norm <= gate)


def _scale(x: Tensor, exponents: Tensor) -> Tensor:
    """``x·2^exponents``, in two steps because one factor may be beyond the range of the dtype."""
    half = (exponents / 2).floor()
    return torch.ldexp(torch.ldexp(x, half), exponents - half)
