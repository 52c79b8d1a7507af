"""The compiled kernels as functions of tensors.

Common to the covariances: ``out = beta·out + alpha·reduced``, ``reduced`` being the mean or the plain sum of
outer products. Without ``out`` a new tensor is returned, with it ``out`` itself; ``beta = 0`` never reads it.
Inputs are float32, float64, bfloat16 or float16 with any strides, read where they are; the halves give
float32. Results are exactly symmetric; where ``beta`` is not 0, ``out`` is taken to be. An empty batch sums
to 0, and its mean is 0 too. Inputs that require grad are detached: no gradient flows through.
`eigendamage_ext.reference` holds a plain PyTorch twin of each function.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    from eigendamage_ext import _C
except ImportError as error:
    raise ImportError(
        "eigendamage_ext: its compiled kernels are missing or were built for another torch; "
        "run `make build` in the source tree, or `pip install --no-build-isolation .`"
    ) from error

from eigendamage_ext import _arguments, _eigh
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
    """Second moment of rows: ``Σ_r x_r x_rᵀ``, averaged over the rows r.

    Args:
        x: ``(…, F, …)`` of any rank; every dimension but `feature_dim` counts rows. Copied only where more
            than three strides are needed to walk over the rows.
        feature_dim: where F is.
        groups: number g of consecutive blocks of features, each with a matrix of its own.
        bias: append the constant 1 to every row (of every group).
        reduction: "mean" over rows, or "sum".
        out: a tensor for the result, with any strides; it may not overlap `x`.
        alpha: factor of the new term.
        beta: factor of what `out` held.

    Returns:
        ``(F, F)`` for one group, else ``(g, F/g, F/g)``; with `bias` one row and one column more.

    Raises:
        TypeError, ValueError, NotImplementedError: with the argument, its rule, the fact and the remedy.
    """
    op = "covariance"
    _arguments.check_tensor(op, "x", x)
    _arguments.check_device(op, x)
    dim = _arguments.feature_axis(op, x, feature_dim)
    _arguments.check_bool(op, "bias", bias)
    size = _arguments.group_size(op, x.shape[dim], groups) + bias
    rows = 1
    for index, length in enumerate(x.shape):
        rows *= 1 if index == dim else length
    divisor = _arguments.divisor(op, alpha, beta, reduction, rows)
    _arguments.check_out(op, out, x, groups, size, beta)
    return _call(op, x, (dim, bias), groups, divisor, alpha, beta, out)


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
    """Channel factor of a convolution: ``Σ_ntk a_ntk a_ntkᵀ``, averaged over examples, positions and offsets.

    ``a_ntk (C,)`` is the pixel under kernel offset k when the window stands at position t, 0 in the padding
    (Wang et al. 2019, "EigenDamage"). A Gram of pixels, each weighted by the number of windows that cover it:
    no patches.

    Args:
        x: ``(N, C, H, W)``.
        kernel_size: int or (vertical, horizontal), as in `torch.nn.Conv2d`.
        stride: likewise.
        padding: zeros on each side: int, (vertical, horizontal), "valid" (none) or "same" (stride 1 only; of
            an odd number of lines the extra one comes after the image).
        dilation: int or (vertical, horizontal).
        groups: number g of consecutive blocks of channels, each with a matrix of its own.
        reduction: "mean" over N·T·K terms, or "sum".
        out: a tensor for the result, as in `covariance`.
        alpha: factor of the new term.
        beta: factor of what `out` held.

    Returns:
        ``(C, C)`` for one group, else ``(g, C/g, C/g)``.

    Raises:
        TypeError, ValueError, NotImplementedError: with the argument, its rule, the fact and the remedy.
    """
    op = "channel_covariance"
    _arguments.check_images(op, x)
    window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
    size = _arguments.group_size(op, x.shape[1], groups)
    (kh, kw), (ho, wo) = window.kernel, window.positions
    divisor = _arguments.divisor(op, alpha, beta, reduction, x.shape[0] * ho * wo * kh * kw)
    _arguments.check_out(op, out, x, groups, size, beta)
    return _call(op, x, window, groups, divisor, alpha, beta, out)


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
    """Patch factor of a convolution: ``Σ_nt a_nt a_ntᵀ``, averaged over N examples and T positions.

    ``a_nt (D,)`` is the patch at position t in the order (channel, row, column) of
    `torch.nn.functional.unfold`, 0 in the padding (Grosse & Martens 2016, "A Kronecker-factored approximate
    Fisher matrix for convolution layers").

    Args:
        x: ``(N, C, H, W)``.
        kernel_size: int or (vertical, horizontal), as in `torch.nn.Conv2d`.
        stride: likewise.
        padding: int, pair, "same" or "valid", as in `channel_covariance`.
        dilation: int or (vertical, horizontal).
        groups: number g of consecutive blocks of channels, each with a matrix of its own.
        bias: append the constant 1 to every patch (of every group).
        reduction: "mean" over N·T terms, or "sum".
        out: a tensor for the result, as in `covariance`.
        alpha: factor of the new term.
        beta: factor of what `out` held.

    Returns:
        ``(D, D)`` for one group, else ``(g, D, D)``; D = C/g·kh·kw, plus 1 with `bias`.

    Raises:
        TypeError, ValueError, NotImplementedError: with the argument, its rule, the fact and the remedy.
    """
    op = "patch_covariance"
    _arguments.check_images(op, x)
    window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
    _arguments.check_bool(op, "bias", bias)
    (kh, kw), (ho, wo) = window.kernel, window.positions
    size = _arguments.group_size(op, x.shape[1], groups) * kh * kw + bias
    divisor = _arguments.divisor(op, alpha, beta, reduction, x.shape[0] * ho * wo)
    _arguments.check_out(op, out, x, groups, size, beta)
    return _call(op, x, (*window, bias), groups, divisor, alpha, beta, out)


def eigh(
    matrices: Tensor | Sequence[Tensor], *, errors: str = "raise", names: Sequence[str] | None = None
) -> tuple[Any, Any, Tensor]:
    """Eigendecomposition of many symmetric matrices of any sizes.

    Only lower triangles are read. Eigenvalues ascend; eigenvectors are columns, whose component of largest
    magnitude (the first of equals) is positive. Residual and orthogonality of every result are checked to
    8·n·eps; one that fails is solved again in float64. A matrix without a result, such as one that is not
    finite, fails alone.

    Args:
        matrices: a stack ``(…, n, n)``, or a list of ``(n, n)`` of any sizes, strides and float types on one
            device (the halves are solved and returned in float32). They are not changed.
        errors: "raise" an `EighError` once everything else is computed, or "info": failed outputs are NaN.
        names: what to call the matrices in an error, one string for each (of a stack, row by row).

    Returns:
        Eigenvalues ``(…, n)``, eigenvectors ``(…, n, n)`` and int32 codes ``(…,)`` of a stack; of a list, a
        list of ``(n,)``, a list of ``(n, n)`` and codes ``(len,)``. The codes: 0 solved, 1 input not finite,
        2 not solvable to that accuracy, 3 an eigenvalue overflows the dtype.

    Raises:
        EighError: for ``errors="raise"``. Its ``.failures`` lists (name or index, n, reason), its ``.result``
            is what "info" returns.
        TypeError, ValueError, NotImplementedError: with the argument, its rule, the fact and the remedy.
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
    """What runs: versions, CUDA or not, the CPU kernels' instruction set ("v4", …), the number of threads."""
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


_LIBRARY: Any = torch.library.Library("eigendamage_ext", "DEF")  # type: ignore[no-untyped-call]
_OPS: Any = torch.ops.eigendamage_ext


def _call(
    op: str,
    x: Tensor,
    parameters: tuple[Any, ...],
    groups: int,
    divisor: int,
    alpha: float,
    beta: float,
    out: Tensor | None,
) -> Tensor:
    if out is None:
        new: Tensor = getattr(_OPS, op)(x.detach(), *parameters, groups, divisor, alpha)
        return new
    getattr(_OPS, f"{op}_")(x.detach(), *parameters, divisor, alpha, beta, out)
    return out


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"eigendamage_ext::{name}", fake, lib=_LIBRARY)


