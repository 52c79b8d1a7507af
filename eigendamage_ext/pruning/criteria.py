"""How much each direction of the Kronecker-factored eigenbasis matters to the loss."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext.curvature.eigenbasis import LayerEigenbasis
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import grouped_weight, rotate


@dataclass(frozen=True)
class LayerScores:
    """The directions of one layer, best first, and what they are worth.

    In a grouped layer unit j is the j-th best direction of every group together, so all groups keep the same
    rank. What is kept of a side is always a prefix.

    Attributes:
        importance: Θ of method step 3 summed over the groups, ``(c_out/g, c_in/g)``: float64, on the CPU.
        input_order: The number that each unit's direction has in the eigenbasis of A, ``(g, c_in/g)``.
        output_order: Likewise for G, ``(g, c_out/g)``.
        input_basis: Eigenvectors of A as columns, ``(g, c_in/g, c_in/g)``: float64, on the CPU.
        output_basis: Eigenvectors of G as columns, ``(g, c_out/g, c_out/g)``.
    """

    importance: Tensor
    input_order: Tensor
    output_order: Tensor
    input_basis: Tensor
    output_basis: Tensor

    @property
    def input_scores(self) -> list[float]:
        """Loss of cutting each input unit alone, twice over; never ascending."""
        return _descending(self.importance.sum(0))

    @property
    def output_scores(self) -> list[float]:
        """Loss of cutting each output unit alone, twice over; never ascending."""
        return _descending(self.importance.sum(1))

    def predicted_loss(self, input_rank: int, output_rank: int) -> float:
        """Loss increase of keeping only the best directions: ½ Σ Θ over the union of what is cut.

        Args:
            input_rank: Input units kept.
            output_rank: Output units kept.
        """
        rows = self.importance[output_rank:].sum()
        columns = self.importance[:output_rank, input_rank:].sum()
        return 0.5 * float(rows + columns)

    def predicted_losses(self) -> Tensor:
        """`predicted_loss` at every pair of ranks from 0 on, ``(c_in/g + 1, c_out/g + 1)``."""
        columns = F.pad(self.importance.flip(1).cumsum(1).flip(1).cumsum(0), (0, 1, 1, 0))
        rows = F.pad(self.importance.sum(1).flip(0).cumsum(0).flip(0), (0, 1))
        return 0.5 * (rows[:, None] + columns).mT


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


def _per_group(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(g, n)`` and eigenvectors ``(g, n, n)`` in float64 on the CPU.

    One Newton–Schulz step makes single-precision eigenvectors orthonormal to double precision: a layer at
    full rank is then the layer it replaces, whatever the factors were computed in.
    """
    n = vectors.shape[-1]
    q = vectors.detach().to("cpu", torch.float64).reshape(-1, n, n)
    q = 1.5 * q - 0.5 * q @ (q.mT @ q)
    return values.detach().to("cpu", torch.float64).reshape(-1, n), q


def _descending(scores: Tensor) -> list[float]:
    """The scores without the ascents that rounding leaves between units of equal worth."""
    return [float(score) for score in scores.cummin(0).values]
