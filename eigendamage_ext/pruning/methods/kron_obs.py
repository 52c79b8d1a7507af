"""Kron-OBS: Optimal Brain Surgeon on filters, with the Fisher G ⊗ A (Wang et al. 2019, arXiv 1905.05934)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, LayerwiseMethod, Options
from eigendamage_ext.pruning.methods.kron_obd import energy
from eigendamage_ext.pruning.methods.kronecker import damped, kronecker_block
from eigendamage_ext.pruning.methods.weights import inverse_diagonal


class KronOBS(LayerwiseMethod):
    """The score of a filter is w_iᵀ A w_i / [G⁻¹]_ii: zeroing it costs half of that once the others make up.

    All cut filters R are made up for at once. ΔW = −G⁻¹E_R (E_RᵀG⁻¹E_R)⁻¹ W_R zeroes them and adds
    G_KK⁻¹ G_KR W_R to those that stay, K, which is the least of all losses ½ tr(G ΔW A ΔWᵀ); it does not
    depend on A. The authors' implementation adds up the updates of single filters instead, which is another
    matrix and loses more.

    G is damped. With `reference_compat` the score is Σ_jk w_ij² A_jk / [G⁻¹]_ii, the damping the authors'
    (see `damped`); update and predicted loss stay joint.
    """

    name = "kron-obs"
    needs = "patch"

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """See the class; ``(c_out,)``."""
        weight, A, G = kronecker_block(layer)
        inverse = inverse_diagonal("kron-obs", "G", damped(G, layer, options))
        return (energy(weight, A, options) / inverse).flatten()

    def update(self, layer: Filters, cut: Tensor, options: Options) -> Tensor:
        """See the class; rows that are cut become 0."""
        weight, _, G = kronecker_block(layer)
        updated = weight.clone()
        for group, kept, gone, lower in _splits(damped(G, layer, options), cut):
            k = len(kept)
            change = lower[k:, :k].mT @ weight[group, gone]
            updated[group, kept] += torch.linalg.solve_triangular(lower[:k, :k].mT, change, upper=True)
            updated[group, gone] = 0
        return updated.reshape(layer.weight.shape)

    def predicted_loss(self, layer: Filters, cut: Tensor, options: Options) -> float:
        """½ tr([G⁻¹]_RR⁻¹ W_R A W_Rᵀ), the loss of the joint update."""
        weight, A, G = kronecker_block(layer)
        loss = 0.0
        for group, kept, gone, lower in _splits(damped(G, layer, options), cut):
            k = len(kept)
            root = lower[k:, k:].mT @ weight[group, gone]
            loss += 0.5 * float((root @ A[group] * root).sum())
        return loss


def _splits(G: Tensor, cut: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Each group that loses filters: its number, those kept, those cut, and L of G = L Lᵀ in this order.

    Solving with L never forms an inverse: G_KK⁻¹ G_KR = L_KK⁻ᵀ L_RKᵀ and [G⁻¹]_RR⁻¹ = L_RR L_RRᵀ.
    """
    for group, (matrix, mask) in enumerate(zip(G, cut.reshape(len(G), -1), strict=True)):
        if mask.any():
            kept, gone = ((~mask).nonzero()[:, 0], mask.nonzero()[:, 0])
            order = torch.cat([kept, gone])
            yield group, kept, gone, torch.linalg.cholesky(matrix[order][:, order])
