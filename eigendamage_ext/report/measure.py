"""Accuracy, loss and time of networks before and after they were cut, as far as nobody has measured them."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import training
from eigendamage_ext._adapter import Adapter, Inputs, map_tensors
from eigendamage_ext._devices import milliseconds
from eigendamage_ext._files import weights_digest
from eigendamage_ext._objective import Loss
from eigendamage_ext.curvature.state import device_of, preserved
from eigendamage_ext.pruning.measure import dtype_of
from eigendamage_ext.pruning.plan import PruneResult


@dataclass(frozen=True)
class Measured:
    """What is known of a network; None, or an absent batch, is not known.

    Attributes:
        accuracy: In [0, 1], of the network that is handed over, after fine-tuning if there was any.
        accuracy_cut: Likewise, before fine-tuning.
        loss: Mean loss right after the cut, before anything else was done; of the original its own.
        milliseconds: Examples in a batch to the time it takes.
    """

    accuracy: float | None = None
    accuracy_cut: float | None = None
    loss: float | None = None
    milliseconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """Measures accuracy and loss.

    Attributes:
        loader: Batches ``(input, target)``, readable again.
        loss: As `training.mean_loss` takes it; a function of one's own has no accuracy beside it.
        adapter: Likewise.
    """

    loader: Iterable[Any]
    loss: str | Loss = "cross_entropy"
    adapter: Adapter | None = None

    def accuracy(self, model: nn.Module) -> float | None:
        """In [0, 1]; None where the loss is not that of a classifier."""
        if callable(self.loss):
            return None
        return training.evaluate(model, self.loader, adapter=self.adapter)

    def mean_loss(self, model: nn.Module) -> float:
        """Of an example."""
        return training.mean_loss(model, self.loader, loss=self.loss, adapter=self.adapter)


def evaluated(
    model: nn.Module, results: Sequence[PruneResult | None], judge: Judge, known: Sequence[Measured]
) -> list[Measured]:
    """Fills in accuracies and losses.

    Args:
        model: The original.
        results: What was made of it; None of a network that is not here.
        judge: What measures them.
        known: Of the original, then of each result.
    """
    first, *rest = known
    if first.loss is None:
        first = replace(first, loss=judge.mean_loss(model))
    if first.accuracy is None:
        first = replace(first, accuracy=judge.accuracy(model))
    digest = weights_digest(model.state_dict())
    return [first, *(_result(model, digest, r, judge, now) for r, now in zip(results, rest, strict=True))]


def _result(
    model: nn.Module, digest: str, result: PruneResult | None, judge: Judge, now: Measured
) -> Measured:
    if result is None:
        return now
    if now.accuracy is None:
        now = replace(now, accuracy=judge.accuracy(result.model))
    if digest != result.parent or None not in (now.loss, now.accuracy_cut):
        return now  # a later round: what it found is not here to be cut again
    cut = result.plan.apply(model).model
    if now.loss is None:
        now = replace(now, loss=judge.mean_loss(cut))
    tuned = weights_digest(cut.state_dict()) != weights_digest(result.model.state_dict())
    if now.accuracy_cut is None and tuned:
        now = replace(now, accuracy_cut=judge.accuracy(cut))
    return now


def timed(
    model: nn.Module,
    results: Sequence[PruneResult | None],
    batches: Sequence[int],
    repeats: int,
    known: Sequence[Measured],
) -> list[Measured]:
    """Fills in times. All networks take turns, in eval mode, on random inputs like the plan's example.

    Args:
        model: The original.
        results: What was made of it; None of a network that is not here.
        batches: How many examples are in each.
        repeats: Passes of each network, of which the median counts.
        known: Of the original, then of each result.
    """
    here = [0, *(i for i, result in enumerate(results, start=1) if result is not None)]
    networks = [model, *(result.model for result in results if result is not None)]
    filled = list(known)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(preserved(network))
        for size in batches if len(here) > 1 else ():
            if all(size in known[i].milliseconds for i in here):
                continue
            batch = _batch(next(r.plan.example for r in results if r is not None), size, model)
            for i, time in zip(here, milliseconds(networks, batch, repeats), strict=True):
                filled[i] = replace(filled[i], milliseconds={**filled[i].milliseconds, size: time})
    return filled


def _batch(example: Inputs, size: int, model: nn.Module) -> Inputs:
    """Random inputs ``(size, …)`` like an example's ``(1, …)``; those of integers are repeated."""
    random = torch.Generator("cpu").manual_seed(0)

    def many(tensor: Tensor) -> Tensor:
        shape = (size, *tensor.shape[1:]) if tensor.dim() else ()
        if not tensor.is_floating_point():
            return tensor.expand(shape).contiguous().to(device_of(model))
        dtype = dtype_of(model) or tensor.dtype
        return torch.randn(shape, generator=random, device="cpu").to(device_of(model), dtype)

    batch: Inputs = map_tensors(many, example)
    return batch
