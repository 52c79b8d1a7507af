"""The Fisher's diagonal in the weight's own coordinates, without a gradient of any example.

1/N Σ_n Σ_v (∇W_nv)²        with ∇W_nv = Σ_t g_nvt a_ntᵀ, of a bias Σ_t g_nvt
"""

from typing import Any

from torch import Tensor

from eigendamage_ext import ops
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import over_positions, windows
from eigendamage_ext.curvature.second_pass import WeightGradients


class Diagonal(WeightGradients):
    """Sums the diagonal times the number of examples."""

    caller = "diagonal"

    def add(self, name: str, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Adds the squares of every example's gradient."""
        add_squares(self.specs[name], x, g, out)


def add_squares(spec: LayerSpec, x: Tensor, g: Tensor, out: Tensor) -> None:
    """Adds Σ_n (∇W_n)² of a batch to `out`.

    Args:
        spec: The layer.
        x: Its input, ``(N, c_in, H, W)`` or ``(N, …, c_in)``.
        g: The gradient at its output, ``(N, c_out, H, W)`` or ``(N, …, c_out)``.
        out: The sum so far, ``(c_out, D)``; the last column is that of a bias.
    """
    if x.dtype != g.dtype:
        x, g = x.to(out.dtype), g.to(out.dtype)
    shared: dict[str, Any] = {"reduction": "sum", "beta": 1}
    weight = out[:, :-1] if spec.bias else out
    if spec.kind == "Linear":
        ops.gradient_second_moment(x, g, **shared, out=weight)
    else:
        x, window = windows(spec, x)
        weight = weight.view(len(weight), spec.in_per_group, *spec.kernel_size)
        ops.gradient_second_moment(x, g, spec.kernel_size, **window, groups=spec.groups, **shared, out=weight)
    if spec.bias:
        out[:, -1] += over_positions(spec, g, out.dtype).square().sum(dim=0)
