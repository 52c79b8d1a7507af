"""C-OBD: Optimal Brain Damage on the weights of a filter (Wang et al. 2019, arXiv 1905.05934)."""

from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, LayerwiseMethod, Options


class COBD(LayerwiseMethod):
    """The score of a filter is Σ_j w_ij² F_ij, F the diagonal of the Fisher: weights are independent."""

    name = "c-obd"
    needs = "diagonal"

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """See the class; ``(c_out,)``."""
        assert layer.factors is not None and layer.factors.diagonal is not None
        return (layer.weight.square() * layer.factors.diagonal.detach().to(layer.weight)).sum(1)
