"""NN-Slimming: the scales of batch norms tell which filters matter (Liu et al. 2017, arXiv 1708.06519)."""

import torch
from torch import Tensor

from eigendamage_ext.pruning.methods.filters import FilterGroup, FilterMethod, Options


class NNSlimming(FilterMethod):
    """The score of a unit is Σ |γ| over its channels in every batch norm that its filters go through.

    Liu et al. train with a penalty on |γ| so that many become small; without that the scores say less.
    """

    name = "nn-slimming"

    def unit_scores(self, group: FilterGroup, options: Options) -> Tensor:
        """See the class; ``(units,)``."""
        scores = torch.stack([norm.abs().sum(1) for norm in group.norms]).sum(0)
        if not scores.isfinite().all():
            raise ValueError(
                f"plan: scales of the batch norms behind {group.name!r} must be finite, got NaN or infinity; "
                "mend the model"
            )
        return scores

    def obstacle(self, group: FilterGroup) -> str | None:
        """A group without batch norm has no γ to go by."""
        return None if group.norms else "no batch norm scales its channels"
