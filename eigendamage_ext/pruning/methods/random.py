"""Random: filters go by chance, the least that any other method must beat."""

import hashlib

import torch
from torch import Tensor

from eigendamage_ext.curvature.uniform import uniform
from eigendamage_ext.pruning.methods.filters import FilterGroup, FilterMethod, Options


class Random(FilterMethod):
    """The score of a unit is a uniform number in (0, 1), by seed, name of the group and its number alone."""

    name = "random"

    def unit_scores(self, group: FilterGroup, options: Options) -> Tensor:
        """See the class; ``(units,)``."""
        digest = hashlib.sha256(group.name.encode()).digest()
        units = len(group.layers[0].units)
        first = int.from_bytes(digest[:8])
        return uniform(options.seed, first, 1, 0, units, torch.device("cpu")).squeeze(0)
