"""The modules of a model as JSON: class, constructor arguments, and what those with own code do."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext.artifact.allowlist import LEAVES, known_class
from eigendamage_ext.artifact.graph import UntraceableError, is_path, joined, to_json
from eigendamage_ext.artifact.leaves import arguments_of, changes, without_memory
from eigendamage_ext.artifact.network import Network
from eigendamage_ext.artifact.rebuild import is_dense
from eigendamage_ext.artifact.trace import Traced, trace
from eigendamage_ext.pruning.channel_check import first_line


def describe(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All that `rebuild` needs besides the state.

    Args:
        model: The model; it is not changed.

    Returns:
        The description, as JSON, and the tensors that the model needs and its state lacks, by path.

    Raises:
        UntraceableError: The model cannot be described.
        ArtifactError: A constant in it may not be in a file.
    """
    traced = trace(model)
    modules: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    paths: dict[nn.Module, str] = {}
    for path, module in _walk(model, "", ()):
        if paths.setdefault(module, path) != path:
            if known_class(module) not in LEAVES:
                raise UntraceableError(f"{path!r} is the same module as {paths[module]!r}")
            modules.append({"path": path, "same_as": paths[module]})
            continue
        own = _tensors(module) | _constants(path, traced)
        entry = _entry(path, module, traced)
        modules.append(entry)
        tensors |= {joined(path, name): tensor for name, tensor in own.items()}
        extra |= {joined(path, name): own[name] for name in entry.get("extra", ())}
    _check_memory(tensors)
    record = {
        "modules": modules,
        "frozen": [n for n, t in tensors.items() if isinstance(t, nn.Parameter) and not t.requires_grad],
        "tied": _tied(tensors),
        "strides": {name: list(tensor.stride()) for name, tensor in tensors.items() if _is_permuted(tensor)},
    }
    return record, extra


def _walk(module: nn.Module, path: str, around: tuple[nn.Module, ...]) -> Iterator[tuple[str, nn.Module]]:
    """The modules by every path they have, parents first, without what is inside of leaves."""
    if module in around:
        raise UntraceableError(f"{path!r} is inside itself")
    if path and not is_path(path):
        raise UntraceableError(f"it has a module {path!r}; names must be letters, digits and underscores")
    yield path, module
    if known_class(module) not in LEAVES:
        for name, child in module._modules.items():
            if child is not None:
                yield from _walk(child, joined(path, name), (*around, module))


def _entry(path: str, module: nn.Module, traced: Traced) -> dict[str, Any]:
    """One module in JSON."""
    kind, graphs = known_class(module) or "Module", traced.graphs.get(path)
    entry: dict[str, Any] = {"path": path, "class": kind, "training": module.training}
    if kind in LEAVES:
        return entry | {"arguments": _arguments(path, module, LEAVES[kind])}
    if graphs is not None:
        entry |= {"class": "Network", "title": _title(module), "graph": graphs.evaluation.to_json()}
        if graphs.training != graphs.evaluation:
            entry["in_training"] = graphs.training.to_json()
    hidden = module._non_persistent_buffers_set
    own = {
        "parameters": [name for name, p in module._parameters.items() if p is not None],
        "buffers": [name for name, b in module._buffers.items() if b is not None and name not in hidden],
        "extra": [name for name, b in module._buffers.items() if b is not None and name in hidden]
        + list(_constants(path, traced)),
    }
    return entry | {key: names for key, names in own.items() if names}


def _title(module: nn.Module) -> str:
    """The name of the class that a module had before it was ever saved."""
    return module.network_title if isinstance(module, Network) else type(module).__name__


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module, of a leaf all inside it, by every name."""
    inside = known_class(module) in LEAVES
    return {
        **dict(module.named_parameters(recurse=inside, remove_duplicate=False)),
        **dict(module.named_buffers(recurse=inside, remove_duplicate=False)),
    }


def _constants(path: str, traced: Traced) -> dict[str, Tensor]:
    """Tensors that a module computes with and does not register, by name."""
    found = ((*name.rpartition("."), tensor) for name, tensor in traced.constants.items())
    return {name: tensor for owner, _, name, tensor in found if owner == path}


def _arguments(path: str, module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """What its constructor makes such a module of, in JSON; what has its default is left out."""
    try:
        arguments = arguments_of(module, kind)
        changed = changes(module, without_memory(kind, arguments))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        changed = {first_line(error)}
    if changed:
        raise UntraceableError(
            f"{kind.__name__} {path!r} was changed after it was made ({', '.join(sorted(changed))})"
        )
    return {name: to_json(value) for name, value in arguments.items()}


def _tied(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Names of tensors that are the one of an earlier name."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in tensors.items()
        if first.setdefault(id(tensor), name) != name
    }


def _check_memory(tensors: dict[str, Tensor]) -> None:
    """Refuses tensors that are not the same and yet share memory: what is read again would share none."""
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr() if tensor.numel() else 0
        owner = owners.setdefault(memory, name)
        if memory and tensors[owner] is not tensor:
            raise UntraceableError(f"{name!r} shares memory with {owner!r}")


def _is_permuted(tensor: Tensor) -> bool:
    """Whether it lies in memory without gaps in another order than its dimensions', as in channels_last."""
    plain = torch.empty(tensor.shape, device="meta").stride()
    return tensor.stride() != plain and is_dense(tensor.shape, tensor.stride())
