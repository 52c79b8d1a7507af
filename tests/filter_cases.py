"""Layers of every shape as filters, with factors made without data, and their dense algebra."""

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.factors import LayerFactors
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import factor_shapes
from eigendamage_ext.pruning.methods.filters import FilterGroup, Filters, Options

LAYERS = {
    "linear": lambda: nn.Linear(5, 4),
    "linear without bias": lambda: nn.Linear(4, 6, bias=False),
    "conv": lambda: nn.Conv2d(2, 5, (3, 2)),
    "groups": lambda: nn.Conv2d(6, 9, 2, groups=3),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False),
}

EXACT = Options(damping=0)


def filters(layer: nn.Module, factors: LayerFactors | None = None, name: str = "layer") -> Filters:
    """One unit for each filter."""
    rows = layer.weight.detach().flatten(1).clone()
    if layer.bias is not None:
        rows = torch.cat([rows, layer.bias.detach()[:, None]], dim=1)
    return Filters(LayerSpec.of(name, layer), rows.double(), torch.arange(len(rows))[:, None], factors)


def random_filters(layer: nn.Module, name: str = "layer") -> Filters:
    """With random factors that are no multiple of the identity but well conditioned."""
    spec = LayerSpec.of(name, layer)
    A, G = (positive(*shape) for shape in factor_shapes(spec, "patch"))
    return filters(layer, LayerFactors(A, G, count=1), name)


def group(*layers: Filters, norms: tuple[Tensor, ...] = ()) -> FilterGroup:
    return FilterGroup(layers[0].spec.name, layers, norms)


def positive(*shape: int) -> Tensor:
    """Symmetric positive definite ``(…, n, n)``, eigenvalues from 0.1 up."""
    x = torch.randn(*shape, dtype=torch.float64)
    return x @ x.mT / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


def stacked(layer: Filters) -> tuple[Tensor, Tensor]:
    """A ``(g, D, D)`` and G ``(g, c_out/g, c_out/g)``."""
    return tuple(f.reshape(layer.spec.groups, *f.shape[-2:]) for f in (layer.factors.A, layer.factors.G))


def dense(A: Tensor, G: Tensor) -> Tensor:
    """G ⊗ A of every group, as one matrix over all weights of a layer, ``(c_out·D, c_out·D)``."""
    return torch.block_diag(*(torch.kron(g, a) for a, g in zip(A, G, strict=True)))


def constrained(hessian: Tensor, weight: Tensor, gone: Tensor) -> tuple[float, Tensor]:
    """The least ½ δᵀHδ with δ = −w where `gone`, and that δ, from the dense KKT system.

    Args:
        hessian: ``(n, n)``.
        weight: w, ``(n,)``.
        gone: ``(n,)`` bool.
    """
    n, m = len(weight), int(gone.sum())
    E = torch.eye(n, dtype=torch.float64)[gone]
    system = torch.cat([torch.cat([hessian, E.T], 1), torch.cat([E, torch.zeros(m, m).double()], 1)])
    right = torch.cat([torch.zeros(n, dtype=torch.float64), -weight[gone]])
    delta = torch.linalg.solve(system, right)[:n]
    return 0.5 * float(delta @ hessian @ delta), delta


def rows_of(layer: Filters, cut: Tensor) -> Tensor:
    """Which of all weights ``(c_out·D,)`` belong to filters that are cut ``(c_out,)``."""
    return cut[:, None].expand_as(layer.weight).flatten()
