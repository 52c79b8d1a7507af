"""Which output channels of which layers must be cut together: residual sums, concatenations, batch norms.

What torch_pruning's graph says is a guess until it is checked: a group is returned only where everything its
channels go through is known here, and where cutting half of its units from a copy with random weights gives
what zeros at their consumers give.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Inputs, as_inputs
from eigendamage_ext.curvature.kinds import kind_of
from eigendamage_ext.curvature.layers import is_factored, select
from eigendamage_ext.curvature.state import check_model
from eigendamage_ext.pruning.channel_check import Trial
from eigendamage_ext.pruning.channel_graph import ChannelGraph, Owned, passes_channels
from eigendamage_ext.pruning.surgery import Cut, widths

FEW = 32  # units of a group


@dataclass(frozen=True)
class Member:
    """A module whose channels go with the units of a group.

    Attributes:
        name: Its name in the model.
        side: "output": rows of a layer that makes the channels; "input": columns of one that uses them;
            "both": a batch norm or a depthwise convolution, which passes them on.
        channels: The channels of this side that each unit owns, ``(units, m)``, int64, on the CPU; m > 1
            where pixels were flattened.
        norm: Whether it is a batch norm.
    """

    name: str
    side: str
    channels: Tensor
    norm: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are cut together.

    Attributes:
        name: Its first producer in the order of the model that names no other group.
        units: How many units there are to cut; each owns channels of every member.
        members: In the order of the model; a layer may be there twice, as producer and as consumer.
    """

    name: str
    units: int
    members: tuple[Member, ...]

    @property
    def producers(self) -> tuple[Member, ...]:
        """The layers whose filters the units are, depthwise convolutions included."""
        return tuple(member for member in self.members if member.side != "input" and not member.norm)

    @property
    def norms(self) -> tuple[Member, ...]:
        """The batch norms."""
        return tuple(member for member in self.members if member.norm)

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The layers whose input columns the units are."""
        return tuple(member for member in self.members if member.side == "input")


@dataclass(frozen=True)
class Coupling:
    """What the filters of a model's layers are tied to.

    Attributes:
        groups: Those whose units can be cut, in the order of the model.
        refused: Why the filters of a layer must all stay, by its name. One that is already
            factored goes by its own name, without `core`.
    """

    groups: tuple[ChannelGroup, ...]
    refused: dict[str, str]


def cuts(removed: Iterable[tuple[ChannelGroup, Tensor]]) -> dict[str, Cut]:
    """What every module loses, for `slice_channels`.

    Args:
        removed: Groups, each with the units it loses, ``(r,)``, int64.
    """
    sides: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: {"outputs": [], "inputs": []})
    for group, units in removed:
        for member in group.members:
            side = "inputs" if member.side == "input" else "outputs"
            sides[member.name][side].append(member.channels[units.to("cpu")].flatten())
    return {
        name: Cut(**{side: torch.cat(parts) for side, parts in found.items() if parts})
        for name, found in sides.items()
    }


def channel_groups(model: nn.Module, example: Inputs) -> Coupling:
    """Finds which filters of a model can be cut, and what goes with each.

    Args:
        model: The model; it is not changed.
        example: A tensor, a tuple of arguments or a mapping that it takes, tensors ``(N, …)``; of those in
            floating point only the shape is read.

    Returns:
        The groups, each checked on a copy in float64, and why the filters of every other layer stay.

    Raises:
        ImportError: torch_pruning is not installed.
        TypeError: The example holds no tensor.
        ValueError: The copy does not run on two examples like this one.
    """
    inputs = as_inputs(example)
    if inputs is None:
        raise TypeError(
            f"channel_groups: example must be a tensor, a tuple or a mapping of tensors, got "
            f"{type(example).__name__}; pass what the model is called with"
        )
    check_model(model, caller="channel_groups")
    obstacles = _obstacles(model)
    trial = Trial(model, inputs)
    groups: list[ChannelGroup] = []
    done: dict[str, set[int]] = defaultdict(set)  # filters that are in a group
    named: set[str] = set()
    refused: dict[str, str] = {}
    with trial.prepared():
        graph = ChannelGraph(trial, obstacles)
        for name, module in trial.model.named_modules():
            if kind_of(module) is None:
                continue
            if reason := obstacles.get(name) or graph.obstacle(module):
                refused[name] = reason
                continue
            for group, reason in _groups(trial.model, graph, name, module, done):
                names = [member.name for member in group.producers if member.name not in named]
                if reason is None and not names:
                    reason = "parts of its filters are tied to different layers, in more than one way"
                reason = reason or _fault(trial, group)
                if reason is None:
                    named.add(names[0])
                    groups.append(replace(group, name=names[0]))
                    continue
                for member in group.producers:
                    refused.setdefault(member.name, reason)
    kept = {member.name for group in groups for member in group.producers}
    refused = {
        _public(model, name): refused[name]
        for name, module in model.named_modules()
        if kind_of(module) and name in refused and name not in kept
    }
    return Coupling(tuple(groups), refused)


def _groups(
    model: nn.Module, graph: ChannelGraph, name: str, layer: nn.Module, done: dict[str, set[int]]
) -> Iterator[tuple[ChannelGroup, str | None]]:
    """The groups with the filters of a layer that are not done, and why their channels must stay."""
    filters = [row for row in range(layer.get_parameter("weight").shape[0]) if row not in done[name]]
    if not filters:
        return
    owned, reason = graph.reached(name, layer, filters)
    for units in _alike(filters, owned):
        group = _group(model, units, owned)
        yield group, reason or _misnumbered(model, group)
        for producer in group.producers:
            done[producer.name].update(producer.channels.flatten().tolist())


def _alike(units: Iterable[int], owned: Owned) -> Iterable[list[int]]:
    """Units that own channels of the same members, equally many of each: a group for every such kind."""
    kinds = defaultdict(list)
    for unit in units:
        members = ((member, len(channels[unit])) for member, channels in owned.items() if unit in channels)
        kinds[frozenset(members)].append(unit)
    return kinds.values()


def _group(model: nn.Module, units: list[int], owned: Owned) -> ChannelGroup:
    members = []
    for name, module in model.named_modules():
        for side in ("output", "both", "input"):
            channels = owned.get((name, side), {})
            if units[0] in channels:
                numbers = torch.tensor([sorted(channels[unit]) for unit in units], device="cpu")
                norm = side == "both" and not isinstance(module, nn.Conv2d)
                members.append(Member(name, side, numbers, norm))
    first = next(member.name for member in members if member.side != "input" and not member.norm)
    return ChannelGroup(first, len(units), tuple(members))


def _misnumbered(model: nn.Module, group: ChannelGroup) -> str | None:
    """Why the channels that the graph gives to the members cannot be theirs."""
    for member in group.members:
        width = widths(model.get_submodule(member.name))
        if width and int(member.channels.max()) >= width[member.side == "input"]:
            return f"its channels go to {member.name!r} in a way that torch_pruning does not follow"
    return None


def _obstacles(model: nn.Module) -> dict[str, str]:
    """Why a module cannot lose channels, whatever the graph says."""
    _, obstacles = select(model)
    holders = Counter(
        parameter
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
    )
    for name, module in model.named_modules():
        if is_factored(module):
            obstacles |= {f"{name}.{child}": "it is factored already" for child, _ in module.named_children()}
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d) or "forward" in vars(module):
                obstacles[name] = f"{type(module).__name__} may have a forward of its own"
            elif any(holders[p] > 1 for p in module._parameters.values() if p is not None):
                obstacles[name] = "its parameters are shared"
        elif isinstance(module, nn.Conv2d) and module.groups > 1 and not passes_channels(module):
            obstacles.setdefault(name, f"its {module.groups} groups tie filters to input channels")
        elif kind_of(module) and not isinstance(module, nn.Conv2d | nn.Linear):
            obstacles.setdefault(
                name, f"filters of a {type(module).__name__} stay, its directions can be cut"
            )
    return obstacles


def _fault(trial: Trial, group: ChannelGroup) -> str | None:
    """Why the group cannot be cut: a random half of its units, tried out in numbers.

    Of few units a half may by chance hide that some are mistaken for others. So a second half is tried, with
    one unit exchanged: only what leaves both of these two in place stays hidden.
    """
    if group.units == 1:
        return "it has one filter, and one must stay"
    units = torch.randperm(group.units, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    half = group.units // 2
    halves = [units[:half], units[1 : half + 1]] if group.units <= FEW else [units[:half]]
    return next(filter(None, (trial.fault(cuts([(group, part)])) for part in halves)), None)


def _public(model: nn.Module, name: str) -> str:
    """The name a layer goes by: that of the whole for a child of a factored layer."""
    parent = name.rpartition(".")[0]
    return parent if parent and is_factored(model.get_submodule(parent)) else name
