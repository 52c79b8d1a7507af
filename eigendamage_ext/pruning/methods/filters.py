"""Methods that cut output filters, and what they see of the layers whose filters go together.

Filters coupled by the network (a residual sum, a depthwise convolution) are one *unit*: they stay or go
together.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.factors import LayerFactors
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import grouped_weight


@dataclass(frozen=True)
class Options:
    """What a method may be told.

    Attributes:
        damping: Times its mean eigenvalue, added to the diagonal of a factor before it is inverted.
        seed: Of what is drawn.
        reference_compat: Scores as the authors' implementation has them where it differs from the paper.
    """

    damping: float = 0.01
    seed: int = 0
    reference_compat: bool = False


@dataclass(frozen=True)
class Filters:
    """The output filters of one layer.

    Attributes:
        spec: The layer in numbers.
        weight: ``(c_out, D)``, D = c_in/g·K: one filter in each row, with its bias as last entry where the
            layer has one. float64, on the CPU.
        units: The filters that each unit owns, ``(units, m)`` int64.
        factors: Statistics of the layer, if the method needs any.
    """

    spec: LayerSpec
    weight: Tensor
    units: Tensor
    factors: LayerFactors | None = None

    @classmethod
    def of(
        cls, spec: LayerSpec, layer: nn.Module, units: Tensor, factors: LayerFactors | None = None
    ) -> "Filters":
        """Reads the weights of a Conv2d or Linear."""
        columns = grouped_weight(layer).reshape(spec.out_channels, -1)
        if spec.bias:
            bias = layer.get_parameter("bias").detach().to(columns)
            columns = torch.cat([columns, bias[:, None]], dim=1)
        return cls(spec, columns, units, factors)


@dataclass(frozen=True)
class FilterGroup:
    """Layers whose filters are cut together.

    Attributes:
        name: The first of the layers.
        layers: All of them, in the order of the model.
        norms: Scales γ of every batch norm their outputs go through, ``(units, m)``: float64, on the CPU.
    """

    name: str
    layers: Sequence[Filters]
    norms: Sequence[Tensor]


class FilterMethod(ABC):
    """A score over units of output filters, and perhaps an update of the filters that stay.

    Attributes:
        name: As given to `plan`.
        needs: What of `LayerFactors` it reads: "patch" (A, G of that kind), "diagonal", "gradient" or None.
        predicts: Whether it predicts the loss increase of a cut.
    """

    name: ClassVar[str]
    needs: ClassVar[str | None] = None
    predicts: ClassVar[bool] = False

    @abstractmethod
    def unit_scores(self, group: FilterGroup, options: Options) -> Tensor:
        """What each unit is worth, ``(units,)``: float64, on the CPU.

        Raises:
            ValueError: Weights or statistics of a layer are not finite.
        """

    def obstacle(self, group: FilterGroup) -> str | None:
        """Why this method cannot score a group, or None."""
        return None

    def update(self, layer: Filters, cut: Tensor, options: Options) -> Tensor | None:
        """The layer's weights once some filters are gone; None: the others stay as they are.

        Args:
            layer: The layer.
            cut: Which of its filters go, ``(c_out,)`` bool.
            options: See `Options`.

        Returns:
            ``(c_out, D)`` like `Filters.weight`; rows that are cut are not read.
        """
        return None

    def predicted_loss(self, layer: Filters, cut: Tensor, options: Options) -> float:
        """Loss increase predicted for cutting filters of a layer; 0 by a method that does not predict.

        Args:
            layer: The layer.
            cut: Which of its filters go, ``(c_out,)`` bool.
            options: See `Options`.
        """
        return 0.0


class LayerwiseMethod(FilterMethod):
    """A method that scores the filters of a layer; a unit is worth the sum over its filters in all layers."""

    predicts = True

    @abstractmethod
    def filter_scores(self, layer: Filters, options: Options) -> Tensor:
        """What each filter of a layer is worth, ``(c_out,)``: float64, on the CPU."""

    def unit_scores(self, group: FilterGroup, options: Options) -> Tensor:
        """The sum over the filters of each unit, ``(units,)``."""
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for layer in group.layers:
            scores = self.filter_scores(layer, options)
            if not scores.isfinite().all():
                raise ValueError(
                    f"plan: weight and factors of {layer.spec.name!r} must be finite, got NaN or infinity; "
                    "mend the weight and estimate again"
                )
            total = total + scores[layer.units].sum(1)
        return total

    def predicted_loss(self, layer: Filters, cut: Tensor, options: Options) -> float:
        """Half the sum of the scores of what is cut, if half a score is a loss."""
        return 0.5 * float(self.filter_scores(layer, options)[cut].sum()) if self.predicts else 0.0
