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
    """A convolution's geometry, vertical before horizontal; `padding` is above and to the left, `positions` the output's size."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    positions: tuple[int, int]


def check_tensor(op: str, name: str, x: Any) -> None:
    """Any rank; dense, of a float type, on a device with kernels."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}; convert it with torch.as_tensor"
        )
    if x.layout is not torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout)
        raise TypeError(
            f"{op}: {name} must be a dense tensor, got layout {kind}; convert it with .to_dense()"
        )
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} must be float32, float64, bfloat16 or float16, got {x.dtype}; convert it with .to(torch.float32)"
        )


def check_device(op: str, name: str, x: Tensor) -> None:
    """A device the build has kernels for."""
    if x.device.type not in DEVICES:
        remedy = "move it with .cpu()"
        if x.device.type == "cuda":
            remedy = "rebuild with EIGENDAMAGE_CUDA=1 where nvcc is installed, or move it with .cpu()"
        elif x.device.type == "meta":
            remedy = "give it data"
        raise NotImplementedError(
            f"{op}: {name} must be on a device this build has kernels for ({', '.join(DEVICES)}), got {x.device}; {remedy}"
        )


def check_images(op: str, x: Any) -> None:
    """``(N, C, H, W)``, of which only N may be 0."""
    check_tensor(op, "x", x)
    check_device(op, "x", x)
    if x.dim() != 4:
        raise ValueError(
            f"{op}: x must be 4-D (N, C, H, W), got a {x.dim()}-D tensor of shape {tuple(x.shape)}; "
            + (
                "add the batch dimension with x[None]"
                if x.dim() == 3
                else "use ops.covariance for other ranks"
            )
        )
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(
            f"{op}: x must have channels and pixels, got shape {tuple(x.shape)}; only the batch may be empty"
        )


def check_bool(op: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}; pass a bool")


def integer(op: str, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"{op}: {name} must be an int, got {value!r} of type {type(value).__name__}; convert it with int()"
        )
    return value


def features(op: str, x: Tensor, feature_dim: Any) -> int:
    """`feature_dim` counted from the front."""
    dim = integer(op, "feature_dim", feature_dim)
    if x.dim() == 0:
        raise ValueError(
            f"{op}: x must have at least one dimension, got a scalar; reshape it to (rows, features)"
        )
    if not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"{op}: feature_dim must be in [{-x.dim()}, {x.dim() - 1}], got {dim} for x of shape {tuple(x.shape)}; "
            "name the dimension that holds the features"
        )
    return dim % x.dim()


def group_size(op: str, channels: int, groups: Any) -> int:
    """Channels of one group."""
    if integer(op, "groups", groups) < 1 or channels % groups != 0:
        raise ValueError(
            f"{op}: groups must be a positive divisor of the {channels} channels, got {groups}; use the layer's own groups"
        )
    return channels // int(groups)


