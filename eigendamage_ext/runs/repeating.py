"""Loaders of a user's own that give the same batches in a run that was killed as in one that was not."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch


class Repeating:
    """A loader whose every pass is that of an epoch, whatever was read of it before.

    The order of a `DataLoader` follows from PyTorch's own generator, which stages seed, or from one that it
    was given, which is seeded here; others choose theirs by `set_epoch`.

    Args:
        loader: Any iterable of batches that can be read again.
        seed: Of the generators that it was given.
    """

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed, self.epoch = loader, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Makes the passes to come those of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        parts = [self.loader, *(getattr(self.loader, name, None) for name in ("sampler", "batch_sampler"))]
        for part in parts:
            set_epoch = getattr(part, "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed((self.seed * 1_000_003 + self.epoch) % 2**32)
        return iter(self.loader)


class SizedRepeating(Repeating):
    """One that knows its length."""

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def repeating(loader: Iterable[Any], seed: int) -> Repeating:
    """The loader, repeating itself."""
    return (SizedRepeating if isinstance(loader, Sized) else Repeating)(loader, seed)
