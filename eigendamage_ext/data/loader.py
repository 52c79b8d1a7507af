"""A small seeded loader of tensors held in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Transform = Callable[[Tensor, torch.Generator], Tensor]


class TensorLoader:
    """Batches of tensors held in memory, as an iterable with a length.

    Args:
        inputs: ``(N, ...)``.
        targets: ``(N, ...)``, or None: batches are then inputs alone.
        batch_size: Examples of a batch; the last one may be smaller.
        shuffle: Draw a new order every epoch. Order and transform are functions of (seed, epoch) alone, on
            each kind of device another: they are drawn there, so that nothing waits for the CPU.
        seed: See ``shuffle``.
        transform: ``transform(batch_inputs, generator)``, e.g. `crop_flip`; both are on one device.

    Each iteration is the next epoch; ``set_epoch`` chooses it.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"TensorLoader: batch_size must be at least 1, got {batch_size}")
        if targets is not None and len(targets) != len(inputs):
            raise ValueError(
                f"TensorLoader: targets must have one entry per input ({len(inputs)}), got {len(targets)}"
            )
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.seed, self.transform = batch_size, shuffle, seed, transform
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[Any]:
        # torch's CPU generator reads the low 32 bits of its seed only.
        generator = torch.Generator(self.inputs.device).manual_seed((self.seed * 1_000_003 + epoch) % 2**32)
        order = None
        if self.shuffle:
            order = torch.randperm(len(self.inputs), generator=generator, device=generator.device)
        for start in range(0, len(self.inputs), self.batch_size):
            stop = start + self.batch_size
            rows = slice(start, stop) if order is None else order[start:stop]
            x = self.inputs[rows]
            if self.transform is not None:
                x = self.transform(x, generator)
            yield x if self.targets is None else (x, self.targets[rows])
