"""The compiled kernels as functions of tensors.

Common to all but `eigh`: ``out = beta·out + alpha·reduced``, ``reduced`` being the mean or the plain sum of
terms. Without ``out`` a new tensor is returned, with it ``out`` itself; ``beta = 0`` never reads it.
Inputs are float32, float64, bfloat16 or float16 with any strides, read where they are; the halves give
float32. Covariances are exactly symmetric; where ``beta`` is not 0, ``out`` is taken to be. An empty batch
sums to 0, and its mean is 0 too. Inputs that require grad are detached: no gradient flows through.
`eigendamage_ext.reference` holds a plain PyTorch twin of each function.
"""

from collections.abc import Sequence
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

from eigendamage_ext import _arguments, _eigh, _images
from eigendamage_ext._arguments import IntOrPair
from eigendamage_ext._eigh import EighError, Failure
from eigendamage_ext._schemas import OPS as _OPS

__all__ = [
    "EighError",
    "Failure",
    "build_info",
    "channel_covariance",
    "covariance",
    "eigh",
    "gradient_second_moment",
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
    if not torch.compiler.is_compiling():
        found = _C.covariance(x, feature_dim, groups, bias, reduction, out, alpha, beta)
        if found is not None:
            return found
    op = "covariance"
    _arguments.check_tensor(op, "x", x)
    _arguments.check_device(op, x)
    dim = _arguments.feature_axis(op, x, feature_dim)
    _arguments.check_bool(op, "bias", bias)
    size = _arguments.group_size(op, x.shape[dim], groups) + int(bias)
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
    if not torch.compiler.is_compiling():
        found = _C.channel_covariance(
            x, kernel_size, stride, padding, dilation, groups, reduction, out, alpha, beta
        )
        if found is not None:
            return found
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
    if not torch.compiler.is_compiling():
        found = _C.patch_covariance(
            x, kernel_size, stride, padding, dilation, groups, bias, reduction, out, alpha, beta
        )
        if found is not None:
            return found
    op = "patch_covariance"
    _arguments.check_images(op, x)
    window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
    _arguments.check_bool(op, "bias", bias)
    (kh, kw), (ho, wo) = window.kernel, window.positions
    size = _arguments.group_size(op, x.shape[1], groups) * kh * kw + int(bias)
    divisor = _arguments.divisor(op, alpha, beta, reduction, x.shape[0] * ho * wo)
    _arguments.check_out(op, out, x, groups, size, beta)
    return _call(op, x, (*window, bias), groups, divisor, alpha, beta, out)


def gradient_second_moment(
    x: Tensor,
    g: Tensor,
    kernel_size: IntOrPair | None = None,
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
    """Second moment of the gradients of examples by a weight: ``Σ_n (Σ_t g_nt a_ntᵀ)²``, entry by entry.

    ``g_nt (C_out,)`` is the gradient of the loss of example n alone at output position t, ``a_nt`` the patch
    that was read there: the diagonal of the Fisher, or of its eigenbasis where `x` and `g` are rotated. No
    example's gradient is ever held.

    Args:
        x: the layer's input, ``(N, C_in, H, W)``, or ``(N, …, C_in)`` without `kernel_size`; any dimensions
            between are positions of one example.
        g: the gradient at its output, ``(N, C_out, H_out, W_out)`` or ``(N, …, C_out)``, in the dtype of `x`,
            with any strides. Both are copied only where more than two dimensions of positions need it.
        kernel_size: int or (vertical, horizontal), as in `torch.nn.Conv2d`; None for a `torch.nn.Linear`.
        stride: likewise.
        padding: int, pair, "same" or "valid", as in `channel_covariance`.
        dilation: int or (vertical, horizontal).
        groups: as in `torch.nn.Conv2d`.
        reduction: "mean" over N examples, or "sum".
        out: a tensor for the result, with any strides; it may not overlap `x` or `g`.
        alpha: factor of the new term.
        beta: factor of what `out` held.

    Returns:
        The shape of the layer's weight, ``(C_out, C_in/g, kh, kw)`` or ``(C_out, C_in)``.

    Raises:
        TypeError, ValueError, NotImplementedError: with the argument, its rule, the fact and the remedy.
    """
    if not torch.compiler.is_compiling():
        found = _C.gradient_second_moment(
            x, g, kernel_size, stride, padding, dilation, groups, reduction, out, alpha, beta
        )
        if found is not None:
            return found
    op = "gradient_second_moment"
    if kernel_size is None:
        _arguments.check_rows(op, x, {"stride": stride, "dilation": dilation, "groups": groups}, padding)
        _arguments.check_gradient(op, g, x, (*x.shape[:-1], "C_out"), groups)
        shape: tuple[int, ...] = (g.shape[-1], x.shape[-1])
    else:
        _arguments.check_images(op, x)
        window = _arguments.window(op, x, kernel_size, stride, padding, dilation)
        inputs = _arguments.group_size(op, x.shape[1], groups)
        _arguments.check_gradient(op, g, x, (x.shape[0], "C_out", *window.positions), groups)
        shape = (g.shape[1], inputs, *window.kernel)
    divisor = _arguments.divisor(op, alpha, beta, reduction, x.shape[0])
    _arguments.check_result(op, out, x, shape, beta)
    x, g = x.detach(), g.detach()
    settings: tuple[Any, ...]
    if kernel_size is None:
        x, g = _images.positions_as_pixels(x), _images.positions_as_pixels(g)
        settings = ((1, 1), (1, 1), (0, 0), (1, 1))
    else:
        settings = window[:4]
    if out is None:
        new: Tensor = _OPS.gradient_second_moment(x, g, *settings, groups, divisor, alpha)
        return new.view(shape)
    weight = out[:, :, None, None] if kernel_size is None else out
    _OPS.gradient_second_moment_(x, g, *settings, divisor, alpha, beta, weight)
    return out


def eigh(
    matrices: Tensor | Sequence[Tensor], *, errors: str = "raise", names: Sequence[str] | None = None
) -> tuple[Any, Any, Tensor]:
    """Eigendecomposition of many symmetric matrices of any sizes.

    Only lower triangles are read. Eigenvalues ascend; eigenvectors are columns, whose component of largest
    magnitude (the first of equals) is positive. Residual and orthogonality of every result are checked to
    8·n·eps; one that fails is solved again in float64. A matrix without a result, such as one that is not
    finite, fails alone.

    On a GPU nothing waits for matrices of up to 64 rows with ``errors="info"``; there one of these that fails
    the check is only reported. Those of up to 640 rows are solved on the CPU, and larger ones by
    `torch.linalg.eigh`, all of a size together. The results of a list may share a block of memory.

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
    if names is None and errors in ("raise", "info") and not torch.compiler.is_compiling():
        found = _C.eigh_directly(matrices, _eigh.KERNEL_SIZE, errors == "info")
        if found is not None:
            return found
    stacked = isinstance(matrices, Tensor)
    items = [matrices] if isinstance(matrices, Tensor) else list(matrices)
    _arguments.check_matrices(items, stacked, errors, names)
    values, vectors, info = _OPS.eigh([item.detach() for item in items])
    result = (values, vectors, info)
    if stacked:
        result = (values[0], vectors[0], info.reshape(items[0].shape[:-2]))
    if errors == "raise":
        _eigh.raise_failures(result, names, items)
    return result


def build_info() -> dict[str, Any]:
    """What runs.

    Returns:
        "version", "torch" and "torch_compiled_against"; "simd", the CPU kernels' instruction set ("v4", …),
        and "threads"; "cuda", whether there are CUDA kernels, "cuda_architectures" they were compiled for
        ("sm_80", …), and "cuda_devices", how many GPUs torch sees for them; that does not initialise CUDA.
    """
    from eigendamage_ext import __version__

    compiled = _C.build_info()
    architectures = (compiled["cuda"] or "").split()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "torch_compiled_against": compiled["torch"],
        "cuda": bool(architectures),
        "cuda_architectures": architectures,
        "cuda_devices": torch.cuda.device_count() if architectures and torch.version.cuda else 0,
        "simd": compiled["simd"],
        "threads": torch.get_num_threads(),
    }


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
