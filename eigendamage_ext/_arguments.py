"""What the kernels accept: every check of `ops`, and the numbers it derives from the arguments."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eigendamage_ext import _C

IntOrPair = int | tuple[int, int]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICES = ("cpu", "cuda") if _C.build_info()["cuda"] else ("cpu",)
LIMIT = 2**63


class Window(NamedTuple):
    """A convolution's geometry, (vertical, horizontal) each; `padding` is above and to the left."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    positions: tuple[int, int]


def fault(op: str, argument: str, rule: str, got: object, remedy: str) -> str:
    return f"{op}: {argument} must {rule}, got {got}; {remedy}"


def check_tensor(op: str, name: str, x: Any) -> None:
    """Dense and of a float type."""
    if not isinstance(x, Tensor):
        raise TypeError(
            fault(op, name, "be a torch.Tensor", type(x).__name__, "convert it with torch.as_tensor")
        )
    if x.layout is not torch.strided or x.is_nested:
        layout = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise TypeError(fault(op, name, "be a dense tensor", layout, "convert it with .to_dense()"))
    if x.dtype not in DTYPES:
        rule = "be float32, float64, bfloat16 or float16"
        raise TypeError(fault(op, name, rule, x.dtype, "convert it with .to(torch.float32)"))


def check_device(op: str, x: Tensor) -> None:
    """A device this build has kernels for."""
    if x.device.type in DEVICES:
        return
    remedy = "move it with .cpu()"
    if x.device.type == "cuda":
        remedy = "rebuild with EIGENDAMAGE_CUDA=1 where nvcc is installed, or move it with .cpu()"
    elif x.device.type == "meta":
        remedy = "give it data"
    rule = f"be on a device this build has kernels for ({', '.join(DEVICES)})"
    raise NotImplementedError(fault(op, "x", rule, x.device, remedy))


def check_images(op: str, x: Any) -> None:
    """``(N, C, H, W)``, of which only N may be 0."""
    check_tensor(op, "x", x)
    check_device(op, x)
    shape = tuple(x.shape)
    if x.dim() != 4:
        remedy = "add the batch with x[None]" if x.dim() == 3 else "reshape it, or see ops.covariance"
        raise ValueError(
            fault(op, "x", "be 4-D (N, C, H, W)", f"a {x.dim()}-D tensor of shape {shape}", remedy)
        )
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(
            fault(op, "x", "have channels and pixels", f"shape {shape}", "only the batch may be empty")
        )


def check_rows(op: str, x: Any, settings: dict[str, Any], padding: Any) -> None:
    """``(N, …, F)`` as a `torch.nn.Linear` reads it, which has no convolution's settings."""
    check_tensor(op, "x", x)
    check_device(op, x)
    shape = tuple(x.shape)
    if x.dim() < 2:
        rule, got = "be (N, …, C_in) without kernel_size", f"a {x.dim()}-D tensor of shape {shape}"
        raise ValueError(fault(op, "x", rule, got, "add the batch with x[None]"))
    if 0 in shape[1:]:
        raise ValueError(
            fault(op, "x", "have channels and positions", f"shape {shape}", "only the batch may be empty")
        )
    for name, value in settings.items():
        if value != 1:
            raise ValueError(fault(op, name, "be 1 without kernel_size", repr(value), "give kernel_size"))
    if padding != 0:
        raise ValueError(fault(op, "padding", "be 0 without kernel_size", repr(padding), "give kernel_size"))


