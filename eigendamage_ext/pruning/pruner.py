"""Pruning in a straight line: factors, scores, budget, plan, a smaller model."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import nn

from eigendamage_ext._adapter import Adapter, Inputs, check_adapter
from eigendamage_ext._finite import check_finite
from eigendamage_ext._objective import Loss
from eigendamage_ext.curvature.batches import batches
from eigendamage_ext.curvature.estimate import estimate_factors
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.layers import Patterns
from eigendamage_ext.curvature.state import check_model, device_of, preserved
from eigendamage_ext.pruning.channel_graph import dependency_graph
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.pruning.planning import check_ignored, plan
from eigendamage_ext.pruning.settings import Settings

SECOND_PASSES = {"moments": "scores='ekfac'", "diagonal": "method='c-obd'", "gradient": "method='taylor'"}


def prune(
    model: nn.Module,
    loader: Iterable[Any] | None,
    *,
    target: Any,
    factors: Factors | None = None,
    inplace: bool = False,
    method: str = "eigendamage",
    scores: str = "kfac",
    allocation: str = "threshold",
    ignored_layers: Patterns = (),
    max_ratio: float = 0.95,
    round_to: int = 1,
    prune_head: bool = False,
    damping: float = 0.01,
    reference_compat: bool = False,
    example_inputs: Any = None,
    loss: str | Loss = "cross_entropy",
    fisher: str = "mc",
    samples: int = 1,
    weight_sharing: str = "expand",
    layers: Patterns | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    offload: bool = False,
    adapter: Adapter | None = None,
    progress: bool = True,
) -> PruneResult:
    """All that a method needs of the data, `plan` and `Plan.apply` in one call.

    Args:
        model: The trained model, left as it is unless `inplace`.
        loader: Batches as `estimate_factors` takes them. It is read twice for "ekfac", "c-obd" and "taylor",
            and not at all if `factors` are given that have what is needed; of a method that needs no factors,
            its first input is the example.
        target: See `plan`.
        factors: Skips the estimation, and with it the arguments from `loss` on. They get what the method
            needs on top of them, if they lack it.
        inplace: Replace the layers of `model` itself.
        method: See `plan`.
        scores: See `plan`.
        allocation: See `plan`.
        ignored_layers: See `plan`.
        max_ratio: See `plan`.
        round_to: See `plan`.
        prune_head: See `plan`.
        damping: See `plan`.
        reference_compat: See `plan`.
        example_inputs: See `plan`.
        loss: See `estimate_factors`.
        fisher: See `estimate_factors`.
        samples: See `estimate_factors`.
        weight_sharing: See `estimate_factors`.
        layers: See `estimate_factors`.
        max_examples: See `estimate_factors`.
        seed: See `estimate_factors` and `plan`.
        autocast: See `estimate_factors`.
        offload: See `estimate_factors`.
        adapter: See `estimate_factors` and `plan`.
        progress: See `estimate_factors`.

    Raises:
        ValueError, ImportError: As its parts do, but settings and `ignored_layers` are checked, and
            torch_pruning is looked for, before the factors are estimated.
    """
    settings = Settings(
        target, method, scores, allocation, max_ratio, round_to, prune_head, damping, seed, reference_compat
    )
    check_adapter("prune", adapter)
    check_model(model, caller="prune")
    check_finite(model, caller="prune")
    ignored_layers = check_ignored(model, ignored_layers)
    needs = settings.cutter.needs
    extra = "moments" if scores == "ekfac" else needs if needs in SECOND_PASSES else None
    if loader is None and factors is None and (needs or example_inputs is None):
        raise ValueError(
            "prune: loader must yield batches where no factors are given, got None; pass one of them"
        )
    if factors is None and extra and isinstance(loader, Iterator):
        raise TypeError(
            f"prune: loader must be readable twice for {SECOND_PASSES[extra]}, got a "
            f"{type(loader).__name__}, which is over after one pass; pass a DataLoader or a list of batches"
        )
    if not settings.cuts_directions:
        dependency_graph()  # an ImportError now, not after a pass over the data
    if factors is None and needs:
        assert loader is not None
        factors = estimate_factors(
            model,
            loader,
            loss=loss,
            fisher=fisher,
            samples=samples,
            kind="patch" if needs == "patch" else "channel",
            weight_sharing=weight_sharing,
            layers=layers,
            max_examples=max_examples,
            seed=seed,
            autocast=autocast,
            offload=offload,
            adapter=adapter,
            progress=progress,
        )
    if factors and extra and loader is not None and not getattr(factors.settings, f"{extra}_count"):
        passes = {
            "moments": factors.second_moments,
            "diagonal": factors.diagonal,
            "gradient": factors.gradients,
        }
        passes[extra](
            model,
            loader,
            max_examples=max_examples,
            offload=offload,
            loss=loss if callable(loss) else None,
            adapter=adapter,
            progress=progress,
        )
    if factors is None and example_inputs is None:
        assert loader is not None
        example_inputs = _first_input(model, loader, check_adapter("prune", adapter))
    made = plan(
        model,
        factors,
        target=target,
        method=method,
        scores=scores,
        allocation=allocation,
        ignored_layers=ignored_layers,
        max_ratio=max_ratio,
        round_to=round_to,
        prune_head=prune_head,
        damping=damping,
        seed=seed,
        reference_compat=reference_compat,
        example_inputs=example_inputs,
        adapter=adapter,
    )
    return made.apply(model, inplace=inplace)


def _first_input(model: nn.Module, loader: Iterable[Any], adapter: Adapter) -> Inputs:
    """The inputs of a loader's first example; the random state stays as it was."""
    with preserved(model):
        stream = batches(
            loader,
            adapter=adapter,
            device=device_of(model),
            max_examples=1,
            description="example",
            progress=False,
            caller="prune",
        )
        with closing(stream):
            return next(stream).inputs
