"""One example of a model's inputs, without what is private in it, and how a file keeps it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext._adapter import Inputs, map_tensors, take

PREFIX = "example:"  # of its tensors' names in a file; no other name has a colon before its last dot


def blank(inputs: Inputs) -> Any:
    """The first example of inputs, every tensor ``(1, …)`` on the CPU.

    Whole numbers stay, as they may be indices; floating-point ones become 0.
    """

    def copied(tensor: Tensor) -> Tensor:
        plain = tensor.detach().to("cpu", copy=True)
        return torch.zeros_like(plain) if plain.is_floating_point() or plain.is_complex() else plain

    return map_tensors(copied, take(inputs, 1))


def to_file(example: Inputs | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """An example as JSON and tensors; None and nothing where it is one of zeros, or cannot be said so."""
    if example is None or (isinstance(example, Tensor) and example.is_floating_point()):
        return None, {}
    parts = _parts(example)
    tensors = {f"{PREFIX}{key}": part for key, part in parts.items() if isinstance(part, Tensor)}
    values = {key: part for key, part in parts.items() if not isinstance(part, Tensor)}
    if not all(map(_plain, values.values())):
        return None, {}
    return {"kind": type(example).__name__, "keys": list(parts), "values": values}, tensors


def from_file(record: Any, tensors: Mapping[str, Tensor]) -> Inputs:
    """What `to_file` was given.

    Raises:
        KeyError, TypeError, ValueError: It is not what `to_file` gives.
    """
    kind, keys, values = record["kind"], record["keys"], dict(record["values"])
    parts = {str(key): values[key] if key in values else tensors[f"{PREFIX}{key}"] for key in keys}
    if kind == "dict":
        return parts
    if kind == "tuple":
        return tuple(parts.values())
    (tensor,) = parts.values()
    if not isinstance(tensor, Tensor):
        raise TypeError(f"example must be a tensor, got {tensor!r}")
    return tensor


def _parts(example: Inputs) -> dict[str, Any]:
    if isinstance(example, dict):
        return example
    return {str(key): part for key, part in enumerate(example if isinstance(example, tuple) else (example,))}


def _plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value))
    )
