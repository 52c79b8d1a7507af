"""The Fisher block G ⊗ A of a layer's filters, group by group: float64, on the CPU."""

import torch
from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, Options

REFERENCE_DAMPING = 1e-10


def kronecker_block(layer: Filters) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and factors of each group.

    Args:
        layer: The layer, with factors of kind "patch": D counts the bias where there is one.

    Returns:
        W ``(g, c_out/g, D)``, A ``(g, D, D)`` and G ``(g, c_out/g, c_out/g)``.

    Raises:
        ValueError: One of them is not finite.
    """
    assert layer.factors is not None
    groups, rows = layer.spec.groups, layer.spec.out_per_group
    weight = layer.weight.reshape(groups, rows, -1)
    A, G = (
        factor.detach().to("cpu", torch.float64).reshape(groups, *factor.shape[-2:])
        for factor in (layer.factors.A, layer.factors.G)
    )
    if not all(tensor.isfinite().all() for tensor in (weight, A, G)):
        raise ValueError(
            f"plan: weight and factors of {layer.spec.name!r} must be finite, got NaN or infinity; mend the "
            "weight and estimate again"
        )
    return weight, A, G


def damped(factor: Tensor, layer: Filters, options: Options) -> Tensor:
    """A factor plus damping × its mean eigenvalue, so that it can be inverted.

    With `reference_compat`, 1e-10 instead, once negative eigenvalues have become 0. The authors add that to a
    G which is T times ours, T the output positions.

    Args:
        factor: A or G, ``(g, n, n)``.
        layer: Whose it is.
        options: See `Options`.

    Returns:
        Positive definite matrices. A factor of zeros becomes the least of them: what nothing depends on costs
        nothing.

    Raises:
        ValueError: Not even then is it positive definite.
    """
    identity = torch.eye(factor.shape[-1], dtype=torch.float64, device="cpu")
    if options.reference_compat:
        values, vectors = torch.linalg.eigh(factor)
        factor = (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT + REFERENCE_DAMPING * identity
    else:
        mean = factor.diagonal(dim1=-2, dim2=-1).mean(-1)
        added = (options.damping * mean).clamp(min=torch.finfo(torch.float64).tiny)
        factor = factor + added[:, None, None] * identity
    if torch.linalg.cholesky_ex(factor).info.any():
        raise ValueError(
            f"plan: damping must make the factors of {layer.spec.name!r} positive definite, got "
            f"{options.damping}, with which one is still singular; raise it"
        )
    return factor
