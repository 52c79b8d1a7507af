"""Plain PyTorch twins of `eigendamage_ext.ops`: the specification, and the oracle of tests and benchmarks.

Same names, signatures and results, on any device and without compiled code: patches by `F.unfold`, sums by
`matmul`, in the dtype of the input (float32 for the halves; give float64 for an oracle). Arguments are taken
at their word.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eigendamage_ext._eigh import NOT_FINITE, raise_failures


def covariance(
    x: Tensor,
    *,
    feature_dim: int = -1,
    groups: int = 1,
    bias: bool = False,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """``Σ_r x_r x_rᵀ`` over the rows of ``x (…, F, …)``: ``(F, F)`` or ``(g, F/g, F/g)``; mean over rows."""
    features = _upcast(x).movedim(feature_dim, 0)
    columns = features.reshape(groups, features.shape[0] // groups, features[0].numel())
    return _update(_gram(columns, bias), columns.shape[2], reduction, out, alpha, beta)


def channel_covariance(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """``Σ_ntk a_ntk a_ntkᵀ`` over ``x (N, C, H, W)``: ``(C, C)`` or ``(g, C/g, C/g)``; mean over N·T·K."""
    patches = unfold(x, kernel_size, stride=stride, padding=padding, dilation=dilation)
    examples, channels, offsets, positions = patches.shape
    columns = patches.movedim(0, 1).reshape(groups, channels // groups, examples * offsets * positions)
    return _update(_gram(columns, bias=False), columns.shape[2], reduction, out, alpha, beta)


def patch_covariance(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = False,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """``Σ_nt a_nt a_ntᵀ`` over ``x (N, C, H, W)``: ``(D, D)`` or ``(g, D, D)``, D = C/g·K; mean over N·T."""
    patches = unfold(x, kernel_size, stride=stride, padding=padding, dilation=dilation)
    examples, channels, offsets, positions = patches.shape
    columns = patches.movedim(0, 2).reshape(groups, channels // groups * offsets, examples * positions)
    return _update(_gram(columns, bias), columns.shape[2], reduction, out, alpha, beta)


def gradient_second_moment(
    x: Tensor,
    g: Tensor,
    kernel_size: int | tuple[int, int] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """``Σ_n (Σ_t g_nt a_ntᵀ)²`` over ``x (N, C_in, H, W)``, ``g (N, C_out, …)``, or ``(N, …, C)``: over N."""
    if kernel_size is None:
        positions = math.prod(x.shape[1:-1])
        columns = _upcast(x).reshape(len(x), 1, positions, x.shape[-1]).mT
        gradients = _upcast(g).reshape(len(g), 1, positions, g.shape[-1]).mT
        shape: tuple[int, ...] = (g.shape[-1], x.shape[-1])
    else:
        patches = unfold(x, kernel_size, stride=stride, padding=padding, dilation=dilation)
        examples, channels, offsets, positions = patches.shape
        columns = patches.reshape(examples, groups, channels // groups * offsets, positions)
        gradients = _upcast(g).reshape(examples, groups, g.shape[1] // groups, positions)
        shape = (g.shape[1], channels // groups, *_pair(kernel_size))
    per_example = torch.einsum("ngot,ngit->ngoi", gradients, columns)
    total = per_example.square().sum(dim=0).reshape(shape)
    return _update(total, len(x), reduction, out, alpha, beta)


def unfold(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
) -> Tensor:
    """Patches ``(N, C, K, T)`` of ``x (N, C, H, W)``: channel c under kernel offset k at position t."""
    kernel, dilation = _pair(kernel_size), _pair(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        borders = (left, total[1] - left, top, total[0] - top)
    else:
        top, left = (0, 0) if isinstance(padding, str) else _pair(padding)
        borders = (left, left, top, top)
    columns = F.unfold(F.pad(_upcast(x), borders), kernel, dilation=dilation, stride=_pair(stride))
    return columns.reshape(x.shape[0], x.shape[1], math.prod(kernel), columns.shape[2])


def eigh(
    matrices: Tensor | Sequence[Tensor], *, errors: str = "raise", names: Sequence[str] | None = None
) -> tuple[Any, Any, Tensor]:
    """Eigenvalues, eigenvectors and info of symmetric matrices: one `torch.linalg.eigh` call for each."""
    stack = matrices if isinstance(matrices, Tensor) else None
    flat = (
        list(matrices) if stack is None else [*stack.reshape(-1, *stack.shape[-2:])] if stack.numel() else []
    )
    solved = [_eigh_one(_upcast(matrix)) for matrix in flat]
    values, vectors = [pair[0] for pair in solved], [pair[1] for pair in solved]
    info = torch.tensor([0 if value.isfinite().all() else NOT_FINITE for value in values], dtype=torch.int32)
    result: tuple[Any, Any, Tensor] = (values, vectors, info)
    if stack is not None:
        like = _upcast(stack)
        shaped = [torch.stack(found) if flat else like.new_empty(0) for found in (values, vectors)]
        codes = info if flat else torch.zeros(stack.shape[:-2], dtype=torch.int32)
        result = (
            shaped[0].reshape(stack.shape[:-1]),
            shaped[1].reshape(stack.shape),
            codes.reshape(stack.shape[:-2]).to(stack.device),
        )
    if errors == "raise":
        raise_failures(result, names)
    return result


def _eigh_one(matrix: Tensor) -> tuple[Tensor, Tensor]:
    if not matrix.tril().isfinite().all():
        return torch.full_like(matrix[0], math.nan), torch.full_like(matrix, math.nan)
    values, vectors = torch.linalg.eigh(matrix)
    if len(values):
        largest = vectors.abs().argmax(dim=0, keepdim=True)
        vectors = torch.where(vectors.gather(0, largest) < 0, -vectors, vectors)
    return values, vectors


def _gram(columns: Tensor, bias: bool) -> Tensor:
    """``(g, F, R)`` to ``(F, F)`` or ``(g, F, F)``, with the homogeneous coordinate last where asked."""
    if bias:
        columns = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
    gram = columns @ columns.mT
    return gram[0] if len(gram) == 1 else gram


def _update(
    total: Tensor, count: int, reduction: str, out: Tensor | None, alpha: float, beta: float
) -> Tensor:
    if reduction == "mean":
        total = total / max(count, 1)
    updated = alpha * total if out is None or beta == 0 else beta * out + alpha * total
    return updated if out is None else out.copy_(updated)


def _upcast(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
