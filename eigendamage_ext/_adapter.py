"""How a network is called: what of a batch goes into it, and which part of its output the logits are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What a model is called with: model(x), model(*args) or model(**kwargs).
Inputs = Tensor | tuple[Any, ...] | dict[str, Any]

LABELS = ("labels", "label")  # keys of a mapping that are its targets


@dataclass(frozen=True)
class Adapter:
    """How to read batches and outputs that are not of the usual kinds.

    Usual batches are a tensor of inputs, ``(inputs, target)`` and a mapping, whose "labels" or "label" are
    the targets. Inputs are one tensor, a tuple for ``model(*inputs)`` or a mapping for ``model(**inputs)``;
    every tensor among them starts with the batch dimension. Usual outputs are a tensor of logits, something
    that has them as ``logits`` or under "logits", and a tuple that begins with them.

    The target at a position is what the logits at that position predict. A model that predicts the next token
    therefore needs its labels shifted::

        def next_token(batch):
            inputs = dict(batch)
            return inputs, F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)


        ed.estimate_factors(model, loader, adapter=ed.Adapter(split=next_token))

    Attributes:
        split: Takes what the loader yields, returns inputs and targets, or inputs and None.
        logits: Takes what the model returns, returns the logits, one tensor.
    """

    split: Callable[[Any], tuple[Any, Any]] | None = None
    logits: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("split", "logits"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"Adapter: {name} must be callable or None, got {value!r}; pass a function")


def check_adapter(caller: str, adapter: object) -> Adapter:
    """The adapter, or one that does nothing for None."""
    if adapter is None:
        return Adapter()
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"{caller}: adapter must be an Adapter or None, got {type(adapter).__name__}; pass "
            "ed.Adapter(split=…, logits=…)"
        )
    return adapter


def adapter_record(adapter: Adapter) -> dict[str, str | None] | None:
    """An adapter in a record: what its functions are called; None for one that does nothing."""
    names = {
        name: None if function is None else qualified_name(function)
        for name, function in (("split", adapter.split), ("logits", adapter.logits))
    }
    return names if any(names.values()) else None


def unpack(batch: Any, adapter: Adapter, *, caller: str, index: int) -> tuple[Inputs, Tensor | None, int]:
    """Inputs, targets and the number of examples in what a loader yields as batch `index`.

    Raises:
        TypeError, ValueError: It is of no usual kind, or its tensors do not hold equally many examples.
    """
    parts = adapter.split(batch) if adapter.split else _split(batch, caller, index)
    if not isinstance(parts, tuple) or len(parts) != 2:
        raise TypeError(
            f"{caller}: adapter.split must return (inputs, targets), got {_kind(parts)} for batch {index}; "
            "return None for targets that there are not"
        )
    inputs, targets = as_inputs(parts[0]), parts[1]
    if inputs is None or not isinstance(targets, Tensor | None):
        raise TypeError(
            f"{caller}: loader must yield tensors, (inputs, target) or a mapping, got {_kind(batch)} as "
            f"batch {index}; convert its items or pass adapter=ed.Adapter(split=…)"
        )
    examples = count(inputs, f"{caller}: loader must yield batches of examples", f"batch {index}")
    if targets is not None and targets.shape[:1] != (examples,):
        raise ValueError(
            f"{caller}: loader must yield as many targets as inputs, got {examples} examples and targets "
            f"{tuple(targets.shape)} in batch {index}; check its collation"
        )
    return inputs, targets, examples


def as_inputs(value: Any) -> Inputs | None:
    """What a model can be called with, or None if it cannot be called with the value."""
    if isinstance(value, Mapping):
        value = dict(value)
    elif isinstance(value, list):
        value = tuple(value)
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return None
    return value if isinstance(value, tuple | dict | Tensor) and any(named_tensors(value)) else None


def count(inputs: Inputs, rule: str, where: str) -> int:
    """The number N of examples; a ValueError where tensors differ in it, or none has a dimension."""
    sizes = {name: len(tensor) for name, tensor in named_tensors(inputs) if tensor.dim()}
    if not sizes:
        raise ValueError(f"{rule}, got one number as {where}; add a batch dimension")
    (first, examples), *others = sizes.items()
    for name, size in others:
        if size != examples:
            raise ValueError(
                f"{rule}, every tensor with as many, got {examples} in {first!r} and {size} in {name!r} of "
                f"{where}; check its collation"
            )
    return examples


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, tuples and lists, under their keys and numbers."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | tuple | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from named_tensors(part, f"{name}.{key}" if name else str(key))


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Nested mappings, tuples and lists with the function of every tensor in its place."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def take(inputs: Any, examples: int | None) -> Any:
    """The first examples of inputs or targets; all of them for None."""
    return map_tensors(lambda tensor: tensor[:examples] if tensor.dim() else tensor, inputs)


def move(inputs: Any, device: torch.device) -> Any:
    """Inputs or targets on a device."""
    # A device takes what it is sent in order, so only a copy to the CPU has to be waited for.
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"), inputs)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """What the model returns for inputs."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def logits_of(output: Any, adapter: Adapter, *, caller: str) -> Tensor:
    """The logits in what a model returned.

    Raises:
        TypeError: They are not where they usually are, or the adapter found no tensor.
    """
    if adapter.logits:
        logits = adapter.logits(output)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"{caller}: adapter.logits must return a tensor, got {_kind(logits)}; pick one tensor"
            )
        return logits
    for found in _places(output):
        if isinstance(found, Tensor):
            return found
    raise TypeError(
        f"{caller}: model must return logits, as a tensor, as .logits, under 'logits' or first in a tuple, "
        f"got {_kind(output)}; pass adapter=ed.Adapter(logits=…), which takes that and returns one tensor"
    )