def _define_covariance(op: str, parameters: str, run: Callable[..., None], size: Callable[..., int]) -> None:
    """Define ``op(x, …, groups, divisor, alpha) -> out`` and ``op_(x, …, divisor, alpha, beta, out)``.

    Args:
        op: its name.
        parameters: the schema of what stands for "…".
        run: ``run(x, *parameters, alpha / divisor, beta, out)`` fills out ``(g, F, F)``.
        size: ``size(x, groups, *parameters)`` is F.
    """

    def allocate(x: Tensor, *arguments: Any) -> Tensor:
        *settings, groups, _, _ = arguments
        side = size(x, groups, *settings)
        shape = (side, side) if groups == 1 else (groups, side, side)
        return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)

    def compute(x: Tensor, *arguments: Any) -> Tensor:
        *settings, _, divisor, alpha = arguments
        out = allocate(x, *arguments)
        run(x, *settings, alpha / divisor, 0.0, out if out.dim() == 3 else out[None])
        return out

    def update(x: Tensor, *arguments: Any) -> None:
        *settings, divisor, alpha, beta, out = arguments
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)  # the kernel writes behind autograd's back
        run(x, *settings, alpha / divisor, beta, out if out.dim() == 3 else out[None])

    new, into = (
        "SymInt groups, SymInt divisor, float alpha",
        "SymInt divisor, float alpha, float beta, Tensor(a!) out",
    )
    _define(f"{op}(Tensor x, {parameters}, {new}) -> Tensor", compute, allocate)
    _define(f"{op}_(Tensor x, {parameters}, {into}) -> ()", update, lambda *_: None)


