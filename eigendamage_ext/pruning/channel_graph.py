"""What torch_pruning's graph says of a model: where the filters of a layer go, and through what.

Only its DependencyGraph is used, and of that what depends on what. Channels are followed along it here; the
result is a guess that has to be checked.
"""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from eigendamage_ext._adapter import Inputs, call
from eigendamage_ext.pruning.channel_check import Trial, first_line, tensors_in

# Operations of autograd, without "Backward" and a number, through which a channel may pass: one number at a
# time, one channel at a time, or only to another place, which the check in numbers then judges.
PASSES = frozenset(
    "Abs Add Clamp Clone Div Elu Exp Gelu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu LogSigmoid "
    "Maximum Minimum Mish Mul Neg Pow PreluKernel Relu Rsub Sigmoid Sign Silu Softplus Softshrink Sqrt Sub "
    "Tanh Threshold ToCopy Where AdaptiveAvgPool2D AdaptiveMaxPool2D Amax AvgPool2D MaxPool2DWithIndices "
    "Mean Sum ConstantPadNd ReflectionPad2D ReplicationPad2D Slice UpsampleBicubic2D UpsampleBilinear2D "
    "UpsampleNearest2D Addmm AsStrided Cat Expand Mm Permute ReshapeAlias Squeeze Stack T Transpose "
    "UnsafeView Unsqueeze View".split()
)

# From a channel to those it becomes, there and back.
Edge = tuple[Callable[[int], Iterable[int]], Callable[[int], Iterable[int]]]

# (module, side) to unit to the channels of that side that the unit owns.
Owned = Mapping[tuple[str, str], Mapping[int, set[int]]]


class ChannelGraph:
    """The graph of a model.

    Args:
        trial: The copy of the model that is traced.
        obstacles: Why a module cannot lose channels, by name.

    Raises:
        ImportError: torch_pruning is not installed.
    """

    def __init__(self, trial: Trial, obstacles: Mapping[str, str]) -> None:
        self._names = {module: name for name, module in trial.model.named_modules()}
        self._obstacles = obstacles
        self._calls: Counter[nn.Module] = Counter()
        self._ends: set[Any] = set()  # what made the outputs
        self._failure: str | None = None
        self._renumber: dict[int, Callable[[int], Iterable[int]]] = {}  # by id of the dependency
        self._graph = dependency_graph()()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: self._calls.update([module]))
            for module in self._names
        ]

        def forward(model: nn.Module, inputs: Inputs) -> list[Tensor]:
            outputs = [tensor for tensor in tensors_in(call(model, inputs)) if tensor.grad_fn is not None]
            self._ends = {tensor.grad_fn for tensor in outputs}
            return outputs

        circular = [m for m in self._names if isinstance(m, nn.Conv2d) and m.padding_mode == "circular"]
        try:
            for module in circular:  # which pads in many steps; the channels do not mind
                module.padding_mode = "replicate"
            self._graph.build_dependency(trial.model, trial.inputs, forward_fn=forward, verbose=False)
        except Exception as error:
            self._failure = f"torch_pruning cannot follow the model ({first_line(error)})"
        else:
            self._number_channels()
        finally:
            for module in circular:
                module.padding_mode = "circular"
            for hook in hooks:
                hook.remove()

    def obstacle(self, module: nn.Module) -> str | None:
        """Why the graph has nothing to say about the filters of a layer."""
        if self._failure:
            return self._failure
        if not self._calls[module]:
            return "the model does not call it"
        return None if module in self._graph.module2node else "the output does not depend on it"

    def reached(self, name: str, layer: nn.Module, filters: Sequence[int]) -> tuple[Owned, str | None]:
        """The channels of other modules that go with some filters of a layer.

        Args:
            name: The layer.
            layer: The layer itself, one without `obstacle`.
            filters: Its filters: the units.

        Returns:
            What each unit owns, by module and side: "output", "input", or "both" where channels are passed
            on; and why all of them must stay, or None.
        """
        units, reason = self._spread(layer, filters)
        owned: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        output = member = operation = None
        for (node, prune), channels in units.items():
            side = "output" if self._graph.is_out_channel_pruning_fn(prune) else "input"
            if side == "output" and node.grad_fn in self._ends:
                output = "it makes the model's output"
            if node.module not in self._names:
                operation = operation or self._obstacle_of_operation(node)
                continue
            member = member or self._obstacle_of_member(name, node.module)
            if not isinstance(node.module, nn.PReLU):
                side = "both" if passes_channels(node.module) else side
                for channel, unit in channels.items():
                    owned[self._names[node.module], side][unit].add(channel)
        return owned, output or member or operation or reason

    def _spread(
        self, layer: nn.Module, filters: Iterable[int]
    ) -> tuple[dict[tuple[Any, Any], dict[int, int]], str | None]:
        """Follows filters along the dependencies of the graph.

        Returns:
            By node of the graph and what prunes it there, the unit of each channel; and a reason where a
            channel would belong to two.
        """
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        units: dict[tuple[Any, Any], dict[int, int]] = defaultdict(dict)
        reason = None
        waiting = [(self._graph.module2node[layer], prune, [(unit, unit) for unit in filters])]
        while waiting:
            node, prune, pairs = waiting.pop()
            width = math.inf if node.module in self._names else _bound(node.grad_fn)
            if width == 1:  # one number for all channels
                continue
            known, new = units[node, prune], []
            for channel, unit in pairs:
                if channel >= width:
                    reason = "its channels go where torch_pruning does not follow"
                elif channel not in known:
                    known[channel] = unit
                    new.append((channel, unit))
                elif known[channel] != unit:
                    reason = "its filters are tied to each other"
            for dependency in node.dependencies if new else ():
                if dependency.is_triggered_by(prune):
                    renumber = self._renumber.get(id(dependency))
                    if (
                        moved := [(c, u) for channel, u in new for c in renumber(channel)]
                        if renumber
                        else new
                    ):
                        waiting.append((dependency.target, dependency.handler, moved))
        return units, reason

    def _number_channels(self) -> None:
        """Notes how dependencies renumber channels: at views and concatenations, by the sizes that were seen.

        torch_pruning guesses these sizes from layers further on, and goes wrong, or on and on, where several
        such operations follow each other.
        """
        types = self._graph.ops.OPTYPE
        nodes = {node.grad_fn: node for node in self._graph.module2node.values()}
        for function, node in nodes.items():
            if node.type not in (types.RESHAPE, types.CONCAT):
                continue
            edges = _through_view(function) if node.type == types.RESHAPE else _through_cat(function)
            for (before, _), (there, back) in zip(function.next_functions, edges, strict=True):
                source = nodes.get(before)
                for a, b, renumber in ((source, node, there), (node, source, back)) if source else ():
                    free = (d for d in a.dependencies if d.target is b and id(d) not in self._renumber)
                    if dependency := next(free, None):
                        self._renumber[id(dependency)] = renumber

    def _obstacle_of_member(self, origin: str, module: nn.Module) -> str | None:
        name = self._names[module]
        kinds = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d
        if (
            not isinstance(module, kinds) and getattr(module, "num_parameters", 0) != 1
        ):  # a PReLU may have one
            return f"its channels go through the {type(module).__name__} {name!r}, which cannot lose any"
        reason = self._obstacles.get(name)
        if reason is None and self._calls[module] > 1:
            reason = f"it is called {self._calls[module]} times"
        if reason and name != origin:
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


