"""A module made again from what a file says of it. Nothing there is trusted, and none of it is run.

Modules are built without memory; their tensors are those of the file.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eigendamage_ext.artifact.allowlist import CONTAINERS, LEAVES
from eigendamage_ext.artifact.graph import Graph, Graphs, from_json, is_name, is_path, joined, refusal
from eigendamage_ext.artifact.leaves import parameters_of, without_memory
from eigendamage_ext.artifact.network import Network

MODULES = 20_000  # the most in a file
T = TypeVar("T", bound=Tensor)


def rebuild(record: Any, state: dict[str, Tensor], extra: dict[str, Tensor]) -> nn.Module:
    """The module of a description.

    Args:
        record: What `describe` said, not trusted.
        state: The state, by path.
        extra: The tensors that the module needs and its state lacks, likewise.

    Returns:
        The module, its tensors where they were, in the modes and with the flags that were saved.

    Raises:
        ArtifactError: They do not fit together.
    """
    match record:
        case {
            "modules": [_, *_] as entries,
            "frozen": [*frozen],
            "tied": dict(tied),
            "strides": dict(strides),
            **more,
        } if not more:
            pass
        case _:
            raise refusal("the network", "have modules, frozen, tied and strides", record)
    if len(entries) > MODULES:
        raise refusal("the network", f"have at most {MODULES:,} modules", len(entries))
    supply = _Supply({**state, **extra}, frozen, tied, strides)
    made: dict[str, nn.Module] = {}
    for entry in entries:
        _add(entry, made, supply)
    model = made[""]
    tensors = {
        *dict(model.named_parameters(remove_duplicate=False)),
        *dict(model.named_buffers(remove_duplicate=False)),
    }
    in_state = model.state_dict().keys()
    if in_state != state.keys() or tensors - in_state != extra.keys():
        wrong = sorted((in_state ^ state.keys()) | ((tensors - in_state) ^ extra.keys()))
        raise refusal("tensors in the file", "be those of its modules", wrong)
    for path, module in made.items():
        if isinstance(module, Network):
            for graph in module.network_graphs:
                _check_graph(path, graph, made, tensors)
    return model


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor of these strides has elements and lies in memory without gaps and overlaps."""
    size = 1
    for stride, length in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != size or not length:
            return False
        size *= length
    return True


class _Supply:
    """The tensors of a file, each to be taken by the module that has it.

    Args:
        tensors: By path.
        frozen: Paths of parameters that do not require a gradient.
        tied: Paths of tensors that are those of other paths.
        strides: Paths of tensors whose elements lie in another order than that of the file.
    """

    def __init__(
        self, tensors: dict[str, Tensor], frozen: list[Any], tied: dict[str, Any], strides: dict[str, Any]
    ) -> None:
        self._tensors = tensors
        self._frozen = {path for path in frozen if isinstance(path, str)}
        self._tied = tied
        self._strides = strides
        self._taken: dict[str, Tensor] = {}

    def parameter(self, path: str, shape: torch.Size | None = None) -> nn.Parameter:
        """The parameter of that path; `shape`: what it must have."""
        if path in self._tied:
            parameter = self._same_as(path)
        else:
            tensor, trained = self._tensor(path), path not in self._frozen
            if trained and not (tensor.is_floating_point() or tensor.is_complex()):
                raise refusal(f"parameter {path!r}", "be frozen where it has no gradient", tensor.dtype)
            parameter = self._taken[path] = nn.Parameter(tensor, requires_grad=trained)
        if not isinstance(parameter, nn.Parameter):
            raise refusal(f"parameter {path!r}", "be tied to a parameter", self._tied[path])
        return _checked(path, parameter, shape)

    def buffer(self, path: str, shape: torch.Size | None = None) -> Tensor:
        """The buffer of that path, likewise."""
        if path in self._tied:
            return _checked(path, self._same_as(path), shape)
        return _checked(path, self._taken.setdefault(path, self._tensor(path)), shape)

    def _same_as(self, path: str) -> Tensor:
        found = self._taken.get(self._tied[path]) if isinstance(self._tied[path], str) else None
        if found is None:
            raise refusal(f"tensor {path!r}", "be tied to one before it", self._tied[path])
        return found

    def _tensor(self, path: str) -> Tensor:
        tensor, strides = self._tensors.get(path), self._strides.get(path)
        if tensor is None:
            raise refusal("tensors in the file", f"hold {path!r}", "none of that name")
        if strides is None:
            return tensor
        if (
            not isinstance(strides, list)
            or len(strides) != tensor.dim()
            or not all(type(stride) is int and 0 <= stride < 2**63 for stride in strides)
            or not is_dense(tensor.shape, strides)
        ):
            raise refusal(f"strides of {path!r}", "order its elements without gaps", strides)
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(
            tensor
        )


