"""L1: the filters with the smallest weights go (Li et al. 2017, arXiv 1608.08710)."""

from torch import Tensor

from eigendamage_ext.pruning.methods.filters import Filters, LayerwiseMethod, Options


class L1(LayerwiseMethod):
    """The score of a filter is ‖w_i‖₁, its bias left out."""

    name = "l1"
    predicts = False

    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """Sum of the absolute weights of each filter, ``(c_out,)``."""
        weight = layer.weight[:, :-1] if layer.spec.bias else layer.weight
        return weight.abs().sum(1)
