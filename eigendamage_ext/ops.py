"""The compiled kernels as functions of tensors.

Common to the covariances: ``out = beta·out + alpha·reduced``, where ``reduced`` is the mean ("mean") or the plain sum ("sum") of
outer products. Without ``out`` a new tensor is returned, with it ``out`` itself; ``beta = 0`` never reads it. Inputs are float32,
float64, bfloat16 or float16 with any strides, and are read where they are; the halves give float32. Results are exactly symmetric;
where ``beta`` is not 0, ``out`` is taken to be symmetric. An empty batch sums to 0, and its mean is 0 as well. Inputs that require grad
are detached: no gradient flows through these functions. `eigendamage_ext.reference` holds a plain PyTorch twin of each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext import _C, _arguments, _eigh
from eigendamage_ext._arguments import IntOrPair
from eigendamage_ext._eigh import EighError, Failure

__all__ = [
    "EighError",
    "Failure",
    "build_info",
    "channel_covariance",
    "covariance",
    "eigh",
    "patch_covariance",
]


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
    """Second moment of rows: ``Σ_r x_r x_rᵀ``, averaged over all rows r.

    Args:
        x: ``(…, F, …)``, of any rank; every dimension but `feature_dim` counts rows. Copied only where the rows need more than
            three strides.
        feature_dim: where F is.
        groups: number g of consecutive blocks of features, each with a matrix of its own.
        bias: append the constant 1 to every row (of every group).
        reduction: "mean" over rows or "sum".
        out: the result's tensor, with any strides; must not overlap `x`.
        alpha: factor of the new term.
        beta: factor of what `out` held.

    Returns:
        ``(F, F)`` for one group, else ``(g, F/g, F/g)``; with `bias` one row and column more.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the argument, the rule and the remedy.
    """
    op = "covariance"
    _arguments.check_tensor(op, "x", x)
    _arguments.check_device(op, "x", x)
    dim = _arguments.features(op, x, feature_dim)
    _arguments.check_bool(op, "bias", bias)
    size = _arguments.group_size(op, x.shape[dim], groups) + bias
    rows = 1
    for index, length in enumerate(x.shape):
        rows *= 1 if index == dim else length
    factor = _arguments.scale(op, alpha, beta, reduction, rows)
    _arguments.check_out(op, out, x, groups, size, beta)
    if out is None:
        return _OPS.covariance(x.detach(), dim, groups, bias, factor)
    _OPS.covariance_(x.detach(), dim, bias, factor, beta, out)
    return out


def channel_covariance(
    x: Tensor,
    kernel_size: IntOrPair,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """Channel factor of a convolution's input: ``Σ_ntk a_ntk a_ntkᵀ``, averaged over N examples, T positions and K offsets.

    ``a_ntk (C,)`` is the pixel under kernel offset k when the window stands at position t, 0 in the padding (Wang et al. 2019,
    "EigenDamage"). Computed as a Gram of pixels, each weighted by the number of windows that cover it; no patches are formed.

    Args:
        x: ``(N, C, H, W)``.
        kernel_size, stride, dilation: int or (vertical, horizontal), as in `torch.nn.Conv2d`.
        padding: zeros on every side: int, (vertical, horizontal), "valid" (none) or "same" (stride 1; where the total is odd the
            further line is after the image).
        groups: number g of consecutive blocks of channels, each with a matrix of its own.
        reduction, out, alpha, beta: as in `covariance`.

    Returns:
        ``(C, C)`` for one group, else ``(g, C/g, C/g)``.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the argument, the rule and the remedy.
    """
    op = "channel_covariance"
    _arguments.check_images(op, x)
    window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
    size = _arguments.group_size(op, x.shape[1], groups)
    (kh, kw), (ho, wo) = window.kernel, window.positions
    factor = _arguments.scale(op, alpha, beta, reduction, x.shape[0] * ho * wo * kh * kw)
    _arguments.check_out(op, out, x, groups, size, beta)
    if out is None:
        return _OPS.channel_covariance(x.detach(), *window, groups, factor)
    _OPS.channel_covariance_(x.detach(), *window, factor, beta, out)
    return out


def patch_covariance(
    x: Tensor,
    kernel_size: IntOrPair,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    bias: bool = False,
    reduction: str = "mean",
    out: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> Tensor:
    """Patch factor of a convolution's input: ``Σ_nt a_nt a_ntᵀ``, averaged over N examples and T positions.

    ``a_nt (D,)`` is the patch at position t in the order (channel, row, column) of `torch.nn.functional.unfold`, 0 in the padding
    (Grosse & Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers"). No patches are formed.

    Args:
        x: ``(N, C, H, W)``.
        kernel_size, stride, padding, dilation, groups: as in `channel_covariance`.
        bias: append the constant 1 to every patch (of every group).
        reduction, out, alpha, beta: as in `covariance`.

    Returns:
        ``(D, D)`` for one group, else ``(g, D, D)``, D = C/g·kh·kw, plus 1 with `bias`.

    Raises:
        TypeError, ValueError, NotImplementedError: naming the argument, the rule and the remedy.
    """
    op = "patch_covariance"
    _arguments.check_images(op, x)
    window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
    _arguments.check_bool(op, "bias", bias)
    (kh, kw), (ho, wo) = window.kernel, window.positions
    size = _arguments.group_size(op, x.shape[1], groups) * kh * kw + bias
    factor = _arguments.scale(op, alpha, beta, reduction, x.shape[0] * ho * wo)
    _arguments.check_out(op, out, x, groups, size, beta)
    if out is None:
        return _OPS.patch_covariance(x.detach(), *window, groups, bias, factor)
    _OPS.patch_covariance_(x.detach(), *window, bias, factor, beta, out)
    return out


def eigh(
    matrices: Tensor | Sequence[Tensor], *, errors: str = "raise", names: Sequence[str] | None = None
) -> tuple[Any, Any, Tensor]:
    """Eigendecomposition of many symmetric matrices of any sizes.

    Only lower triangles are read. Eigenvalues ascend; eigenvectors are columns, and the component of largest magnitude (the first of
    equals) is positive. Residual and orthogonality of every result are checked to 8·n·eps; one that fails is solved again alone in
    float64. A matrix that cannot be solved (not finite, for one) fails alone.

    Args:
        matrices: ``(…, n, n)``, or a list of ``(n, n)`` of any sizes, strides and dtypes (float32 and float64; the halves are
            solved and returned in float32) on one device. Not changed, nor shared with the result.
        errors: "raise" an `EighError` after everything else is computed, or "info": failed outputs are NaN and have their code.
        names: what to call the matrices in an error, one string for each (row-major for a stack); else their index.

    Returns:
        Eigenvalues ``(…, n)``, eigenvectors ``(…, n, n)`` and int32 codes ``(…,)`` of a stack; of a list, a list of ``(n,)``,
        a list of ``(n, n)`` and codes ``(len,)``. Codes: 0 solved, 1 input not finite, 2 not solvable to the accuracy above,
        3 an eigenvalue overflows the dtype.

    Raises:
        EighError: with ``errors="raise"``; its ``.failures`` lists (name or index, n, reason), its ``.result`` is what "info" returns.
        TypeError, ValueError, NotImplementedError: naming the argument, the rule and the remedy.
    """
    stacked = isinstance(matrices, Tensor)
    items = [matrices] if isinstance(matrices, Tensor) else list(matrices)
    _arguments.check_matrices(items, stacked, errors, names)
    values, vectors, info = _OPS.eigh([item.detach() for item in items])
    result = (values, vectors, info)
    if stacked:
        result = (values[0], vectors[0], info.reshape(items[0].shape[:-2]))
    if errors == "raise":
        _eigh.raise_failures(result, names)
    return result


def build_info() -> dict[str, Any]:
    """What runs: versions, CUDA or not, the CPU kernels' instruction set ("v4", …) and the number of threads."""
    from eigendamage_ext import __version__

    compiled = _C.build_info()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "torch_compiled_against": compiled["torch"],
        "cuda": compiled["cuda"],
        "simd": compiled["simd"],
        "threads": torch.get_num_threads(),
    }


