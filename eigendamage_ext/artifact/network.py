"""A module that does what a graph says, step by step. Nothing is turned into Python text."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from eigendamage_ext.artifact.allowlist import FUNCTIONS
from eigendamage_ext.artifact.graph import Graph, Graphs, Step, Value


class Network(nn.Module):
    """What became of a module with a forward of its own, under the names its parts had.

    Args:
        graphs: What it does.
        title: The name of the class that it was, to be printed.
    """

    def __init__(self, graphs: Graphs, title: str) -> None:
        super().__init__()
        self._network_graphs = graphs
        self._network_title = title
        self._network_spent = tuple(map(_spent, graphs))

    @property
    def network_graphs(self) -> Graphs:
        """What it does."""
        return self._network_graphs

    @property
    def network_title(self) -> str:
        """The name of the class that it was."""
        return self._network_title

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gave that was saved, for arguments of the same names."""
        graph, spent = self._network_graphs.evaluation, self._network_spent[1]
        if self.training:
            graph, spent = self._network_graphs.training, self._network_spent[0]
        values = self._bound(graph, args, kwargs)
        for step, numbers in zip(graph.steps, spent, strict=True):
            values.append(self._run(step, values))
            for number in numbers:
                values[number] = None  # activations are given back as early as the model itself does
        return _filled(graph.output, values)

    def _get_name(self) -> str:
        return self._network_title

    def _bound(self, graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        names = graph.inputs
        given = dict(zip(names, args, strict=False))
        if len(args) > len(names) or {*given, *kwargs} != {*names} or given.keys() & kwargs.keys():
            raise TypeError(
                f"{self._network_title}: arguments must be {', '.join(names)}, got {len(args)} and "
                f"{list(kwargs)}; those with a default kept it when the model was saved"
            )
        given |= kwargs
        return [given[name] for name in names]

    def _run(self, step: Step, values: list[Any]) -> Any:
        args = [_filled(value, values) for value in step.args]
        kwargs = {name: _filled(value, values) for name, value in step.kwargs.items()}
        if step.kind == "function":
            return FUNCTIONS[step.target](*args, **kwargs)
        if step.kind == "module":
            return self.get_submodule(step.target)(*args, **kwargs)
        if step.kind == "tensor":
            path, _, name = step.target.rpartition(".")
            return getattr(self.get_submodule(path), name)
        subject, *rest = args
        if not isinstance(subject, (Tensor, fx.Proxy)):
            raise TypeError(f"{self._network_title}: {step.target} must be that of a tensor, got {subject!r}")
        found = getattr(subject, step.target)
        return found if step.kind == "attribute" else found(*rest, **kwargs)


def _filled(value: Any, values: list[Any]) -> Any:
    """An argument with values in the places that refer to them."""
    if isinstance(value, Value):
        return values[value.number]
    if isinstance(value, (tuple, list)):
        return type(value)(_filled(part, values) for part in value)
    if isinstance(value, slice):
        return slice(*(_filled(part, values) for part in (value.start, value.stop, value.step)))
    return value


def _spent(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """For each step the values that no later one, nor the output, refers to."""
    needed = set(_values(graph.output))
    spent = []
    count = len(graph.inputs) + len(graph.steps)
    for place, step in zip(reversed(range(count)), reversed(graph.steps), strict=False):
        used = {*_values(step.args), *_values(tuple(step.kwargs.values())), place}
        spent.append(tuple(used - needed))
        needed |= used
    return tuple(reversed(spent))


def _values(value: Any) -> list[int]:
    """The numbers of the values in an argument."""
    if isinstance(value, Value):
        return [value.number]
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    if isinstance(value, (tuple, list)):
        return [number for part in value for number in _values(part)]
    return []
