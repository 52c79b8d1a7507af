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


def evaluated(
    model: nn.Module,
    results: Sequence[PruneResult | None],
    loader: Iterable[Any],
    known: Sequence[Measured],
    adapter: Adapter | None = None,
) -> list[Measured]:
    """Fills in accuracies and losses.

    Args:
        model: The original.
        results: What was made of it; None of a network that is not here.
        loader: Batches with targets, readable again.
        known: Of the original, then of each result.
        adapter: As `training.evaluate` takes it.
    """
    first, *rest = known
    if first.accuracy is None:
        first = replace(first, accuracy=training.evaluate(model, loader, adapter=adapter))
    if first.loss is None:
        first = replace(first, loss=training.mean_loss(model, loader, adapter=adapter))
    digest = weights_digest(model.state_dict())
    pairs = zip(results, rest, strict=True)
    return [first, *(_result(model, digest, result, loader, now, adapter) for result, now in pairs)]


def _result(
    model: nn.Module,
    digest: str,
    result: PruneResult | None,
    loader: Iterable[Any],
    now: Measured,
    adapter: Adapter | None,
) -> Measured:
    if result is None:
        return now
    if now.accuracy is None:
        now = replace(now, accuracy=training.evaluate(result.model, loader, adapter=adapter))
    if digest != result.parent or None not in (now.loss, now.accuracy_cut):
        return now  # a later round: what it found is not here to be cut again
    cut = result.plan.apply(model).model
    if now.loss is None:
        now = replace(now, loss=training.mean_loss(cut, loader, adapter=adapter))
    if now.accuracy_cut is None and weights_digest(cut.state_dict()) != weights_digest(
        result.model.state_dict()
    ):
        now = replace(now, accuracy_cut=training.evaluate(cut, loader, adapter=adapter))
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
