"""Cores that become depthwise convolutions (Wang et al. 2019, arXiv 1905.05934)."""

import torch
from torch import Tensor, nn

from eigendamage_ext.pruning.cp import decompose
from eigendamage_ext.pruning.forms import assemble, grouped_weight, parts, rotate


def separate(
    layer: nn.Module, input_basis: Tensor, output_basis: Tensor, *, seed: int = 0
) -> tuple[nn.Sequential, float]:
    """The layer projected onto kept directions, with a depthwise core between R = min(r_A, r_G) channels.

    The core's weight Q_Gᵀ W Q_A is about a sum of R outer products a_r ⊗ b_r ⊗ d_r; d is the weight of the
    depthwise convolution, and the rotations become Q_A·b and Q_G·a. Where the sum is exact, so is the layer.
    Computed in float64 and rounded once to the layer's dtype.

    Args:
        layer: A Conv2d that is `separable`, or what it was rebuilt as before; it is not changed.
        input_basis: Orthonormal columns ``(1, c_in, r_A)``, float64, c_in that of the core.
        output_basis: Orthonormal columns ``(1, c_out, r_G)``, float64, likewise.
        seed: See `decompose`.

    Returns:
        The modules, and how far the decomposition is from the core, relative to it.

    Raises:
        ValueError: The weight is not finite.
    """
    core = rotate(grouped_weight(parts(layer)["core"]), input_basis, output_basis).squeeze(0)
    if not core.isfinite().all():
        raise ValueError("apply: weight of a layer must be finite, got NaN or infinity; mend the model")
    cp = decompose(core, seed=seed)
    kernels = cp.kernels.mT[:, None, None, :]
    rotations = input_basis @ cp.inputs, output_basis @ cp.outputs
    return assemble(layer, kernels, *rotations, separated=True), cp.error


def thin(layer: nn.Module, channels: Tensor) -> nn.Sequential:
    """A layer with a depthwise core, of whose channels only some are left.

    Args:
        layer: One that `separate` made; it is not changed.
        channels: Columns of the identity, ``(1, R, R')``, float64.
    """
    kernels = torch.einsum("rabk,rs->sabk", grouped_weight(parts(layer)["core"]), channels[0])
    return assemble(layer, kernels, channels, channels, separated=True)