def check_bool(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(fault(op, name, "be True or False", repr(value), "pass a bool"))


def check_int(op: str, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            fault(op, name, "be an int", f"{value!r} ({type(value).__name__})", "convert it with int()")
        )


def feature_axis(op: str, x: Tensor, feature_dim: Any) -> int:
    """`feature_dim` counted from the front."""
    check_int(op, "feature_dim", feature_dim)
    shape = tuple(x.shape)
    if x.dim() == 0:
        raise ValueError(
            fault(op, "x", "have at least one dimension", "a scalar", "reshape it to (rows, features)")
        )
    if not -x.dim() <= feature_dim < x.dim():
        rule, got = f"be in [{-x.dim()}, {x.dim() - 1}]", f"{feature_dim} for x of shape {shape}"
        raise ValueError(fault(op, "feature_dim", rule, got, "name the dimension of the features"))
    if x.shape[feature_dim] == 0:
        raise ValueError(fault(op, "x", "have features", f"shape {shape}", "only the rows may be empty"))
    return int(feature_dim % x.dim())


def group_size(op: str, channels: int, groups: Any) -> int:
    """Channels of one group."""
    check_int(op, "groups", groups)
    if groups < 1 or channels % groups != 0:
        rule = f"be a positive divisor of the {channels} channels"
        raise ValueError(fault(op, "groups", rule, groups, "use the layer's own groups"))
    return int(channels // groups)


def window(op: str, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """The geometry of a convolution over ``x (N, C, H, W)``."""
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    strides = _pair(op, "stride", stride, 1)
    dilations = _pair(op, "dilation", dilation, 1)
    span = (dilations[0] * (kernel[0] - 1) + 1, dilations[1] * (kernel[1] - 1) + 1)
    if padding == "same":
        if strides != (1, 1):
            raise ValueError(
                fault(op, "stride", "be 1 with padding 'same'", strides, "pass the padding in pixels")
            )
        before = ((span[0] - 1) // 2, (span[1] - 1) // 2)
        padded = (x.shape[2] + span[0] - 1, x.shape[3] + span[1] - 1)
    elif isinstance(padding, str) and padding != "valid":
        rule = "be an int, a pair, 'same' or 'valid'"
        raise ValueError(fault(op, "padding", rule, repr(padding), "use one of these"))
    else:
        before = (0, 0) if padding == "valid" else _pair(op, "padding", padding, 0)
        padded = (x.shape[2] + 2 * before[0], x.shape[3] + 2 * before[1])
    if span[0] > padded[0] or span[1] > padded[1]:
        got = f"a window of {span} pixels (kernel {kernel}, dilation {dilations}) on {padded}"
        remedy = "use a smaller kernel or more padding"
        raise ValueError(fault(op, "kernel_size", "fit into the padded input", got, remedy))
    positions = ((padded[0] - span[0]) // strides[0] + 1, (padded[1] - span[1]) // strides[1] + 1)
    return Window(kernel, strides, before, dilations, positions)


def divisor(op: str, alpha: Any, beta: Any, reduction: Any, count: int) -> int:
    """What the sum over `count` terms is divided by; the mean of nothing is 0."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(
                fault(op, name, "be a number", f"{value!r} ({type(value).__name__})", "pass a float")
            )
    if reduction not in ("mean", "sum"):
        raise ValueError(fault(op, "reduction", "be 'mean' or 'sum'", repr(reduction), "use one of these"))
    if count >= LIMIT:
        raise ValueError(fault(op, "x", "have fewer than 2^63 terms to sum", count, "split the batch"))
    return max(count, 1) if reduction == "mean" else 1


def check_out(op: str, out: Any, x: Tensor, groups: int, size: int, beta: float) -> None:
    """`out` can take the result: ``(size, size)``, or ``(groups, size, size)`` for more than one group."""
    check_result(op, out, x, (size, size) if groups == 1 else (groups, size, size), beta)


def check_result(op: str, out: Any, x: Tensor, shape: tuple[int, ...], beta: float) -> None:
    """`out`, where given, can take a result of this shape."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if math.prod(shape) * dtype.itemsize >= LIMIT:
        raise ValueError(
            fault(op, "the result", "have fewer than 2^63 bytes", f"shape {shape}", "use smaller kernels")
        )
    if out is None:
        if beta != 0:
            raise ValueError(fault(op, "beta", "be 0 where out is not given", beta, "pass out or drop beta"))
        return
    if not isinstance(out, Tensor) or out.layout is not torch.strided or out.is_nested:
        got = type(out).__name__ if not isinstance(out, Tensor) else f"layout {out.layout}"
        raise TypeError(fault(op, "out", "be a dense torch.Tensor", got, "allocate it with torch.zeros"))
    if out.device != x.device:
        raise ValueError(
            fault(op, "out", f"be on the device of x, {x.device}", out.device, "allocate it there")
        )
    if out.dtype != dtype:
        raise TypeError(
            fault(op, "out", f"be {dtype} for x of {x.dtype}", out.dtype, f"allocate it as {dtype}")
        )
    if out.shape != shape:
        raise ValueError(
            fault(op, "out", f"have shape {shape}", tuple(out.shape), "allocate it with this shape")
        )
    if out.requires_grad:
        raise ValueError(fault(op, "out", "not require grad", "a tensor that does", "pass out.detach()"))


def check_gradient(op: str, g: Any, x: Tensor, shape: tuple[int | str, ...], groups: int) -> None:
    """`g` is a gradient at the output of a layer that read x: of this shape but for the channels, "C_out"."""
    check_tensor(op, "g", g)
    for what, ours, theirs in (("on the device", x.device, g.device), ("of the dtype", x.dtype, g.dtype)):
        if ours != theirs:
            raise ValueError(fault(op, "g", f"be {what} of x, {ours}", theirs, "convert one of them"))
    fits = g.dim() == len(shape) and all(
        size == "C_out" or size == length for size, length in zip(shape, g.shape, strict=True)
    )
    if not fits:
        listed = "(" + ", ".join(map(str, shape)) + ")"
        remedy = "pass the gradient at the output of the layer that read x"
        raise ValueError(fault(op, "g", f"have shape {listed}", tuple(g.shape), remedy))
    channels = g.shape[shape.index("C_out")]
    if channels == 0 or channels % groups != 0:
        rule = f"have a positive multiple of groups = {groups} channels"
        raise ValueError(fault(op, "g", rule, channels, "use the layer's own groups"))


def check_matrices(matrices: Sequence[Any], stacked: bool, errors: Any, names: Any) -> None:
    """A list of square matrices on one device, or one stack of them, and a name for each."""
    op = "eigh"
    if errors not in ("raise", "info"):
        raise ValueError(fault(op, "errors", "be 'raise' or 'info'", repr(errors), "use one of these"))
    rank = "(…, n, n)" if stacked else "(n, n)"
    for index, matrix in enumerate(matrices):
        name = "matrices" if stacked else f"matrices[{index}]"
        check_tensor(op, name, matrix)
        if matrix.device.type == "meta":
            raise NotImplementedError(fault(op, name, "hold data", "a meta tensor", "materialise it first"))
        if matrix.dim() < 2 or (matrix.dim() > 2 and not stacked) or matrix.shape[-1] != matrix.shape[-2]:
            got = f"shape {tuple(matrix.shape)}"
            raise ValueError(fault(op, name, f"be square {rank}", got, "pass symmetric matrices"))
        if matrix.device != matrices[0].device:
            rule = f"be on the device of the first, {matrices[0].device}"
            raise ValueError(fault(op, name, rule, matrix.device, "move them to one device"))
    if names is not None:
        count = math.prod(matrices[0].shape[:-2]) if stacked else len(matrices)
        if isinstance(names, str) or len(names) != count:
            got = repr(names) if isinstance(names, str) else str(len(names))
            raise ValueError(
                fault(op, "names", f"hold a string for each of {count} matrices", got, "or leave it out")
            )


def _pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(fault(op, name, "be an int or a pair", repr(value), "give (vertical, horizontal)"))
    for part in pair:
        check_int(op, name, part)
        if part < least:
            raise ValueError(fault(op, name, f"be at least {least}", repr(value), "use the layer's own"))
    return pair
