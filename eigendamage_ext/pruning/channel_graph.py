"""What torch_pruning's graph says of a model: where the filters of a layer go, and through what.

Only its DependencyGraph is used. Its numbering of channels is a guess that others have to check; what it goes
through is judged here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

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

# A change of the numbers of channels, or None: indices of torch_pruning in and out.
Renumbering = Callable[[list[Any]], list[Any]] | None
Edge = tuple[Renumbering, Renumbering]

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
        self._graph = _dependency_graph()()
        hooks = [
            module.register_forward_pre_hook(lambda module, _: self._calls.update([module]))
            for module in self._names
        ]

        def forward(model: nn.Module, inputs: Tensor) -> list[Tensor]:
            outputs = [tensor for tensor in tensors_in(model(inputs)) if tensor.grad_fn is not None]
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

    def reached(
        self, name: str, layer: nn.Conv2d | nn.Linear, filters: Sequence[int]
    ) -> tuple[Owned, str | None]:
        """The channels of other modules that go with some filters of a layer.

        Args:
            name: The layer.
            layer: The layer itself, one without `obstacle`.
            filters: Its filters: the units.

        Returns:
            What each unit owns, by module and side: "output", "input", or "both" where channels are passed
            on; and why all of them must stay, or None.
        """
        owned: dict[tuple[str, str], dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        prune = self._graph.get_pruner_of_module(layer).prune_out_channels
        try:
            items = list(self._graph.get_pruning_group(layer, prune, list(filters)))
        except Exception as error:
            reason = f"torch_pruning cannot follow its channels ({first_line(error)})"
            return {(name, "output"): {unit: {unit} for unit in filters}}, reason
        output = member = operation = None
        for item in items:
            side = "output" if self._graph.is_out_channel_pruning_fn(item.dep.handler) else "input"
            node, module = item.dep.target, item.dep.target.module
            if side == "output" and node.grad_fn in self._ends:
                output = "it makes the model's output"
            if module not in self._names:
                operation = operation or self._obstacle_of_operation(node)
                continue
            member = member or self._obstacle_of_member(name, module)
            if not isinstance(module, nn.PReLU):
                side = "both" if passes_channels(module) else side
                for channel, unit in zip(item.idxs, item.root_idxs, strict=True):
                    owned[self._names[module], side][unit].add(channel)
        return owned, output or member or operation

    def _number_channels(self) -> None:
        """Numbers channels through views and concatenations by the sizes that were seen.

        torch_pruning guesses these sizes from layers further on, and goes wrong, or on and on, where several
        such operations follow each other.
        """
        types = self._graph.ops.OPTYPE
        nodes = {node.grad_fn: node for node in self._graph.module2node.values()}
        for dependency in (d for node in nodes.values() for d in node.dependencies):
            dependency.index_mapping = [None, None]
        for function, node in nodes.items():
            if node.type not in (types.RESHAPE, types.CONCAT):
                continue
            edges = _through_view(function) if node.type == types.RESHAPE else _through_cat(function)
            node.type = types.ELEMENTWISE  # or torch_pruning would number them again
            for (before, _), (there, back) in zip(function.next_functions, edges, strict=True):
                source = nodes.get(before)
                for a, b, mapping in ((source, node, there), (node, source, back)) if source else ():
                    unset = (d for d in a.dependencies if d.target is b and d.index_mapping[1] is None)
                    if dependency := next(unset, None):
                        dependency.index_mapping[1] = mapping

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
        return [(None, None)]
    m, left = divmod(max(old[1], new[1]), min(old[1], new[1]))
    if m == 1 or left:
        return [(None, None)]

    def split(indices: list[Any]) -> list[Any]:
        return [i._replace(idx=i.idx * m + k) for i in indices for k in range(m)]

    def merge(indices: list[Any]) -> list[Any]:
        return list(dict.fromkeys(i._replace(idx=i.idx // m) for i in indices))

    return [(split, merge) if new[1] > old[1] else (merge, split)]


def _through_cat(cat: Any) -> list[Edge]:
    """There and back for each part of a concatenation: its channels come after those of the parts before."""
    shape, parts = _shape(cat, 0), cat.next_functions
    dim = ((cat._saved_dim + 2**63) % 2**64 - 2**63) % len(shape)  # a negative one is saved as unsigned
    if dim != 1 and (dim, len(shape)) != (2, 3):  # tokens have their channels last
        return [(None, None)] * len(parts)
    sizes = [_shape(before, output)[dim] if before else 0 for before, output in parts]
    if sum(before is None for before, _ in parts) == 1:  # it depends on no weight, as the image
        sizes[sizes.index(0)] = shape[dim] - sum(sizes)

    def edge(start: int, end: int) -> Edge:
        return (
            lambda indices: [i._replace(idx=i.idx + start) for i in indices],
            lambda indices: [i._replace(idx=i.idx - start) for i in indices if start <= i.idx < end],
        )

    return [edge(sum(sizes[:part]), sum(sizes[: part + 1])) for part in range(len(sizes))]


def _shape(function: Any, output: int) -> list[int]:
    """The sizes of what a function of autograd made."""
    return list(function._input_metadata[output].shape)  # the input of its backward