_LIBRARY = torch.library.Library("eigendamage_ext", "DEF")
_OPS: Any = torch.ops.eigendamage_ext
_WINDOW = "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt[2] positions"


def _register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"eigendamage_ext::{name}", fake, lib=_LIBRARY)


def _new_factor(x: Tensor, groups: int, size: int) -> Tensor:
    shape = (size, size) if groups == 1 else (groups, size, size)
    return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _returns_nothing(*_: Any) -> None:
    return None


def _stack_of(out: Tensor) -> Tensor:
    """``(g, F, F)`` whether or not there is a group dimension; told to autograd, which cannot see the kernels write."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return out if out.dim() == 3 else out[None]


def _as_images(x: Tensor, feature_dim: int) -> Tensor:
    """``(N, F, H, W)`` whose positions are the rows of x, without a copy unless they need more than three strides."""
    sizes, strides = list(x.shape), list(x.stride())
    features, feature_stride = sizes.pop(feature_dim), strides.pop(feature_dim)
    if 0 in sizes:
        return x.new_empty((0, features, 1, 1))
    rows: list[
        tuple[int, int]
    ] = []  # (stride, size), outermost first, each that continues its neighbour merged with it
    for stride, size in sorted(((t, s) for t, s in zip(strides, sizes, strict=True) if s != 1), reverse=True):
        if rows and rows[-1][0] == size * stride:
            rows[-1] = (stride, rows[-1][1] * size)
        else:
            rows.append((stride, size))
    if len(rows) > 3:
        dense = x.movedim(feature_dim, -1).reshape(-1, features)
        return dense[:, :, None, None]
    single = (0, 1)
    if not rows:
        rows = [single]
    if len(rows) == 1 and rows[0][0] < feature_stride:
        rows.insert(0, single)
    batch = rows[0]
    height, width = ([single, single] + rows[1:])[-2:]
    return x.as_strided(
        (batch[1], features, height[1], width[1]),
        (batch[0], feature_stride, height[0], width[0]),
        x.storage_offset(),
    )


def _covariance(x: Tensor, feature_dim: int, groups: int, bias: bool, alpha: float) -> Tensor:
    out = _covariance_fake(x, feature_dim, groups, bias, alpha)
    _C.covariance_(_as_images(x, feature_dim), bias, alpha, 0.0, _stack_of(out))
    return out


def _covariance_(x: Tensor, feature_dim: int, bias: bool, alpha: float, beta: float, out: Tensor) -> None:
    _C.covariance_(_as_images(x, feature_dim), bias, alpha, beta, _stack_of(out))


def _covariance_fake(x: Tensor, feature_dim: int, groups: int, bias: bool, alpha: float) -> Tensor:
    return _new_factor(x, groups, x.shape[feature_dim] // groups + bias)


def _channel_covariance(x: Tensor, *arguments: Any) -> Tensor:
    *window, groups, alpha = arguments
    out = _channel_covariance_fake(x, *arguments)
    _C.channel_covariance_(x, *window, alpha, 0.0, _stack_of(out))
    return out


def _channel_covariance_(x: Tensor, *arguments: Any) -> None:
    *settings, out = arguments
    _C.channel_covariance_(x, *settings, _stack_of(out))


def _channel_covariance_fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, groups, _ = arguments
    return _new_factor(x, groups, x.shape[1] // groups)


def _patch_covariance(x: Tensor, *arguments: Any) -> Tensor:
    *window, groups, bias, alpha = arguments
    out = _patch_covariance_fake(x, *arguments)
    _C.patch_covariance_(x, *window, bias, alpha, 0.0, _stack_of(out))
    return out


def _patch_covariance_(x: Tensor, *arguments: Any) -> None:
    *settings, out = arguments
    _C.patch_covariance_(x, *settings, _stack_of(out))


def _patch_covariance_fake(x: Tensor, *arguments: Any) -> Tensor:
    (kh, kw), *_, groups, bias, _ = arguments
    return _new_factor(x, groups, x.shape[1] // groups * kh * kw + bias)


_SUM = "float alpha"
_INTO = "float alpha, float beta, Tensor(a!) out"
_register(
    f"covariance(Tensor x, int feature_dim, SymInt groups, bool bias, {_SUM}) -> Tensor",
    _covariance,
    _covariance_fake,
)
_register(f"covariance_(Tensor x, int feature_dim, bool bias, {_INTO}) -> ()", _covariance_, _returns_nothing)
_register(
    f"channel_covariance(Tensor x, {_WINDOW}, SymInt groups, {_SUM}) -> Tensor",
    _channel_covariance,
    _channel_covariance_fake,
)
_register(f"channel_covariance_(Tensor x, {_WINDOW}, {_INTO}) -> ()", _channel_covariance_, _returns_nothing)
_register(
    f"patch_covariance(Tensor x, {_WINDOW}, SymInt groups, bool bias, {_SUM}) -> Tensor",
    _patch_covariance,
    _patch_covariance_fake,
)
_register(
    f"patch_covariance_(Tensor x, {_WINDOW}, bool bias, {_INTO}) -> ()", _patch_covariance_, _returns_nothing
)
_register("eigh(Tensor[] matrices) -> (Tensor[], Tensor[], Tensor)", _eigh.solve, _eigh.fake)
