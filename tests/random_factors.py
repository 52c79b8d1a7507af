"""Factors with spectra as real ones have them, made without data."""

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.eigenbasis import Eigen, LayerEigenbasis
from eigendamage_ext.curvature.factors import Factors, FactorSettings, LayerFactors
from eigendamage_ext.curvature.layers import LayerSpec, select


def random_factor(groups: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Symmetric, positive, eigenvalues over four decades: ``(n, n)``, or ``(g, n, n)`` for several groups."""
    q = torch.linalg.qr(torch.randn(groups, n, n, dtype=torch.float64)).Q
    factor = (q * 10 ** (-4 * torch.rand(groups, 1, n, dtype=torch.float64))) @ q.mT
    factor = ((factor + factor.mT) / 2).to(dtype)
    return factor if groups > 1 else factor[0]


def random_layer_factors(spec: LayerSpec, dtype: torch.dtype = torch.float64) -> LayerFactors:
    return LayerFactors(
        A=random_factor(spec.groups, spec.in_per_group, dtype),
        G=random_factor(spec.groups, spec.out_per_group, dtype),
        count=1,
    )


def eigenbasis(factors: LayerFactors, S: Tensor | None = None) -> LayerEigenbasis:
    """By LAPACK, so that what is tested with it does not rest on the package's own solver."""
    A, G = (torch.linalg.eigh(factor) for factor in (factors.A, factors.G))
    return LayerEigenbasis(Eigen(A.eigenvalues, A.eigenvectors), Eigen(G.eigenvalues, G.eigenvectors), S)


def random_factors(
    model: nn.Module,
    example_shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    kind: str = "channel",
    layers: list[str] | None = None,
) -> Factors:
    """Channel factors of every covered layer; `kind` is what the settings claim."""
    covered, skipped = select(model, layers)
    specs = {name: LayerSpec.of(name, module) for name, module in covered.items()}
    settings = FactorSettings(
        loss="cross_entropy",
        fisher="mc",
        samples=1,
        kind=kind,
        weight_sharing="expand",
        seed=0,
        count=1,
        example_shape=example_shape,
        example_dtype=str(dtype).removeprefix("torch."),
    )
    made = {name: random_layer_factors(spec, dtype) for name, spec in specs.items()}
    return Factors(made, specs, skipped, settings)