def _as_images(x: Tensor, feature_dim: int) -> Tensor:
    """``(N, F, H, W)`` whose positions are the rows of x; a copy only where three strides are too few."""
    sizes, strides = list(x.shape), list(x.stride())
    features, feature_stride = sizes.pop(feature_dim), strides.pop(feature_dim)
    if 0 in sizes:
        return x.new_empty((0, features, 1, 1))
    rows: list[tuple[int, int]] = []  # (stride, size), outermost first; what continues its neighbour joins it
    for stride, size in sorted(zip(strides, sizes, strict=True), reverse=True):
        if size > 1 and rows and rows[-1][0] == size * stride:
            rows[-1] = (stride, rows[-1][1] * size)
        elif size > 1:
            rows.append((stride, size))
    if len(rows) > 3:
        return x.movedim(feature_dim, -1).reshape(-1, features)[:, :, None, None]
    single = (0, 1)
    if len(rows) == 2:
        rows.insert(1, single)
    elif len(rows) == 1 and rows[0][0] >= feature_stride:
        rows += [single, single]  # a batch of single pixels
    batch, height, width = [single] * (3 - len(rows)) + rows
    shape = (batch[1], features, height[1], width[1])
    return x.as_strided(shape, (batch[0], feature_stride, height[0], width[0]), x.storage_offset())


_WINDOW = "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt[2] positions"

_define_covariance(
    "covariance",
    "int feature_dim, bool bias",
    lambda x, feature_dim, *rest: _C.covariance_(_as_images(x, feature_dim), *rest),
    lambda x, groups, feature_dim, bias: x.shape[feature_dim] // groups + bias,
)
_define_covariance(
    "channel_covariance",
    _WINDOW,
    _C.channel_covariance_,
    lambda x, groups, *_: x.shape[1] // groups,
)
_define_covariance(
    "patch_covariance",
    f"{_WINDOW}, bool bias",
    _C.patch_covariance_,
    lambda x, groups, kernel, *rest: x.shape[1] // groups * kernel[0] * kernel[1] + rest[-1],
)
_define("eigh(Tensor[] matrices) -> (Tensor[], Tensor[], Tensor)", _eigh.solve, _eigh.fake)
