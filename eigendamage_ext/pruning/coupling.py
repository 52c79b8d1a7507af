"""Which output channels of which layers must be cut together: residual sums, concatenations, batch norms.

The graph is that of torch_pruning (its DependencyGraph alone), read into plain data. What it says is a guess
until it is checked: a group is returned only where everything its channels go through is known here, and
where cutting half of its units from a copy with random weights gives what zeros at their consumers give.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eigendamage_ext.curvature.layers import is_factored, select
from eigendamage_ext.curvature.state import check_model
from eigendamage_ext.pruning.channel_check import Trial, first_line, tensors_in
from eigendamage_ext.pruning.surgery import Cut

# Operations of autograd, without "Backward" and a number, through which a channel may pass: one number at a
# time, one channel at a time, or only to another place, which the check in numbers then judges.
PASSES = frozenset(
    "Abs Add Clamp Clone Div Elu Exp Gelu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu LogSigmoid "
    "Maximum Minimum Mish Mul Neg Pow PreluKernel Relu Rsub Sigmoid Silu Softplus Softshrink Sqrt Sub Tanh "
    "Threshold AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D MaxPool2DWithIndices ConstantPadNd "
    "ReflectionPad2D ReplicationPad2D UpsampleBicubic2D UpsampleBilinear2D UpsampleNearest2D Amax Mean Sum "
    "Slice Addmm Cat Expand Mm Permute ReshapeAlias Squeeze T Transpose UnsafeView Unsqueeze View".split()
)


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
        name: Its first producer in the order of the model.
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
        refused: Why the filters of a Conv2d or Linear must all stay, by its name. One that is already
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
        name: Cut(**{side: torch.cat(parts).sort().values for side, parts in found.items() if parts})
        for name, found in sides.items()
    }


def channel_groups(model: nn.Module, example: Tensor) -> Coupling:
    """Finds which filters of a model can be cut, and what goes with each.

    Args:
        model: The model; it is not changed.
        example: An input it takes, ``(N, …)``; only its shape is read where it is floating point.

    Returns:
        The groups, each checked on a copy in float64, and why the filters of every other layer stay.

    Raises:
        ImportError: torch_pruning is not installed.
        ValueError: The copy does not run on two examples like this one.
    """
    graph = _dependency_graph()
    check_model(model, caller="channel_groups")
    obstacles = _obstacles(model)
    trial = Trial(model, example)
    groups: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    with trial.prepared():
        trace = _Trace(graph, trial, obstacles)
        for name, module in trial.model.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if reason := obstacles.get(name) or trace.obstacle(module):
                refused[name] = reason
                continue
            for group, reason in trace.groups_of(name, module):
                reason = reason or _fault(trial, group)
                if reason is None:
                    groups.append(group)
                    continue
                for member in group.producers:
                    refused.setdefault(member.name, reason)
    kept = {member.name for group in groups for member in group.producers}
    refused = {
        _public(model, name): refused[name]
        for name, _ in model.named_modules()
        if name in refused and name not in kept
    }
    return Coupling(tuple(groups), refused)


class _Trace:
    """What torch_pruning's graph of a model says.

    Args:
        graph: The class DependencyGraph.
        trial: The copy of the model that is traced.
        obstacles: Why a module cannot lose channels, by name.
    """

    def __init__(self, graph: Any, trial: Trial, obstacles: Mapping[str, str]) -> None:
        self._names = {module: name for name, module in trial.model.named_modules()}
        self._places = {name: place for place, name in enumerate(self._names.values())}
        self._obstacles = obstacles
        self._calls: Counter[nn.Module] = Counter()
        self._ends: set[Any] = set()  # what made the outputs
        self._done: dict[str, set[int]] = defaultdict(set)  # filters that are in a group already
        self._failure: str | None = None
        self._graph = graph()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: self._calls.update([module]))
            for module in self._names
        ]

        def forward(model: nn.Module, inputs: Tensor) -> Any:
            outputs = model(inputs)
            self._ends = {tensor.grad_fn for tensor in tensors_in(outputs)}
            return outputs

        try:
            self._graph.build_dependency(trial.model, trial.inputs, forward_fn=forward, verbose=False)
        except Exception as error:
            self._failure = f"torch_pruning cannot follow the model ({first_line(error)})"
        else:
            self._keep_last_views()
        finally:
            for hook in hooks:
                hook.remove()

    def obstacle(self, module: nn.Module) -> str | None:
        """Why the graph has nothing to say about the filters of a layer."""
        if self._failure:
            return self._failure
        if not self._calls[module]:
            return "the model does not call it"
        return None if module in self._graph.module2node else "the output does not depend on it"

    def groups_of(self, name: str, layer: nn.Conv2d | nn.Linear) -> Iterator[tuple[ChannelGroup, str | None]]:
        """The groups with the filters of a layer that are in none yet, and why their channels must stay."""
        filters = [row for row in range(layer.weight.shape[0]) if row not in self._done[name]]
        if not filters:
            return
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        owned: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        obstacles: list[str | None] = []
        for item in self._graph.get_pruning_group(layer, prune, filters):
            side = "output" if self._graph.is_out_channel_pruning_fn(item.dep.handler) else "input"
            node = item.dep.target
            if side == "output" and node.grad_fn in self._ends:
                obstacles.append("it makes the model's output")
            if node.module not in self._names:
                obstacles.append(self._obstacle_of_operation(node))
                continue
            member = self._names[node.module]
            if isinstance(node.module, nn.PReLU) and node.module.num_parameters == 1:
                continue
            obstacles.append(self._obstacle_of_member(member, node.module, itself=member == name))
            if _passes_channels(node.module):
                side = "both"
            for channel, unit in zip(item.idxs, item.root_idxs, strict=True):
                owned[member, side][unit].add(channel)
        reason = next(filter(None, obstacles), None)
        for units in _alike(filters, owned):
            group = self._group(units, owned)
            for producer in group.producers:
                self._done[producer.name].update(producer.channels.flatten().tolist())
            yield group, reason

    def _keep_last_views(self) -> None:
        """Lets the last of several views in a row number the channels anew; the graph lets each of them."""
        types = self._graph.ops.OPTYPE

        def leads_to_a_view(node: Any) -> bool:
            reached = list(node.outputs)
            for after in reached:  # grows
                if after.type == types.ELEMENTWISE:
                    reached += [further for further in after.outputs if further not in reached]
            return any(after.type == types.RESHAPE for after in reached)

        views = [node for node in self._graph.module2node.values() if node.type == types.RESHAPE]
        for node in [view for view in views if leads_to_a_view(view)]:
            node.type = types.ELEMENTWISE
            for dependency in (d for n in (node, *node.inputs, *node.outputs) for d in n.dependencies):
                if node in (dependency.source, dependency.target):
                    dependency.index_mapping[0] = None

    def _group(
        self, units: list[int], owned: Mapping[tuple[str, str], Mapping[int, set[int]]]
    ) -> ChannelGroup:
        modules = {name: module for module, name in self._names.items()}
        members = [
            Member(
                name,
                side,
                torch.tensor([sorted(channels[unit]) for unit in units], device="cpu"),
                norm=side == "both" and not isinstance(modules[name], nn.Conv2d),
            )
            for (name, side), channels in sorted(owned.items(), key=lambda item: self._places[item[0][0]])
            if units[0] in channels
        ]
        first = next(member.name for member in members if member.side != "input" and not member.norm)
        return ChannelGroup(first, len(units), tuple(members))

    def _obstacle_of_member(self, name: str, module: nn.Module, *, itself: bool) -> str | None:
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
            return f"its channels go through the {type(module).__name__} {name!r}, which cannot lose any"
        reason = self._obstacles.get(name)
        if reason is None and self._calls[module] > 1:
            reason = f"it is called {self._calls[module]} times"
        if reason and not itself:
            return f"its channels go through {name!r}: {reason}"
        return reason

    def _obstacle_of_operation(self, node: Any) -> str | None:
        if isinstance(node.module, nn.Parameter):
            return f"its channels meet {self._graph._param_to_name[node.module]!r}, a parameter of no layer"
        operation = re.sub(r"Backward\d*$", "", node.grad_fn.name())
        if operation not in PASSES:
            return f"its channels go through {operation}, which may mix them"
        if operation == "ConstantPadNd" and any(node.grad_fn._saved_pad[4:]):
            return "its channels are padded with channels of zeros"
        if operation == "Slice":
            sizes, dim = node.grad_fn._saved_self_sym_sizes, node.grad_fn._saved_dim
            if len(sizes) != 4 or dim % 4 not in (2, 3):
                return "its channels go through a slice"
        return None


def _dependency_graph() -> Any:
    try:
        from torch_pruning.dependency import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
            DependencyGraph,
        )
    except ImportError as error:
        raise ImportError(
            "channel_groups: torch_pruning must be installed to cut whole filters, got "
            f'{error}; pip install "eigendamage-ext[channels]"'
        ) from error
    return DependencyGraph


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
                obstacles[name] = f"{type(module).__name__} has a forward of its own"
            elif parametrize.is_parametrized(module):
                obstacles[name] = "it is parametrized"
            elif any(holders[p] > 1 for p in module._parameters.values() if p is not None):
                obstacles[name] = "its parameters are shared"
        elif isinstance(module, nn.Conv2d) and module.groups > 1 and not _passes_channels(module):
            obstacles.setdefault(name, f"its {module.groups} groups tie filters to input channels")
    return obstacles


def _passes_channels(module: nn.Module) -> bool:
    """Whether output channel i is input channel i, changed: a batch norm or a depthwise convolution."""
    if isinstance(module, nn.Conv2d):
        return 1 < module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def _alike(
    units: Iterable[int], owned: Mapping[tuple[str, str], Mapping[int, set[int]]]
) -> Iterator[list[int]]:
    """Units that own equally many channels of the same members: a group each."""
    kinds: dict[frozenset[tuple[tuple[str, str], int]], list[int]] = defaultdict(list)
    for unit in units:
        kinds[frozenset((key, len(of[unit])) for key, of in owned.items() if unit in of)].append(unit)
    yield from kinds.values()


def _fault(trial: Trial, group: ChannelGroup) -> str | None:
    """Why the group cannot be cut: a random half of its units, tried out in numbers."""
    if group.units == 1:
        return "it has one filter, and one must stay"
    units = torch.randperm(group.units, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return trial.fault(cuts([(group, units[: group.units // 2])]))


def _public(model: nn.Module, name: str) -> str:
    """The name a layer goes by: that of the whole for a child of a factored layer."""
    parent = name.rpartition(".")[0]
    return parent if parent and is_factored(model.get_submodule(parent)) else name
