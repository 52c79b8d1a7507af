"""What the modules of a model do, one module at a time.

Every module with a forward of its own is traced by itself, so the parts of a model stay its parts. It is
traced in training and in evaluation; what it does in both must be the same but for constants.
"""

import copy
import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from eigendamage_ext.artifact.allowlist import FUNCTIONS, METHODS, known_class
from eigendamage_ext.artifact.graph import ByMode, Graph, Step, UntraceableError, Value, joined
from eigendamage_ext.artifact.network import Network
from eigendamage_ext.artifact.proxies import Call, Tracer
from eigendamage_ext.pruning.channel_check import first_line

_NAMES = {function: name for name, function in FUNCTIONS.items()}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class Traced:
    """What was found.

    Attributes:
        graphs: What each module with a forward of its own does, by its path.
        constants: Tensors that graphs use and that no module registers, by their paths.
    """

    graphs: dict[str, Graph] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)


def trace(model: nn.Module) -> Traced:
    """Writes down what a model does with its inputs; arguments with a default keep it.

    Args:
        model: The model; a copy without its weights is traced, and the random state stays as it is.

    Raises:
        UntraceableError: It cannot be followed, or it does something that no file may hold.
    """
    for name, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in _HOOKS):
            raise UntraceableError(f"{_called(name, module)} has hooks")
        if "forward" in vars(module):
            raise UntraceableError(f"{_called(name, module)} was given another forward")
        if type(module).train is not nn.Module.train:
            raise UntraceableError(f"{_called(name, module)} has a train() of its own")
    traced = Traced()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        _visit(_skeleton(model), "", [], traced)
    return traced


def _visit(module: nn.Module, path: str, calls: list[tuple[Call, Call]], traced: Traced) -> None:
    """Traces a module and those it calls.

    Args:
        module: Any module.
        path: Its path in the model.
        calls: How others call it, in training and in evaluation; empty: as if it stood alone.
        traced: What was found; this grows.
    """
    if known_class(module) == "Sequential":
        for name, child in module.named_children():
            _visit(child, joined(path, name), [], traced)
    if known_class(module) is not None:
        return
    inner: dict[str, list[tuple[Call, Call]]] = {}
    if isinstance(module, Network):
        graphs = [module.network_graph]
        inner = {step.target: [] for step in module.network_graph.steps if step.kind == "module"}
    else:
        try:
            calls = calls or [(Call.alone(module), Call.alone(module))]
            graphs = [_graph(module, path, call, inner, traced) for call in calls]
        except UntraceableError as error:
            raise UntraceableError(f"{_called(path, module)}: {error}") from error
    if any(graph != traced.graphs.setdefault(path, graphs[0]) for graph in graphs):
        raise UntraceableError(f"{_called(path, module)} is called in different ways")
    for name, found in inner.items():
        _visit(module.get_submodule(name), joined(path, name), found, traced)


def _graph(
    module: nn.Module,
    path: str,
    calls: tuple[Call, Call],
    inner: dict[str, list[tuple[Call, Call]]],
    traced: Traced,
) -> Graph:
    """What a module does when it is called so; adds to `inner` how it calls others."""
    (training, evaluation), again = (
        [_traced(module, call, mode) for call, mode in zip(calls, (True, False), strict=True)]
        for _ in range(2)
    )
    graph = _merged(training.graph, evaluation.graph)
    if _merged(*(tracer.graph for tracer in again)) != graph:
        raise UntraceableError("it does something else each time")
    for (name, call), (_, in_evaluation) in zip(training.calls, evaluation.calls, strict=True):
        known = inner.setdefault(name, [])
        if call is not None and in_evaluation is not None:
            known.append((call, in_evaluation))
    for name, tensor in training.tensors.items():
        if not _same(tensor, evaluation.tensors[name]):
            raise UntraceableError(f"the tensor {name!r} is another each time")
        traced.constants[joined(path, name)] = tensor
    return graph


def _traced(module: nn.Module, call: Call, training: bool) -> Tracer:
    """Traces a module in one mode."""
    before = dict(vars(module))
    for part in module.modules():
        part.training = training
    tracer = Tracer(call)
    try:
        tracer.trace(module)
        tracer.keep_tensors()
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(f"torch.fx cannot follow it ({first_line(error)})") from error
    finally:
        for name in vars(module).keys() - before.keys():
            delattr(module, name)  # what it made of constants; the other mode makes them again
    return tracer


def _merged(training: fx.Graph, evaluation: fx.Graph) -> Graph:
    """One graph that does in either mode what was found in it."""
    pairs = list(zip(training.nodes, evaluation.nodes, strict=False))
    if len(training.nodes) != len(evaluation.nodes) or any(
        (a.op, a.target, a.kwargs.keys()) != (b.op, b.target, b.kwargs.keys()) for a, b in pairs
    ):
        raise UntraceableError("it does one thing in training and another in evaluation")
    numbers = {node: number for number, pair in enumerate(pairs) for node in pair}

    def merged(a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) and isinstance(b, fx.Node) and numbers[a] == numbers[b]:
            return Value(numbers[a])
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(merged(a.start, b.start), merged(a.stop, b.stop), merged(a.step, b.step))
        for kind in (tuple, list):
            if isinstance(a, kind) and isinstance(b, kind) and len(a) == len(b):
                return kind(itertools.starmap(merged, zip(a, b, strict=True)))
        if type(a) is type(b) and (a is b or a == b or (a != a and b != b)):
            return a
        if all(isinstance(x, bool | int | float | str | None) for x in (a, b)):
            return ByMode(a, b)
        raise UntraceableError(f"it uses {a!r} in training and {b!r} in evaluation")

    inputs, steps = [], []
    for a, b in pairs:
        if a.op == "placeholder":
            inputs.append(str(a.target))
        elif a.op == "output":
            output = merged(a.args[0], b.args[0])
        else:
            args = merged(a.args, b.args)
            kwargs = {name: merged(value, b.kwargs[name]) for name, value in a.kwargs.items()}
            steps.append(_step(a, args, kwargs))
    return Graph(tuple(inputs), tuple(steps), output)


def _step(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
    """A node of torch.fx by the names that files have for such."""
    target = node.target
    if node.op == "get_attr":
        return Step("tensor", str(target))
    if node.op == "call_module":
        return Step("module", str(target), args, kwargs)
    if node.op == "call_method" and target in METHODS:
        return Step("method", str(target), args, kwargs)
    if target is getattr:
        return Step("attribute", args[1], args[:1])
    name = _NAMES.get(target) if callable(target) else None
    if name is None:
        raise UntraceableError(f"it calls {getattr(target, '__name__', target)!r}, which no file may hold")
    return Step("function", name, args, kwargs)


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters and buffers have shapes alone: it may well change in tracing."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UntraceableError(f"it cannot be copied ({first_line(error)})") from error


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.device == b.device and torch.equal(a, b)


def _called(path: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{kind} {path!r}" if path else f"the {kind}"