def _checked(path: str, tensor: T, shape: torch.Size | None) -> T:
    if shape is not None and tensor.shape != shape:
        raise refusal(f"tensor {path!r}", f"have the shape {tuple(shape)}", tuple(tensor.shape))
    return tensor


def _add(entry: Any, made: dict[str, nn.Module], supply: _Supply) -> None:
    """Makes one module and puts it in its place."""
    match entry:
        case {"path": str(path), "same_as": str(first), **rest} if not rest:
            module = made.get(first)
            if type(module) not in LEAVES.values():
                raise refusal(f"module {path!r}", "be the same as a layer before it", first)
        case {"path": str(path), "class": str(kind), "training": bool(training), **rest}:
            if kind in LEAVES:
                module = _leaf(path, kind, {**rest}, supply)
                module.train(training)
            else:
                module = _container(path, kind, {**rest}, supply)
                module.training = training
        case _:
            raise refusal("a module", "have a path, a class and a mode", entry)
    assert module is not None
    parent = made.get(path.rpartition(".")[0]) if made else None
    if made:
        if not is_path(path) or path in made or type(parent) not in (Network, *CONTAINERS.values()):
            raise refusal("paths of modules", "be new names inside modules before them", path)
        assert parent is not None
        try:
            parent.add_module(path.rpartition(".")[2], module)
        except (KeyError, TypeError) as error:
            raise refusal("paths of modules", "be free", path) from error
    elif path:
        raise refusal("the first module", "be the whole model", path)
    made[path] = module


def _leaf(path: str, kind: str, rest: dict[Any, Any], supply: _Supply) -> nn.Module:
    """A layer, built without memory."""
    known = parameters_of(LEAVES[kind]).keys()
    match rest:
        case {"arguments": dict(given), **more} if not more and given.keys() <= known:
            arguments = {name: from_json(value) for name, value in given.items()}
        case _:
            raise refusal(f"{kind} {path!r}", "have arguments that its class has", rest)
    try:
        leaf = without_memory(LEAVES[kind], arguments)
    except Exception as error:
        raise refusal(f"{kind} {path!r}", f"have arguments that make one ({error})", given) from error
    for name, owner in leaf.named_modules():
        for key, parameter in owner._parameters.items():
            if parameter is not None:
                setattr(owner, key, supply.parameter(joined(path, joined(name, key)), parameter.shape))
        for key, buffer in owner._buffers.items():
            if buffer is not None:
                setattr(owner, key, supply.buffer(joined(path, joined(name, key)), buffer.shape))
    return leaf


def _container(path: str, kind: str, rest: dict[Any, Any], supply: _Supply) -> nn.Module:
    """A module whose parts follow."""
    module: nn.Module
    if kind == "Network":
        title = rest.pop("title", None)
        if not is_name(title):
            raise refusal(f"the class of {path!r}", "be a plain name", title)
        graph = Graph.from_json(rest.pop("graph", None))
        in_training = Graph.from_json(rest.pop("in_training")) if "in_training" in rest else graph
        module = Network(Graphs(in_training, graph), title)
    elif kind in CONTAINERS:
        module = CONTAINERS[kind]()
    else:
        raise refusal(f"the class of {path!r}", "be one that this version knows", kind)
    for what in ("parameters", "buffers", "extra"):
        names = rest.pop(what, [])
        if not isinstance(names, list) or not all(map(is_name, names)):
            raise refusal(f"{what} of {path!r}", "be plain names", names)
        for name in names:
            try:
                if what == "parameters":
                    module.register_parameter(name, supply.parameter(joined(path, name)))
                else:
                    tensor = supply.buffer(joined(path, name))
                    module.register_buffer(name, tensor, persistent=what == "buffers")
            except KeyError as error:
                raise refusal(f"{what} of {path!r}", "have names that are free", name) from error
    if rest:
        raise refusal(f"module {path!r}", "hold nothing else", list(rest))
    return module


def _check_graph(path: str, graph: Graph, made: dict[str, nn.Module], tensors: set[str]) -> None:
    """Refuses a graph that uses parts its module does not have."""
    for step in graph.steps:
        target = joined(path, step.target)
        if step.kind == "tensor" and target not in tensors:
            raise refusal(f"the graph of {path!r}", "use tensors that are there", step.target)
        if step.kind == "module":
            callee = type(made.get(target))
            if callee not in (Network, nn.Sequential, *LEAVES.values()):
                raise refusal(f"the graph of {path!r}", "call modules that are there", step.target)
