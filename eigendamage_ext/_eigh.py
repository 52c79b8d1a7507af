"""Symmetric eigendecomposition: the kernels, the library for what they leave or where they lack, errors."""

import contextlib
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

KERNEL_SIZE = 64  # what CUDA's kernel solves has at most so many rows
HOST_SIZE = (
    512  # up to so many rows a GPU's library is many times slower than the CPU's kernels, copies and all
)
LIBRARY_COUNT = 1 << 14  # the library gets at most so many matrices at a time
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


def raise_failures(
    result: tuple[Any, Any, Tensor], names: Sequence[str] | None, matrices: Sequence[Tensor] = ()
) -> None:
    """Raise an `EighError` if any code is not 0, once what a kernel left of the matrices is solved otherwise.

    Args:
        result: what ``eigh(..., errors="info")`` returns; completed by what is solved now.
        names: what to call the matrices.
        matrices: the stacks ``(…, n, n)`` that the result is of.
    """
    values, vectors, info = result
    codes = info.cpu()  # the one time that the device is waited for
    if not codes.any():
        return
    left = (codes.flatten() == NOT_ACCURATE).nonzero().flatten().tolist()
    if matrices and left:
        stacks = [matrix.to(_solved_in(matrix)) for matrix in matrices]
        listed = ([values], [vectors]) if isinstance(values, Tensor) else (values, vectors)
        _solve_again(stacks, listed[0], listed[1], info.view(-1), left)
        codes = info.cpu()
    failures: list[tuple[Any, int, str]] = []
    flat = codes.flatten().nonzero().flatten().tolist()
    for position, index in zip(flat, codes.nonzero().tolist(), strict=True):
        n = values.shape[-1] if isinstance(values, Tensor) else len(values[position])
        name = names[position] if names is not None else tuple(index) if len(index) > 1 else position
        failures.append((name, n, REASONS[int(codes.flatten()[position])]))
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
    has_kernel = stacks[0].is_cuda and _C.build_info()["cuda"]
    return _solve_on_device(stacks, KERNEL_SIZE if has_kernel else -1)


