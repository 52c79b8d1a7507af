"""Kron-OBD: Optimal Brain Damage on filters, with the Fisher G ⊗ A (Wang et al. 2019, arXiv 1905.05934)."""

from dataclasses import replace

from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, LayerwiseMethod, Options
from eigendamage_ext.pruning.methods.kronecker import kronecker_block


class KronOBD(LayerwiseMethod):
    """The score of a filter is G_ii · w_iᵀ A w_i, twice the loss increase of zeroing it and nothing else.

    With `reference_compat` it is G_ii · Σ_jk w_ij² A_jk, which the authors' implementation computes. That
    leaves the signs of the weights out, and predicts no loss: `predicted_loss` is the paper's all the same.
    """

    name = "kron-obd"
    needs = "patch"

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """See the class; ``(c_out,)``."""
        weight, A, G = kronecker_block(layer)
        return (G.diagonal(dim1=1, dim2=2) * energy(weight, A, options)).flatten()

    def predicted_loss(self, layer: Filters, cut: Tensor, options: Options) -> float:
        """Half the sum of the paper's scores."""
        return super().predicted_loss(layer, cut, replace(options, reference_compat=False))


def energy(weight: Tensor, A: Tensor, options: Options) -> Tensor:
    """w_iᵀ A w_i ``(g, c_out/g)``, or with `reference_compat` Σ_jk w_ij² A_jk.

    Args:
        weight: ``(g, c_out/g, D)``.
        A: ``(g, D, D)``.
        options: See `Options`.
    """
    if options.reference_compat:
        return (weight.square() @ A).sum(-1)
    return (weight @ A * weight).sum(-1)