def qualified_name(function: Any) -> str:
    """What a function or class is called, for a record; an object by its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def _places(output: Any) -> Iterator[Any]:
    """What the logits may be."""
    yield output
    yield getattr(output, "logits", None)
    if isinstance(output, Mapping):
        yield output.get("logits")
    elif isinstance(output, tuple):
        yield next(iter(output), None)


def _split(batch: Any, caller: str, index: int) -> tuple[Any, Any]:
    """Inputs and targets of a batch of the usual kinds."""
    if isinstance(batch, tuple | list):
        return (
            (batch[0], None) if len(batch) == 1 else (batch[0], batch[1]) if len(batch) == 2 else (None, None)
        )
    if not isinstance(batch, Mapping):
        return batch, None
    keys = [key for key in LABELS if key in batch]
    if len(keys) > 1:
        raise ValueError(
            f"{caller}: loader must yield targets as 'labels' or 'label', got both in batch {index}; "
            "leave one out or pass adapter=ed.Adapter(split=…)"
        )
    inputs = {key: value for key, value in batch.items() if key not in keys}
    targets = batch[keys[0]] if keys else None
    ids = inputs.get("input_ids")
    if (
        isinstance(ids, Tensor)
        and isinstance(targets, Tensor)
        and _repeats(ids, targets, inputs.get("attention_mask"))
    ):
        raise ValueError(
            f"{caller}: {keys[0]!r} must hold what each position predicts, got the 'input_ids' themselves in "
            f"batch {index}; a model of the next token needs them shifted, see ed.Adapter"
        )
    return inputs, targets


def _repeats(ids: Tensor, targets: Tensor, attended: Any) -> bool:
    """Whether the targets of all positions that are attended to, or of all, are the tokens there."""
    if ids.shape != targets.shape or ids.dim() != 2 or not ids.numel():
        return False
    same = ids == targets.to(ids.device)
    if isinstance(attended, Tensor) and attended.shape == ids.shape:
        same |= attended.to(ids.device) == 0
    return bool(same.all())


def _kind(value: Any) -> str:
    """A value in words: its type, and what is in it."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {type(part).__name__}" for key, part in value.items())
    elif isinstance(value, tuple | list):
        inside = ", ".join(type(part).__name__ for part in value)
    else:
        return f"a {type(value).__name__}"
    return f"a {type(value).__name__} of {inside}" if inside else f"an empty {type(value).__name__}"
