"""The other way to meet a budget: the least predicted loss over all layers and forms at once.

A threshold asks what a direction is worth, not what it costs. Here every layer offers options, each with its
cost and its loss, and takes one of them: a multiple-choice knapsack, solved with a Lagrange multiplier.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OCTAVES, PER_OCTAVE = 128, 64  # of multipliers: steps of 1 %


@dataclass(frozen=True)
class Options:
    """What a layer can become.

    Attributes:
        cost: ``(m,)`` int64.
        loss: ``(m,)`` float64, not negative.
    """

    cost: Tensor
    loss: Tensor

    def frontier(self) -> Tensor:
        """Indices of the options that lose less than every other at their cost or below, cheapest first."""
        order = self.loss.argsort(stable=True)
        order = order[self.cost[order].argsort(stable=True)]
        loss = self.loss[order]
        better = torch.ones_like(loss, dtype=torch.bool)
        better[1:] = loss[1:] < loss.cummin(0).values[:-1]
        return order[better]


def choose(layers: Sequence[Options], allowance: int) -> list[int]:
    """One option of each layer, together within the allowance.

    The smallest multiplier λ is found for which the minimisers of loss + λ·cost fit (Everett 1963). What is
    then left goes, time after time, to the option that lowers the loss most, until none that fits is better.

    Args:
        layers: At least one; their cheapest options fit together.
        allowance: What the costs may sum up to.

    Returns:
        An index into the options of each layer.
    """
    frontiers = [options.frontier() for options in layers]
    costs = [options.cost[kept] for options, kept in zip(layers, frontiers, strict=True)]
    losses = [options.loss[kept] for options, kept in zip(layers, frontiers, strict=True)]
    largest = max(float(loss[0]) for loss in losses)

    def minimisers(k: int) -> list[int]:
        # Costs are integers, so from the largest loss on every layer takes its cheapest option.
        multiplier = largest * 2.0 ** (k / PER_OCTAVE - OCTAVES) if k else 0.0
        return [int((loss + multiplier * cost).argmin()) for cost, loss in zip(costs, losses, strict=True)]

    def left(chosen: Sequence[int]) -> int:
        return allowance - sum(int(cost[at]) for cost, at in zip(costs, chosen, strict=True))

    steps = range((OCTAVES + 1) * PER_OCTAVE)
    chosen = minimisers(bisect_left(steps, True, key=lambda k: left(minimisers(k)) >= 0))
    _spend(costs, losses, chosen, left(chosen))
    return [int(kept[at]) for kept, at in zip(frontiers, chosen, strict=True)]


def _spend(costs: Sequence[Tensor], losses: Sequence[Tensor], chosen: list[int], left: int) -> None:
    """Moves layers along their frontiers while something better fits; changes `chosen`."""
    while True:
        reach = [
            int(torch.searchsorted(cost, cost[at] + left, right=True)) - 1
            for cost, at in zip(costs, chosen, strict=True)
        ]
        gains = [float(loss[at] - loss[to]) for loss, at, to in zip(losses, chosen, reach, strict=True)]
        best = max(range(len(gains)), key=gains.__getitem__)
        if gains[best] <= 0:
            return
        left -= int(costs[best][reach[best]] - costs[best][chosen[best]])
        chosen[best] = reach[best]
