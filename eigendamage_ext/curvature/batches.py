"""What a loader yields, as checked batches on the model's device."""

import math
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext._adapter import Adapter, Inputs, map_tensors, move, take, unpack
from eigendamage_ext._objective import attended
from eigendamage_ext._progress import track


@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        index: Number of the batch in the loader.
        first: Number of its first example.
        examples: Their number N ≥ 1.
        inputs: What the model is called with, every tensor ``(N, …)``.
        targets: ``(N, …)``, or None where the loader gives inputs alone.
    """

    index: int
    first: int
    examples: int
    inputs: Inputs
    targets: Tensor | None

    def __len__(self) -> int:
        return self.examples

    @cached_property
    def tokens(self) -> Tensor | None:
        """Which tokens ``(N, T)`` are no padding; None where no attention mask tells."""
        return attended(self.inputs)

    @cached_property
    def token_rows(self) -> Tensor | None:
        """Their numbers in a row, ``(M,)``; a device is waited for the first time."""
        return None if self.tokens is None else self.tokens.flatten().nonzero().squeeze(1)


def batches(
    loader: Iterable[Any],
    *,
    adapter: Adapter,
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
            inputs, targets, examples = unpack(item, adapter, caller=caller, index=index)
            examples = examples if left is None else min(examples, left)
            if examples:
                inputs, targets = (_moved(take(part, examples), device) for part in (inputs, targets))
                yield Batch(index, first, examples, inputs, targets)
            first += examples
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


def _moved(part: Any, device: torch.device) -> Any:
    # What a caller's inference_mode made cannot be saved for the backward pass; a copy made here can.
    moved = move(map_tensors(Tensor.detach, part), device)
    return map_tensors(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, moved)