def window(op: str, x: Tensor, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """The geometry of a convolution over ``x (N, C, H, W)``."""
    kernel = _pair(op, "kernel_size", kernel_size, 1)
    strides = _pair(op, "stride", stride, 1)
    dilations = _pair(op, "dilation", dilation, 1)
    reach = (dilations[0] * (kernel[0] - 1), dilations[1] * (kernel[1] - 1))
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(
                f"{op}: padding must be an int, a pair, 'same' or 'valid', got {padding!r}; use one of these"
            )
        if padding == "same" and strides != (1, 1):
            raise ValueError(
                f"{op}: padding 'same' must come with stride 1, got stride {strides}; pass the padding in pixels"
            )
        before = (reach[0] // 2, reach[1] // 2) if padding == "same" else (0, 0)
        total = reach if padding == "same" else (0, 0)
    else:
        before = _pair(op, "padding", padding, 0)
        total = (2 * before[0], 2 * before[1])
    room = (x.shape[2] + total[0] - reach[0] - 1, x.shape[3] + total[1] - reach[1] - 1)
    if room[0] < 0 or room[1] < 0:
        raise ValueError(
            f"{op}: kernel_size must fit into the padded input, got a window of {reach[0] + 1}×{reach[1] + 1} "
            f"(kernel {kernel}, dilation {dilations}) on {x.shape[2] + total[0]}×{x.shape[3] + total[1]} pixels; "
            "use a smaller kernel or more padding"
        )
    return Window(kernel, strides, before, dilations, (room[0] // strides[0] + 1, room[1] // strides[1] + 1))


def scale(op: str, alpha: Any, beta: Any, reduction: Any, count: int) -> float:
    """The factor of the plain sum; the mean of nothing counts as 0."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(
                f"{op}: {name} must be a number, got {value!r} of type {type(value).__name__}; pass a float"
            )
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', got {reduction!r}; use one of these")
    if count >= LIMIT:
        raise ValueError(
            f"{op}: x must have fewer than 2^63 positions to sum over, got {count}; split the batch"
        )
    return alpha / max(count, 1) if reduction == "mean" else float(alpha)


def check_out(op: str, out: Any, x: Tensor, groups: int, size: int, beta: float) -> None:
    """`out` is the result's tensor, or None."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = (size, size) if groups == 1 else (groups, size, size)
    if math.prod(shape) * dtype.itemsize >= LIMIT:
        raise ValueError(
            f"{op}: the result must have fewer than 2^63 bytes, got shape {shape}; use a smaller kernel"
        )
    if out is None:
        if beta != 0:
            raise ValueError(
                f"{op}: beta must be 0 where out is not given, got {beta}; pass out or drop beta"
            )
        return
    if not isinstance(out, Tensor) or out.layout is not torch.strided or out.is_nested:
        raise TypeError(
            f"{op}: out must be a dense torch.Tensor, got {type(out).__name__}; allocate it with torch.zeros"
        )
    if out.device != x.device:
        raise ValueError(
            f"{op}: out must be on the device of x, {x.device}, got {out.device}; allocate it there"
        )
    if out.dtype != dtype:
        raise TypeError(f"{op}: out must be {dtype} for x of {x.dtype}, got {out.dtype}; allocate it so")
    if tuple(out.shape) != shape:
        raise ValueError(f"{op}: out must have shape {shape}, got {tuple(out.shape)}; allocate it so")
    if out.requires_grad:
        raise ValueError(f"{op}: out must not require grad, got a tensor that does; pass out.detach()")


def check_matrices(matrices: Sequence[Any], stacked: bool, errors: Any, names: Any) -> None:
    """A list of square matrices on one device, or one stack of them; a name for each."""
    op = "eigh"
    if errors not in ("raise", "info"):
        raise ValueError(f"{op}: errors must be 'raise' or 'info', got {errors!r}; use one of these")
    for index, matrix in enumerate(matrices):
        name = "matrices" if stacked else f"matrices[{index}]"
        check_tensor(op, name, matrix)
        if matrix.device.type == "meta":
            raise NotImplementedError(f"{op}: {name} must hold data, got a meta tensor; materialise it first")
        if matrix.dim() < 2 or (matrix.dim() > 2 and not stacked) or matrix.shape[-1] != matrix.shape[-2]:
            rank = "(…, n, n)" if stacked else "(n, n)"
            raise ValueError(
                f"{op}: {name} must be square {rank}, got shape {tuple(matrix.shape)}; pass symmetric matrices"
            )
        if matrix.device != matrices[0].device:
            raise ValueError(
                f"{op}: {name} must be on the device of the first, {matrices[0].device}, got {matrix.device}; move it there"
            )
    if names is not None:
        count = math.prod(matrices[0].shape[:-2]) if stacked else len(matrices)
        if isinstance(names, str) or len(names) != count:
            got = repr(names) if isinstance(names, str) else len(names)
            raise ValueError(
                f"{op}: names must hold one string for each of the {count} matrices, got {got}; leave it out"
            )


def _overlaps_itself(tensor: Tensor) -> bool:
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"{op}: {name} must be an int or a pair, got {value!r}; give (vertical, horizontal)")
    for part in pair:
        integer(op, name, part)
        if part < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}; use the layer's own")
    return pair