def fake(matrices: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Shapes and dtypes of what `solve` returns."""
    count = sum(math.prod(matrix.shape[:-2]) for matrix in matrices)
    return (
        [m.new_empty(m.shape[:-1], dtype=_solved_in(m)) for m in matrices],
        [_empty_columns(m) for m in matrices],
        matrices[0].new_empty(count, dtype=torch.int32) if matrices else torch.empty(0, dtype=torch.int32),
    )


def _solved_in(matrix: Tensor) -> torch.dtype:
    return torch.promote_types(matrix.dtype, torch.float32)


def _empty_columns(matrix: Tensor) -> Tensor:
    """Room for the eigenvectors ``(…, n, n)``, each column contiguous."""
    return matrix.new_empty(matrix.shape, dtype=_solved_in(matrix)).mT


def _solve_by_kernel(stacks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Solve on the CPU; what the kernel leaves, because it is too large or hard, is left to LAPACK."""
    values, vectors, codes, left = _C.eigh(stacks)
    _solve_again(stacks, values, vectors, codes, left)
    return values, vectors, codes


def _solve_again(
    stacks: Sequence[Tensor],
    values: Sequence[Tensor],
    vectors: Sequence[Tensor],
    codes: Tensor,
    numbers: Sequence[int],
) -> None:
    """Let the library solve the matrices with these numbers, and put what it finds into the results."""
    for number in numbers:
        index, place = _locate(stacks, number)
        shape = stacks[index].shape
        solved = _finish(_attempt(stacks[index].reshape(-1, *shape[-2:])[place : place + 1]))
        values[index].view(-1, shape[-1])[place] = solved[0][0]
        vectors[index].mT.view(-1, *shape[-2:])[place] = solved[1][0].mT
        codes[number] = solved[2][0]


def _locate(stacks: Sequence[Tensor], number: int) -> tuple[int, int]:
    """The stack that holds the matrix with this number, and its place there."""
    for index, stack in enumerate(stacks):
        count = math.prod(stack.shape[:-2])
        if number < count:
            return index, number
        number -= count
    raise IndexError(number)


def _solve_on_device(stacks: Sequence[Tensor], kernel_size: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Solve up to so many rows by the device's kernel, up to `HOST_SIZE` on the CPU, the rest by the library.

    Nobody waits for the kernel. The CPU waits for its matrices, and the library for itself.
    """
    sizes = [stack.shape[-1] for stack in stacks]
    small = [index for index, n in enumerate(sizes) if n <= kernel_size]
    if len(small) == len(stacks):
        return _C.eigh(stacks)[:3]
    medium = [index for index, n in enumerate(sizes) if kernel_size < n <= HOST_SIZE]
    large = [index for index, n in enumerate(sizes) if n > max(kernel_size, HOST_SIZE)]
    results: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # a stack's values, vectors and codes
    for members, solve_them in (
        (small, lambda some: _C.eigh(some)[:3]),
        (medium, _solve_on_host),
        (large, _solve_by_library),
    ):
        if members:
            values, vectors, codes = solve_them([stacks[index] for index in members])
            parts = codes.split_with_sizes([math.prod(stacks[index].shape[:-2]) for index in members])
            results |= zip(members, zip(values, vectors, parts, strict=True), strict=True)
    ordered = [results[index] for index in range(len(stacks))]
    return [one[0] for one in ordered], [one[1] for one in ordered], torch.cat([one[2] for one in ordered])


def _solve_on_host(stacks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Solve on the CPU and send the results back; what has one type goes either way in one piece."""
    device = stacks[0].device
    host = _moved(stacks, torch.device("cpu"))
    values, vectors, codes = _solve_by_kernel(host)
    rows = [one.mT for one in vectors]
    sent = [one.clone() for one in _moved([*values, *rows], device)]  # each in memory of its own
    return sent[: len(stacks)], [one.mT for one in sent[len(stacks) :]], codes.to(device, non_blocking=True)


def _moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Contiguous copies on a device, those of one type in one piece of memory."""
    moved: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        members = [index for index, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[index].reshape(-1) for index in members])
        flat = flat.to(device, non_blocking=device.type != "cpu")  # only what comes is waited for
        parts = flat.split_with_sizes([tensors[index].numel() for index in members])
        moved |= {index: part.view(tensors[index].shape) for index, part in zip(members, parts, strict=True)}
    return [moved[index] for index in range(len(tensors))]


def _solve_by_library(stacks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Let the device's library solve all of a size together, each size on a stream of its own."""
    classes: dict[tuple[int, torch.dtype], list[int]] = defaultdict(list)
    for index, stack in enumerate(stacks):
        classes[stack.shape[-1], stack.dtype].append(index)
    counts = [math.prod(stack.shape[:-2]) for stack in stacks]
    results = [  # on the current stream, which is where they are dropped
        (
            stack.new_empty(stack.shape[:-1]),
            _empty_columns(stack),
            stack.new_empty(count, dtype=torch.int32),
        )
        for stack, count in zip(stacks, counts, strict=True)
    ]
    tasks = [(members, _side_stream(stacks[0].device)) for members in classes.values()]
    try:
        attempts = []
        for members, stream in tasks:
            with _on(stream):
                flat = [stacks[index].reshape(-1, *stacks[index].shape[-2:]) for index in members]
                attempts.append(_attempt(torch.cat(flat)))
        for (members, stream), attempt in zip(tasks, attempts, strict=True):
            with _on(stream):
                sizes = [counts[index] for index in members]
                found = (part.split_with_sizes(sizes) for part in _finish(attempt))
                for index, *own in zip(members, *found, strict=True):
                    for to, part in zip(results[index], own, strict=True):
                        to.copy_(part.reshape(to.shape))
    finally:
        for _, stream in tasks:
            if stream is not None:
                torch.cuda.current_stream(stream.device).wait_stream(stream)
    return [one[0] for one in results], [one[1] for one in results], torch.cat([one[2] for one in results])


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream that waits for all there is on the current one; none where a device has no streams."""
    if device.type != "cuda":
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _on(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


class _Attempt(NamedTuple):
    """What the library makes of a stack ``(b, n, n)``: to be certified, repaired and scaled back."""

    matrices: Tensor
    """``(b, n, n)``, symmetric, of largest magnitude in [1/2, 1); the identity for what is not finite."""
    finite: Tensor
    """``(b,)``"""
    exponents: Tensor
    """``(b,)``: powers of two that the matrices were divided by."""
    values: Tensor
    """``(b, n)``"""
    vectors: Tensor
    """``(b, n, n)``"""
    accurate: Tensor
    """``(b,)``: whether the certificate holds."""


def _attempt(stack: Tensor) -> _Attempt:
    lower = stack.tril()
    finite = lower.isfinite().flatten(1).all(dim=1)
    identity = torch.eye(stack.shape[-1], dtype=stack.dtype, device=stack.device)
    matrices = torch.where(finite[:, None, None], lower + lower.tril(-1).mT, identity)
    # A power of two costs no accuracy and keeps squares and products inside the range of the dtype.
    largest = matrices.abs().amax(dim=(1, 2)) if matrices.numel() else matrices.new_zeros(len(matrices))
    exponents = torch.frexp(largest).exponent.to(stack.dtype)
    matrices = _scale(matrices, -exponents[:, None, None])
    values, vectors = _library(matrices)
    return _Attempt(matrices, finite, exponents, values, vectors, _certify(matrices, values, vectors))


def _finish(attempt: _Attempt) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues ``(b, n)``, eigenvectors ``(b, n, n)``, codes ``(b,)``; what is not accurate again."""
    matrices, finite, exponents, values, vectors, accurate = attempt
    for index in (place for place, passed in enumerate(accurate.tolist()) if not passed):
        one = slice(index, index + 1)
        repaired = _library(matrices[one].double().cpu())  # a GPU's library may be as far off again
        for to, part in zip((values, vectors), repaired, strict=True):
            to[one] = part.to(to)
        accurate[one] = _certify(matrices[one], values[one], vectors[one])

    values = _scale(values, exponents[:, None])
    codes = torch.zeros_like(accurate, dtype=torch.int32)
    codes.masked_fill_(values.isinf().any(dim=1), OVERFLOW)
    codes.masked_fill_(~accurate, NOT_ACCURATE)
    codes.masked_fill_(~finite, NOT_FINITE)
    failed = codes != 0
    if vectors.numel():
        largest = vectors.abs().argmax(dim=1, keepdim=True)
        vectors = torch.where(vectors.gather(1, largest) < 0, -vectors, vectors)
    return (
        values.masked_fill(failed[:, None], math.nan),
        vectors.masked_fill(failed[:, None, None], math.nan),
        codes,
    )


def _library(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`, with NaN for all it was given at a time if it gives up on any matrix."""
    if len(matrices) > LIBRARY_COUNT:
        values, vectors = zip(*map(_library, torch.split(matrices, LIBRARY_COUNT)), strict=True)
        return torch.cat(values), torch.cat(vectors)
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
    signs = _signs(n, matrices.device)
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


def _signs(n: int, device: torch.device) -> Tensor:
    """Random signs ``(n, PROBES)`` in float64, always the same, made on the device: nothing is copied."""
    bits = (
        torch.arange(1, n * PROBES + 1, device=device) * -0x61C8864680B583EB
    )  # a hash; products wrap around
    bits = (bits ^ bits >> 30) * -0x40A7B892E31B1A47
    bits = (bits ^ bits >> 27) * -0x6B2FB644ECCEEE15
    return (1 - 2 * (bits >> 40 & 1)).double().view(n, PROBES)


def _scale(x: Tensor, exponents: Tensor) -> Tensor:
    """``x·2^exponents``, in two steps because one factor may be beyond the range of the dtype."""
    half = (exponents / 2).floor()
    return torch.ldexp(torch.ldexp(x, half), exponents - half)
