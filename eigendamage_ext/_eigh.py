"""Batched symmetric eigendecomposition around LAPACK: grouping by size, certificate, repair, sign and error codes."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

REASONS = {
    1: "the input is not finite",
    2: "no decomposition passed the accuracy check, in double precision neither",
    3: "an eigenvalue is beyond the range of the dtype",
}
NOT_FINITE, NOT_ACCURATE, OVERFLOW = REASONS

PROBES = 4


class Failure(NamedTuple):
    """A matrix without a result: its name (or index), its size and why."""

    name: str | int | tuple[int, ...]
    n: int
    reason: str


class EighError(ValueError):
    """Some matrices have no eigendecomposition; `failures` lists them and `result` holds everything else.

    Attributes:
        failures: a `Failure` for each of them.
        result: what ``eigh(..., errors="info")`` returns: the failed outputs are NaN, the others complete.
    """

    def __init__(self, failures: Sequence[tuple[Any, int, str]], result: Any) -> None:
        self.failures = [Failure(*failure) for failure in failures]
        self.result = result
        lines = [f"{failure.name} (n = {failure.n}): {failure.reason}" for failure in self.failures]
        super().__init__(
            "eigh: matrices must be finite and solvable, got "
            + f"{len(lines)} failing: {'; '.join(lines)}; the others are in this error's .result"
        )


def raise_failures(result: tuple[Any, Any, Tensor], names: Sequence[str] | None) -> None:
    """Raise an `EighError` if any code in the result is not 0."""
    values, _, info = result
    failures: list[tuple[Any, int, str]] = []
    for flat in info.flatten().nonzero().flatten().tolist():
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), info.shape))
        n = values.shape[-1] if isinstance(values, Tensor) else len(values[flat])
        name = names[flat] if names is not None else index[0] if len(index) == 1 else index
        failures.append((name, n, REASONS[int(info[index])]))
    if failures:
        raise EighError(failures, result)


def solve(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Decompose every matrix of a list of stacks ``(…, n, n)`` of any sizes on one device.

    Returns:
        Eigenvalues ``(…, n)`` and eigenvectors ``(…, n, n)`` of each stack, and the int32 codes of all matrices in order.
    """
    stacks = [_flat(matrix) for matrix in matrices]
    classes: dict[tuple[int, torch.dtype], list[int]] = defaultdict(list)
    for index, stack in enumerate(stacks):
        classes[stack.shape[-1], stack.dtype].append(index)
    values: dict[int, Tensor] = {}
    vectors: dict[int, Tensor] = {}
    codes: dict[int, Tensor] = {}
    for members in classes.values():
        lengths = [len(stacks[index]) for index in members]
        solved = _solve_stack(torch.cat([stacks[index] for index in members]))
        for found, part in zip((values, vectors, codes), solved, strict=True):
            # An output of its own for each matrix: a custom operator's results may not share memory.
            found.update(zip(members, (piece.clone() for piece in part.split(lengths)), strict=True))
    order = range(len(stacks))
    device = matrices[0].device if matrices else None
    return (
        [values[index].reshape(matrices[index].shape[:-1]) for index in order],
        [vectors[index].reshape(matrices[index].shape) for index in order],
        torch.cat([codes[index] for index in order])
        if stacks
        else torch.zeros(0, dtype=torch.int32, device=device),
    )


def fake(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Shapes and dtypes of `solve`."""
    dtypes = [torch.promote_types(matrix.dtype, torch.float32) for matrix in matrices]
    count = sum(math.prod(matrix.shape[:-2]) for matrix in matrices)
    info = matrices[0].new_empty(count, dtype=torch.int32) if matrices else torch.empty(0, dtype=torch.int32)
    return (
        [
            matrix.new_empty(matrix.shape[:-1], dtype=dtype)
            for matrix, dtype in zip(matrices, dtypes, strict=True)
        ],
        [matrix.new_empty(matrix.shape, dtype=dtype) for matrix, dtype in zip(matrices, dtypes, strict=True)],
        info,
    )


def _flat(matrix: Tensor) -> Tensor:
    n = matrix.shape[-1]
    return (
        matrix.detach()
        .to(torch.promote_types(matrix.dtype, torch.float32))
        .reshape(math.prod(matrix.shape[:-2]), n, n)
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

    # A power of two loses nothing and keeps the products of the solver and of the check inside the range of the dtype.
    exponents = torch.frexp(matrices.abs().amax(dim=(1, 2))).exponent
    matrices = _scale(matrices, -exponents[:, None, None])
    values, vectors = _library(matrices)
    accurate = _certify(matrices, values, vectors)
    for index in (~accurate).nonzero().flatten().tolist():
        repaired = [part.to(stack.dtype) for part in _library(matrices[index].double())]
        values[index], vectors[index] = repaired
        accurate[index] = _certify(*(part[None] for part in (matrices[index], *repaired)))[0]

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
    except torch.linalg.LinAlgError:
        return torch.full_like(matrices[..., 0], math.nan), torch.full_like(matrices, math.nan)
    return values, vectors


def _certify(matrices: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """Whether ‖AV − VΛ‖ ≤ 8·n·eps·‖A‖ and ‖VᵀV − I‖ ≤ 8·n·eps, ``(b,)``, in O(n²) a matrix.

    For a vector z of random signs ‖Ez‖² has the mean ‖E‖², so few of them measure a Frobenius norm.
    """
    n = matrices.shape[-1]
    generator = torch.Generator().manual_seed(n)
    signs = (
        torch.randint(0, 2, (n, PROBES), generator=generator).mul(2).sub(1).to(matrices.device, torch.float64)
    )
    gate = 8 * n * torch.finfo(vectors.dtype).eps
    a, lam, v = matrices.double(), values.double(), vectors.double()
    image = v @ signs
    residual = a @ image - v @ (lam[..., None] * signs)
    skew = v.mT @ image - signs

    def norm(probed: Tensor) -> Tensor:
        return probed.square().sum(dim=(1, 2)).div(PROBES).sqrt()

    scale = torch.linalg.matrix_norm(a)
    return (norm(residual) <= gate * scale) & (norm(skew) <= gate)


def _scale(x: Tensor, exponents: Tensor) -> Tensor:
    """``x·2^exponents`` in two steps, either of which is inside the range of float32 for every float32 and float64 alike."""
    half = exponents // 2
    return torch.ldexp(torch.ldexp(x, half), exponents - half)
