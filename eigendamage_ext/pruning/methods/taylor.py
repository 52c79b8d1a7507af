"""Taylor: the loss without a filter, to first order (Molchanov et al. 2019, arXiv 1906.10771)."""

from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, LayerwiseMethod, Options


class Taylor(LayerwiseMethod):
    """The score of a filter is (Σ_j w_ij ∂L/∂w_ij)², its bias included, L the mean loss at the given labels.

    That is the square of a change, which may have either sign, so no loss increase is predicted. Coupled
    filters have the sum of their squares: a rise in one layer is not set off against a fall in another.
    """

    name = "taylor"
    needs = "gradient"
    predicts = False

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """See the class; ``(c_out,)``."""
        assert layer.factors is not None and layer.factors.gradient is not None
        return (layer.weight * layer.factors.gradient.detach().to(layer.weight)).sum(1).square()