def dependency_graph() -> Any:
    """The class DependencyGraph of torch_pruning, or an ImportError that says how to install it."""
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


def passes_channels(module: nn.Module) -> bool:
    """Whether output channel i is input channel i, changed: a batch norm or a depthwise convolution."""
    if isinstance(module, nn.Conv2d):
        return 1 < module.groups == module.in_channels == module.out_channels
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def _through_view(view: Any) -> list[Edge]:
    """There and back through a view: a channel is m numbers in a row, or m numbers are a channel."""
    [(before, output)] = view.next_functions
    old, new = _shape(before, output), _shape(view, 0)
    if min(len(old), len(new)) < 2 or (2 in (len(old), len(new)) and old[-1] == new[-1]):  # rows of a Linear
        return [(_same, _same)]
    m, left = divmod(max(old[1], new[1]), min(old[1], new[1]))
    if m == 1 or left:
        return [(_same, _same)]

    def split(channel: int) -> Iterable[int]:
        return range(channel * m, (channel + 1) * m)

    def merge(channel: int) -> Iterable[int]:
        return (channel // m,)

    return [(split, merge) if new[1] > old[1] else (merge, split)]


def _through_cat(cat: Any) -> list[Edge]:
    """There and back for each part of a concatenation: its channels come after those of the parts before."""
    shape, parts = _shape(cat, 0), cat.next_functions
    dim = ((cat._saved_dim + 2**63) % 2**64 - 2**63) % len(shape)  # a negative one is saved as unsigned
    if dim != 1 and (dim, len(shape)) != (2, 3):  # tokens have their channels last
        return [(_same, _same)] * len(parts)
    sizes = [_shape(before, output)[dim] if before else 0 for before, output in parts]
    if sum(before is None for before, _ in parts) == 1:  # it depends on no weight, as the image
        sizes[sizes.index(0)] = shape[dim] - sum(sizes)

    def edge(start: int, end: int) -> Edge:
        return (
            lambda channel: (channel + start,),
            lambda channel: (channel - start,) if start <= channel < end else (),
        )

    return [edge(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(len(sizes))]


def _same(channel: int) -> Iterable[int]:
    return (channel,)


def _shape(function: Any, output: int) -> list[int]:
    """The sizes of what a function of autograd made."""
    return list(function._input_metadata[output].shape)  # the input of its backward


def _bound(function: Any) -> int:
    """No channel that a function of autograd sees has this number: the largest size around it."""
    shapes = [_shape(before, output) for before, output in function.next_functions if before]
    return max(1, *itertools.chain(_shape(function, 0), *shapes))
