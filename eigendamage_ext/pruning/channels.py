"""What the layers of a network cost when groups of coupled channels keep some of their units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.coupling import ChannelGroup
from eigendamage_ext.pruning.forms import Cost


@dataclass(frozen=True)
class Site:
    """A layer or batch norm, and which groups its channels belong to.

    Attributes:
        spec: The layer in numbers; None for a batch norm.
        channels: Channels ``(in, out)`` when every group is whole; of a batch norm its channels, twice.
        inputs: Number of a group to (its units, the input channels that each owns).
        outputs: Likewise for the output channels; a depthwise convolution has these alone.
        positions: Output pixels (of a Linear: rows) of one example.
        parameters: Parameters of an output channel that do not depend on the inputs: bias, γ and β.
    """

    spec: LayerSpec | None
    channels: tuple[int, int]
    inputs: Mapping[int, tuple[int, int]]
    outputs: Mapping[int, tuple[int, int]]
    positions: int
    parameters: int

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups it depends on."""
        return tuple(sorted({*self.inputs, *self.outputs}))

    def width(self, kept: Mapping[int, int]) -> tuple[int, int]:
        """Channels ``(in, out)`` when each of its groups keeps so many units."""
        lost = [
            sum((units - kept[g]) * m for g, (units, m) in side.items())
            for side in (self.inputs, self.outputs)
        ]
        if self.spec is not None and is_depthwise(self.spec):
            lost[0] = lost[1] * self.spec.in_channels // self.spec.out_channels
        return self.channels[0] - lost[0], self.channels[1] - lost[1]

    def cost(self, kept: Mapping[int, int]) -> Cost:
        """What it costs then."""
        inputs, outputs = self.width(kept)
        if self.spec is None:
            return Cost(outputs * self.parameters, 0)
        # Only depthwise convolutions lose channels among those with groups.
        per_filter = 1 if is_depthwise(self.spec) else inputs // self.spec.groups
        products = outputs * per_filter * self.spec.kernel_positions
        return Cost(params=products + outputs * self.parameters, flops=2 * products * self.positions)


def is_depthwise(spec: LayerSpec) -> bool:
    """Whether each input channel has filters of its own."""
    return spec.groups > 1 and spec.groups == spec.in_channels


def sites(
    model: nn.Module,
    specs: Mapping[str, LayerSpec],
    positions: Mapping[str, tuple[int, int]],
    groups: Sequence[ChannelGroup],
) -> dict[str, Site]:
    """Every layer of a model and every batch norm of some groups, by name.

    Args:
        model: The model.
        specs: Its layers in numbers.
        positions: Pixels of one example at the input and at the output of each layer.
        groups: The groups whose units may be cut.
    """
    inputs: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in specs}
    outputs: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in specs}
    for number, group in enumerate(groups):
        for member in group.members:
            side = inputs if member.side == "input" else outputs
            units, owned = member.channels.shape
            side.setdefault(member.name, {})[number] = (units, owned)
    found = {
        name: Site(
            spec,
            (spec.in_channels, spec.out_channels),
            inputs[name],
            outputs[name],
            positions[name][1],
            int(spec.bias),
        )
        for name, spec in specs.items()
    }
    for name in outputs.keys() - specs.keys():
        norm = model.get_submodule(name)
        width = int(norm.num_features)  # type: ignore[arg-type]
        each = sum(parameter.numel() for parameter in norm.parameters()) // width
        found[name] = Site(None, (width, width), {}, outputs[name], 0, each)
    return found
