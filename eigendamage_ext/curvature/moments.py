"""What one batch adds to a layer's Kronecker factors: its input to A, its output gradient to G.

*Expand* takes every position of an example as a row of its own. *Reduce* first averages the inputs and sums
the gradients over the positions of an example.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext import ops
from eigendamage_ext.curvature.layers import LayerSpec

KINDS = ("channel", "patch")
WEIGHT_SHARINGS = ("expand", "reduce")


def factor_shapes(spec: LayerSpec, kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and G: ``(D, D)`` and ``(c_out, c_out)``, or ``(g, D, D)`` and ``(g, c_out/g, c_out/g)``.

    D is c_in/g; for `kind` "patch" times the kernel positions, and one more with a bias.
    """
    d = spec.in_per_group if kind == "channel" else weight_rows_shape(spec)[1]
    groups = () if spec.groups == 1 else (spec.groups,)
    return (*groups, d, d), (*groups, spec.out_per_group, spec.out_per_group)


def weight_rows_shape(spec: LayerSpec) -> tuple[int, int]:
    """``(c_out, D)``: the weight as a matrix, one row for each output channel, its bias as last column."""
    return spec.out_channels, spec.in_per_group * spec.kernel_positions + spec.bias


def zeros(module: nn.Module, shape: tuple[int, ...], offload: bool) -> Tensor:
    """A sum to begin with, in the dtype of a layer's weight (halves: float32), on its device or the CPU."""
    weight = module.get_parameter("weight")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_zeros(shape, dtype=dtype, device="cpu" if offload else None)


@contextmanager
def sum_on(device: torch.device, total: Tensor) -> Iterator[Tensor]:
    """Where to add on a device: to `total` itself, or to zeros that are added to it afterwards."""
    if total.device == device:
        yield total
    else:
        term = torch.zeros_like(total, device=device)
        yield term
        total += term.to(total.device)


def add_input(spec: LayerSpec, x: Tensor, out: Tensor, *, kind: str, weight_sharing: str) -> None:
    """Adds Σ a aᵀ of a batch to `out`.

    Args:
        spec: The layer.
        x: Its input, ``(N, c_in, H, W)`` or ``(N, …, c_in)``.
        out: The sum so far, of A's shape.
        kind: What a is: "channel", the pixel under a kernel offset; "patch", the patch, with a 1 for a bias.
        weight_sharing: "expand" or "reduce".
    """
    bias = spec.bias and kind == "patch"
    if weight_sharing == "reduce":
        patch = mean_patch(spec, x.to(out.dtype))
        rows = patch if kind == "channel" else patch.flatten(1)
        ops.covariance(rows, feature_dim=1, groups=spec.groups, bias=bias, reduction="sum", out=out, beta=1)
        return
    if spec.kind == "Linear":
        ops.covariance(x, bias=bias, reduction="sum", out=out, beta=1)
        return
    x, window = windows(spec, x)
    shared: dict[str, Any] = {"groups": spec.groups, "reduction": "sum", "out": out, "beta": 1}
    if kind == "patch":
        ops.patch_covariance(x, spec.kernel_size, **window, **shared, bias=bias)
    else:
        ops.channel_covariance(x, spec.kernel_size, **window, **shared)


def input_divisor(spec: LayerSpec, positions: int, examples: int, *, kind: str, weight_sharing: str) -> int:
    """The number of rows a in a batch of N examples with N·T output positions.

    N·T, or N when reduced; for `kind` "channel" times K.
    """
    rows = positions if weight_sharing == "expand" else examples
    return rows * spec.kernel_positions if kind == "channel" else rows


def add_gradient(spec: LayerSpec, g: Tensor, out: Tensor, *, weight_sharing: str) -> None:
    """Adds Σ g gᵀ of a batch to `out`.

    Args:
        spec: The layer.
        g: The gradient at its output, ``(N, c_out, H, W)`` or ``(N, …, c_out)``.
        out: The sum so far, of G's shape.
        weight_sharing: "expand" or "reduce".
    """
    feature_dim = -1 if spec.kind == "Linear" else 1
    if weight_sharing == "reduce" and g.dim() > 2:
        g = over_positions(spec, g, out.dtype)
    ops.covariance(g, feature_dim=feature_dim, groups=spec.groups, reduction="sum", out=out, beta=1)


def over_positions(spec: LayerSpec, g: Tensor, dtype: torch.dtype) -> Tensor:
    """Σ_t g_nt ``(N, c_out)`` of gradients ``(N, c_out, H, W)`` or ``(N, …, c_out)``, in a dtype."""
    positions = tuple(range(1, g.dim() - 1)) if spec.kind == "Linear" else (2, 3)
    return g.sum(dim=positions, dtype=dtype) if positions else g.to(dtype)


def mean_patch(spec: LayerSpec, x: Tensor) -> Tensor:
    """An example's mean patch, ``(N, c_in, K)``, of an input ``(N, c_in, H, W)`` or ``(N, …, c_in)``."""
    if spec.kind == "Linear":
        return x.reshape(len(x), -1, spec.in_channels).mean(dim=1)[..., None]
    x = pad(spec, x)
    rows, columns = (
        [slice(d * i, length - d * (k - 1 - i), s) for i in range(k)]
        for length, k, s, d in zip(x.shape[2:], spec.kernel_size, spec.stride, spec.dilation, strict=True)
    )
    return torch.stack([x[:, :, row, column].mean(dim=(2, 3)) for row in rows for column in columns], dim=2)


def windows(spec: LayerSpec, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The input of a convolution as the kernels take it, and where its windows stand.

    Borders that are not zeros become part of the input ``(N, c_in, H, W)``.
    """
    padding = spec.padding
    if spec.padding_mode != "zeros":
        x, padding = pad(spec, x), "valid"
    return x, {"stride": spec.stride, "padding": padding, "dilation": spec.dilation}


def pad(spec: LayerSpec, x: Tensor) -> Tensor:
    """The input of a convolution ``(N, c_in, H, W)`` with its borders."""
    return F.pad(x, spec.borders, mode="constant" if spec.padding_mode == "zeros" else spec.padding_mode)


def batched(spec: LayerSpec, x: Tensor) -> Tensor:
    """Gives a single example its batch dimension, and what a Conv1d sees a height of 1, ``(N, c, 1, L)``."""
    if spec.kind == "Conv1d":
        x = x.unsqueeze(-2)
    return x[None] if x.dim() == (1 if spec.kind == "Linear" else 3) else x
