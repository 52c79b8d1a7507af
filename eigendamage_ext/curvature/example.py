"""One example of a model's inputs, without what is private in it, and how a file keeps it."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from eigendamage_ext._adapter import Inputs, map_tensors, take
from eigendamage_ext._records import check_one_of, record

PREFIX = "example:"  # of its tensors' names in a file; no other name has a colon before its last dot


class _Stated(TypedDict):
    """What a file says of an example besides its tensors."""

    kind: str
    keys: tuple[str, ...]
    values: dict[str, Any]


def blank(inputs: Inputs) -> Any:
    """The first example of inputs, every tensor ``(1, …)`` on the CPU.

    Whole numbers stay, as they may be indices; floating-point ones become 0.
    """

    def copied(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.zeros_like(tensor, device="cpu", requires_grad=False)  # nothing is fetched
        return tensor.detach().to("cpu", copy=True)

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


def from_file(data: Any, tensors: Mapping[str, Tensor]) -> Inputs:
    """What `to_file` was given.

    Raises:
        KeyError, ValueError: It is not what `to_file` gives.
    """
    stated = record(_Stated, data)
    check_one_of("kind", stated["kind"], ("dict", "tuple", "Tensor"))
    keys, values = stated["keys"], stated["values"]
    parts = {key: values[key] if key in values else tensors[f"{PREFIX}{key}"] for key in keys}
    if not all(
        _plain(part) or (isinstance(part, Tensor) and part.shape[:1] in ((), (1,))) for part in parts.values()
    ):
        raise ValueError("example must be of one example and of plain values")
    if stated["kind"] == "dict":
        return parts
    if stated["kind"] == "tuple":
        return tuple(parts.values())
    (tensor,) = parts.values()
    if not isinstance(tensor, Tensor):
        raise ValueError(f"example must be a tensor, got {tensor!r}")
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
