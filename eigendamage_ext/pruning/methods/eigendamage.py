"""EigenDamage: how much each direction of the Kronecker-factored eigenbasis matters to the loss."""

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.eigenbasis import LayerEigenbasis
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import available, grouped_weight, rotate
from eigendamage_ext.pruning.methods.directions import DirectionMethod, LayerScores


class EigenDamage(DirectionMethod):
    """Wang et al. 2019, arXiv 1905.05934."""

    name = "eigendamage"

    def scores(self, spec: LayerSpec, layer: nn.Module, basis: LayerEigenbasis) -> LayerScores:
        """See `eigendamage_scores`."""
        return eigendamage_scores(spec, layer, basis)

    def forms(self, spec: LayerSpec) -> tuple[str, ...]:
        """Every form whose rotations have something to cut."""
        return available(spec)


def eigendamage_scores(spec: LayerSpec, layer: nn.Module, basis: LayerEigenbasis) -> LayerScores:
    """Scores of a layer's directions by EigenDamage (Wang et al. 2019, arXiv 1905.05934).

    Θ[o', i'] = λ_G[o'] λ_A[i'] Σ_k W*[o', k, i']², W* the weight in the eigenbasis: twice the loss increase
    that a quadratic model with the Fisher block G ⊗ I_K ⊗ A predicts for setting these K numbers to zero.
    With the diagonal of EKFAC in the model instead, Θ[o', i'] = Σ_k S[o', k, i'] W*[o', k, i']².

    Args:
        spec: The layer.
        layer: Its module; only the weight is read.
        basis: Eigenvalues and eigenvectors of its channel factors A and G, and S if that is to count.

    Raises:
        ValueError: The weight or the factors are not finite.
    """
    importance, input_basis, output_basis = _importance(spec, layer, basis)
    input_order = importance.sum(1).argsort(dim=1, descending=True, stable=True)
    output_order = importance.sum(2).argsort(dim=1, descending=True, stable=True)
    rows, columns = output_order[:, :, None], input_order[:, None, :]
    return LayerScores(
        importance=importance.take_along_dim(rows, 1).take_along_dim(columns, 2).sum(0),
        input_order=input_order,
        output_order=output_order,
        input_basis=input_basis.take_along_dim(columns, 2),
        output_basis=output_basis.take_along_dim(output_order[:, None, :], 2),
    )


def channel_scores(spec: LayerSpec, layer: nn.Module, basis: LayerEigenbasis) -> LayerScores:
    """Scores of the channels of a depthwise core, each of which goes on both sides at once.

    Θ of channel r is λ_G λ_A Σ_k W[r, k]², with EKFAC Σ_k S[r, k] W[r, k]²: it has no rotation of its own. As
    scores of directions these are a diagonal, and ranks of both sides that differ are as the smaller one.

    Args:
        spec: The core.
        layer: Its module; only the weight is read.
        basis: Eigenvalues of its factors A and G, and S if that is to count.

    Raises:
        ValueError: The weight or the factors are not finite.
    """
    importance = _importance(spec, layer, basis)[0].flatten()
    order = importance.argsort(descending=True, stable=True)
    columns = torch.eye(len(order), dtype=torch.float64, device="cpu")[None, :, order]
    return LayerScores(importance[order].diag(), order[None], order[None], columns, columns)


def _importance(spec: LayerSpec, layer: nn.Module, basis: LayerEigenbasis) -> tuple[Tensor, Tensor, Tensor]:
    """Θ, ``(g, c_out/g, c_in/g)``, and the eigenvectors of A and G, ``(g, n, n)``."""
    input_values, input_basis = _per_group(basis.A.values, basis.A.vectors)
    output_values, output_basis = _per_group(basis.G.values, basis.G.vectors)
    energy = rotate(grouped_weight(layer), input_basis, output_basis).square()
    if basis.S is None:
        importance = output_values[:, :, None] * input_values[:, None, :] * energy.sum(-1)
    else:
        importance = (basis.S.detach().to("cpu", torch.float64).reshape(energy.shape) * energy).sum(-1)
    if not importance.isfinite().all():
        raise ValueError(
            f"plan: weight and factors of {spec.name!r} must be finite, got NaN or infinity; mend the weight "
            "and estimate again"
        )
    return importance, input_basis, output_basis


def _per_group(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(g, n)`` and eigenvectors ``(g, n, n)`` in float64 on the CPU.

    One Newton–Schulz step makes single-precision eigenvectors orthonormal to double precision: a layer at
    full rank is then the layer it replaces, whatever the factors were computed in.
    """
    n = vectors.shape[-1]
    q = vectors.detach().to("cpu", torch.float64).reshape(-1, n, n)
    q = 1.5 * q - 0.5 * q @ (q.mT @ q)
    return values.detach().to("cpu", torch.float64).reshape(-1, n), q
