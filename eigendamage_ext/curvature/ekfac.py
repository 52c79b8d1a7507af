"""EKFAC: what the Fisher's diagonal really is in the Kronecker-factored eigenbasis.

    S = 1/N Σ_n Σ_v (Q_Gᵀ ∇W_nv Q_A)²        George et al. 2018, arXiv 1806.03884

Of all diagonals in this basis S is the nearest to the Fisher; the eigenvalues' product λ_G λ_Aᵀ is another.
∇W_nv is the weight's own gradient, whichever way weight sharing went into the factors. Rotated, it is the sum
over positions of products of rotated output gradients and rotated inputs, of which a kernel adds the squares.
Patches that are more than the rows of the weight are not rotated: the gradients are, once they are formed.
Either way it is a few examples at a time.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext import ops
from eigendamage_ext.curvature.eigenbasis import LayerEigenbasis
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import pad, weight_rows_shape, windows
from eigendamage_ext.curvature.second_pass import WeightGradients

ROTATED = 2**22  # numbers that are rotated at a time


def second_moment_shape(spec: LayerSpec, kind: str) -> tuple[int, ...]:
    """``(c_out, c_in/g, kh, kw)``, of a Linear ``(c_out, c_in)``; for "patch" ``(c_out, D)``."""
    if kind == "patch":
        return weight_rows_shape(spec)
    return (spec.out_channels, spec.in_per_group, *(() if spec.kind == "Linear" else spec.kernel_size))


class SecondMoments(WeightGradients):
    """Sums S times the number of examples."""

    caller = "second_moments"

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        basis: Mapping[str, LayerEigenbasis],
        *,
        kind: str,
        autocast: torch.dtype | None,
        offload: bool,
    ) -> None:
        self._kind = kind
        super().__init__(layers, autocast=autocast, offload=offload)
        self._Q = {
            name: (basis[name].A.vectors.to(S), basis[name].G.vectors.to(S)) for name, S in self.sums.items()
        }

    def shape(self, spec: LayerSpec) -> tuple[int, ...]:
        """The weight's shape, or for "patch" ``(c_out, D)``."""
        return second_moment_shape(spec, self._kind)

    def add(self, name: str, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Adds the squares of every example's rotated gradient."""
        Q_A, Q_G = (Q.to(g.device) for Q in self._Q[name])
        add_squares(self.specs[name], x, g, out, Q_A, Q_G, kind=self._kind)


def add_squares(
    spec: LayerSpec, x: Tensor, g: Tensor, out: Tensor, Q_A: Tensor, Q_G: Tensor, *, kind: str
) -> None:
    """Adds Σ_n (Q_Gᵀ ∇W_n Q_A)² of a batch to `out`.

    Args:
        spec: The layer.
        x: Its input, ``(N, c_in, H, W)`` or ``(N, …, c_in)``.
        g: The gradient at its output, ``(N, c_out, H, W)`` or ``(N, …, c_out)``.
        out: The sum so far, of the shape that `second_moment_shape` tells.
        Q_A: Eigenvectors of A as columns, ``(D, D)`` or ``(g, D, D)``, in the dtype of `out`.
        Q_G: Likewise of G, ``(c_out, c_out)`` or ``(g, c_out/g, c_out/g)``.
        kind: "channel": the channels rotate; "patch": the patches, with a 1 for a bias.
    """
    positions = g[0].numel() // spec.out_channels
    size = max(1, ROTATED // (spec.groups * Q_A.shape[-1] * positions + g[0].numel()))
    shared: dict[str, Any] = {"groups": spec.groups, "reduction": "sum", "beta": 1}
    for start in range(0, len(x), size):
        a, b = (tensor[start : start + size].to(out.dtype) for tensor in (x, g))
        if spec.kind == "Linear":
            a = rotate_rows(a, Q_A, bias=kind == "patch" and spec.bias)
            ops.gradient_second_moment(a, rotate_rows(b, Q_G), reduction="sum", out=out, beta=1)
        elif kind == "channel":
            a, window = windows(spec, rotate_channels(spec, a, Q_A))
            b = rotate_channels(spec, b, Q_G)
            ops.gradient_second_moment(a, b, spec.kernel_size, **window, **shared, out=out)
        elif positions <= spec.out_per_group:
            a, b = rotate_patches(spec, a, Q_A), rotate_channels(spec, b, Q_G)
            ops.gradient_second_moment(a, b, 1, **shared, out=out[:, :, None, None])
        else:
            gradients = Q_G.mT @ example_gradients(spec, a, b) @ Q_A
            out += gradients.square_().sum(dim=0).reshape(out.shape)


def rotate_rows(x: Tensor, Q: Tensor, *, bias: bool = False) -> Tensor:
    """Qᵀx of the rows of ``x (N, …, D)``, or with `bias` of ``(N, …, D − 1)``, to which a 1 is appended."""
    return F.linear(x, Q[:-1].mT, Q[-1]) if bias else F.linear(x, Q.mT)


def rotate_channels(spec: LayerSpec, x: Tensor, Q: Tensor) -> Tensor:
    """Qᵀx of the channels of a convolution's input or output, in each group: of x's shape."""
    return F.conv2d(x, Q.mT.reshape(-1, Q.shape[-1], 1, 1), groups=spec.groups)


def rotate_patches(spec: LayerSpec, x: Tensor, Q: Tensor) -> Tensor:
    """Qᵀa of the patches a of a convolution's input in each group, ``(N, g·D, H', W')``.

    They are the outputs of a convolution with the eigenvectors as kernels, and as biases their last entries.
    """
    kernels = Q.mT.reshape(-1, Q.shape[-1])
    bias = kernels[:, -1] if spec.bias else None
    kernels = kernels[:, :-1] if spec.bias else kernels
    return F.conv2d(
        pad(spec, x),
        kernels.reshape(len(kernels), spec.in_per_group, *spec.kernel_size),
        bias,
        spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
    )


def example_gradients(spec: LayerSpec, x: Tensor, g: Tensor) -> Tensor:
    """∇W_n of a convolution in each group, with that of a bias as last column: ``(N, g, c_out/g, D)``."""
    patches = F.unfold(pad(spec, x), spec.kernel_size, dilation=spec.dilation, stride=spec.stride)
    rows = g.reshape(len(g), spec.groups, spec.out_per_group, -1)
    columns = patches.reshape(len(x), spec.groups, -1, rows.shape[-1])
    gradients = rows @ columns.mT
    return torch.cat([gradients, rows.sum(-1, keepdim=True)], dim=-1) if spec.bias else gradients
