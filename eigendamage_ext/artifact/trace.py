"""What the modules of a model do, one module at a time.

Every module with a forward of its own is traced by itself, so the parts of a model stay its parts. It is
traced in training and in evaluation, twice each, because what it does must be the same every time.
"""

import copy
import itertools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from eigendamage_ext.artifact.allowlist import FUNCTIONS, METHODS, known_class
from eigendamage_ext.artifact.graph import Graph, Graphs, Step, UntraceableError, Value, joined
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

    graphs: dict[str, Graphs] = field(default_factory=dict)
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
        _visit(skeleton(model), "", {}, traced)
    return traced


Calls = dict[bool, list[Call]]  # whether in training: how a module is called then


def _visit(module: nn.Module, path: str, calls: Calls, traced: Traced) -> None:
    """Traces a module and those it calls.

    Args:
        module: Any module.
        path: Its path in the model.
        calls: How others call it; empty: as if it stood alone.
        traced: What was found; this grows.
    """
    if known_class(module) == "Sequential":
        for name, child in module.named_children():
            _visit(child, joined(path, name), {}, traced)
    if known_class(module) is not None:
        return
    inner: dict[str, Calls] = {}
    if isinstance(module, Network):
        found = [module.network_graphs]
        inner = {step.target: {} for graph in found[0] for step in graph.steps if step.kind == "module"}
    else:
        try:
            some = [call for called in calls.values() for call in called] or [Call.alone(module)]
            modes = (
                [_graph(module, path, call, training, inner, traced) for call in calls.get(training, some)]
                for training in (True, False)
            )
            found = list(itertools.starmap(Graphs, itertools.product(*modes)))
        except UntraceableError as error:
            raise UntraceableError(f"{_called(path, module)}: {error}") from error
    if any(graphs != traced.graphs.setdefault(path, found[0]) for graphs in found):
        raise UntraceableError(f"{_called(path, module)} is called in different ways")
    for name, how in inner.items():
        _visit(module.get_submodule(name), joined(path, name), how, traced)


def _graph(
    module: nn.Module, path: str, call: Call, training: bool, inner: dict[str, Calls], traced: Traced
) -> Graph:
    """What a module does in one mode when it is called so; adds to `inner` how it calls others."""
    first, second = (_traced(module, call, training) for _ in range(2))
    graph = _read(first.graph)
    if _read(second.graph) != graph:
        raise UntraceableError("it does something else each time")
    for name, how in first.calls:
        known = inner.setdefault(name, {})
        if how is not None:
            known.setdefault(training, []).append(how)
    for name, tensor in first.tensors.items():
        others = second.tensors[name], traced.constants.setdefault(joined(path, name), tensor)
        if not all(_same(tensor, other) for other in others):
            raise UntraceableError(f"the tensor {name!r} is another each time")
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


def _read(graph: fx.Graph) -> Graph:
    """What torch.fx found, by the names that files have for it."""
    numbers = {node: number for number, node in enumerate(graph.nodes)}

    def read(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Value(numbers[value])
        if isinstance(value, slice):
            return slice(read(value.start), read(value.stop), read(value.step))
        for kind in (tuple, list):
            if isinstance(value, kind):
                return kind(map(read, value))
        if isinstance(value, dict) and any(isinstance(part, fx.Node) for part in value.values()):
            raise UntraceableError("it makes a dict of tensors, which no file may hold; return a tuple")
        return value

    inputs, steps = [], []
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs.append(str(node.target))
        elif node.op == "output":
            output = read(node.args[0])
        else:
            steps.append(_step(node, read(node.args), {name: read(v) for name, v in node.kwargs.items()}))
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


def skeleton(model: nn.Module) -> nn.Module:
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
