"""What a loader yields, as checked batches on the model's device."""

import math
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext._progress import track


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        index: Number of the batch in the loader.
        first: Number of its first example.
        inputs: ``(N, …)``, N ≥ 1.
        targets: ``(N, …)``, or None where the loader gives inputs alone.
    """

    index: int
    first: int
    inputs: Tensor
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)


def batches(
    loader: Iterable[Any],
    *,
    device: torch.device,
    max_examples: int | None,
    description: str,
    progress: bool,
    caller: str,
) -> Generator[Batch, None, None]:
    """Yields what `loader` holds, up to `max_examples` examples, of which the last batch may be a part.

    Raises:
        TypeError, ValueError: The loader is empty, or an item is not what it must be.
    """
    if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
        raise TypeError(
            f"{caller}: loader must be an iterable of batches, got {type(loader).__name__}; "
            "pass a DataLoader or a list of batches"
        )
    first = 0
    items = track(loader, total=_length(loader, max_examples), description=description, enabled=progress)
    with closing(items):
        for index, item in enumerate(items):
            left = None if max_examples is None else max_examples - first
            inputs, targets = _unpack(index, item, caller)
            inputs, targets = inputs[:left], None if targets is None else targets[:left]
            if len(inputs):
                yield Batch(
                    index, first, _move(inputs, device), None if targets is None else _move(targets, device)
                )
            first += len(inputs)
            if first == max_examples:
                break
    if first == 0:
        raise ValueError(f"{caller}: loader must yield at least one example, got none; check the data")


def _length(loader: Iterable[Any], max_examples: int | None) -> int | None:
    """Number of batches, as far as it can be known before."""
    try:
        total: int | None = len(loader)  # type: ignore[arg-type]
    except TypeError:
        total = None
    size = getattr(loader, "batch_size", None)
    if max_examples is None or not size:
        return total
    wanted: int = math.ceil(max_examples / size)
    return wanted if total is None else min(wanted, total)


def _unpack(index: int, item: Any, caller: str) -> tuple[Tensor, Tensor | None]:
    """Inputs and targets of one item of a loader."""
    parts = item if isinstance(item, (list, tuple)) else (item,)
    if not 1 <= len(parts) <= 2 or not all(isinstance(part, Tensor) for part in parts):
        inside = f" of {', '.join(type(part).__name__ for part in parts)}" if parts is item else ""
        raise TypeError(
            f"{caller}: loader must yield tensors, (input, target) or input, got a "
            f"{type(item).__name__}{inside} as batch {index}; convert its items"
        )
    inputs, targets = parts[0], parts[1] if len(parts) == 2 else None
    if inputs.dim() == 0:
        raise ValueError(
            f"{caller}: loader must yield batches of examples, got one number as batch {index}; "
            "add a batch dimension"
        )
    if targets is not None and targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"{caller}: loader must yield as many targets as inputs, got inputs "
            f"{tuple(inputs.shape)} and targets {tuple(targets.shape)} in batch {index}; check its collation"
        )
    return inputs, targets


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    # A device takes what it is sent in order, so only a copy to the CPU has to be waited for.
    moved = tensor.detach().to(device, non_blocking=device.type != "cpu")
    # What a caller's inference_mode made cannot be saved for the backward pass; a copy made here can.
    return moved.clone() if moved.is_inference() else moved
