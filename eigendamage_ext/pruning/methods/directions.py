"""Methods that cut directions of a layer's Kronecker-factored eigenbasis, and what they make of one layer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext.curvature.eigenbasis import LayerEigenbasis
from eigendamage_ext.curvature.layers import LayerSpec


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


class DirectionMethod(ABC):
    """A score over the directions of a layer, and the forms that a cut layer may take.

    Attributes:
        name: As given to `plan`.
        needs: The kind of factors it is scored by.
        predicts: Whether the loss predicted for a cut is all that its forms lose.
    """

    name: ClassVar[str]
    needs: ClassVar[str] = "channel"
    predicts: ClassVar[bool] = True

    @abstractmethod
    def scores(self, spec: LayerSpec, layer: nn.Module, basis: LayerEigenbasis) -> LayerScores:
        """What each direction is worth.

        Args:
            spec: The layer.
            layer: Its module; only the weight is read.
            basis: Eigenvalues and eigenvectors of its channel factors A and G, and S if that is to count.

        Raises:
            ValueError: The weight or the factors are not finite.
        """

    @abstractmethod
    def forms(self, spec: LayerSpec) -> tuple[str, ...]:
        """Which of `eigendamage_ext.pruning.forms` a layer can take, "dense" among them."""


def _descending(scores: Tensor) -> list[float]:
    """The scores without the ascents that rounding leaves between units of equal worth."""
    return [float(score) for score in scores.cummin(0).values]
