"""Pruning in a straight line: factors, scores, budget, plan, a smaller model."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.estimate import estimate_factors
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.layers import Patterns, check_layer, check_patterns, matches
from eigendamage_ext.pruning.allocation import Target, parse_target
from eigendamage_ext.pruning.direction_plan import DirectionPlan, plan_directions
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.pruning.plan import PruneResult

SCORES = ("kfac", "ekfac")
ALLOCATIONS = ("threshold", "least_loss")


def plan(
    model: nn.Module,
    factors: Factors,
    *,
    target: Any,
    method: str = "eigendamage",
    scores: str = "kfac",
    allocation: str = "threshold",
    ignored_layers: Patterns = (),
    max_ratio: float = 0.95,
    round_to: int = 1,
    prune_head: bool = False,
    example_inputs: Tensor | None = None,
) -> DirectionPlan:
    """Decides what every layer keeps so that the model costs what is asked for. Nothing is changed.

    With ``allocation="threshold"``, the paper's rule, directions of all layers are cut under one threshold on
    their scores, and each layer takes its cheapest form at the ranks that are left. With ``"least_loss"`` the
    sum of predicted losses is made as small as the budget allows, over all ranks and forms of all layers;
    thin networks keep far more accuracy that way. The model is never above the target, and at most 1 % of the
    original (or one step of a rank, if that is more) below it. FLOPs are not time: on a CPU half of them, in
    three layers for one, are faster only from about 128 channels up.

    Args:
        model: The model the factors were estimated on.
        factors: Of kind "channel".
        target: {"flops": f} or {"params": f}, the fraction of the whole model that is kept, in (0, 1]; or
            {"ratio": r}, the share of units that fall under the threshold, in [0, 1). A number or "50%".
            Units are the input and output directions of the layers that may be cut. Those of a side that its
            layer's form merges, and of a layer that no form makes cheaper, stay although they fall.
        method: "eigendamage".
        scores: "kfac", eigenvalues of the Kronecker factors; or "ekfac", the second moments of the gradient
            in their eigenbasis, which `Factors.second_moments` must have measured.
        allocation: "threshold" or "least_loss"; the latter has no use for a target "ratio".
        ignored_layers: Names, globs or module types that stay as they are.
        max_ratio: At most this share of a side is cut, in [0, 1]; the best direction always stays.
        round_to: Kept ranks (per group) are multiples of this, or everything.
        prune_head: Cut the layer that makes the logits, too.
        example_inputs: An input ``(n, ...)`` of the model; the FLOPs of its first example count. None: zeros
            in the shape of the examples the factors have seen.

    Raises:
        ValueError: A target that is out of range or cannot be reached (the message names the nearest value),
            another argument out of range, or factors that do not fit the model or the method.
        TypeError: An argument of the wrong type.
    """
    goal = _check_settings(target, method, scores, allocation, max_ratio, round_to)
    if factors.settings.kind != "channel":
        raise ValueError(
            f"plan: factors must be of kind 'channel' for {method}, got {factors.settings.kind!r}; estimate "
            "them with kind='channel'"
        )
    if scores == "ekfac" and not factors.settings.moments_count:
        raise ValueError(
            "plan: factors must have second moments for scores='ekfac', got none; call "
            "factors.second_moments(model, loader) first"
        )
    check_patterns(
        ignored_layers, [*factors.specs, *factors.skipped], caller="plan", argument="ignored_layers"
    )
    layers = {
        name: check_layer(model, spec, caller="plan", origin="the factors")
        for name, spec in factors.specs.items()
    }
    example = _example(factors, example_inputs)
    original = measure(model, example)

    skipped = dict(factors.skipped)
    for name in layers:
        if calls := original.calls.get(name, 0) - 1:
            skipped[name] = (
                "called several times in one pass" if calls > 0 else "not called on example_inputs"
            )
    kept = {}
    if original.head and not prune_head:
        kept[original.head] = "the head; prune_head=True cuts it"
    for name, layer in layers.items():
        if matches(name, layer, ignored_layers):
            kept[name] = "in ignored_layers"
    chosen = METHODS[method]
    assert isinstance(chosen, DirectionMethod)
    return plan_directions(
        model,
        factors,
        chosen,
        goal,
        kept=kept,
        skipped=skipped,
        original=original,
        example=example,
        settings={
            "target": {goal.measure: goal.value},
            "method": method,
            "scores": scores,
            "allocation": allocation,
            "max_ratio": max_ratio,
            "round_to": round_to,
            "prune_head": prune_head,
            "factors": asdict(factors.settings),
        },
    )


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
    example_inputs: Tensor | None = None,
    loss: str = "cross_entropy",
    fisher: str = "mc",
    samples: int = 1,
    weight_sharing: str = "expand",
    layers: Patterns | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    offload: bool = False,
    progress: bool = True,
) -> PruneResult:
    """`estimate_factors`, `plan` and `Plan.apply` in one call, for "ekfac" with `Factors.second_moments`.

    Args:
        model: The trained model, left as it is unless `inplace`.
        loader: Batches ``(input, target)``, or inputs alone where no label is needed; for "ekfac" it is read
            twice. Not read if `factors` are given that have what the scores need.
        target: See `plan`.
        factors: Skips the estimation, and with it the arguments from `loss` on. For "ekfac" they get the
            second moments they lack.
        inplace: Replace the layers of `model` itself.
        method: See `plan`.
        scores: See `plan`.
        allocation: See `plan`.
        ignored_layers: See `plan`.
        max_ratio: See `plan`.
        round_to: See `plan`.
        prune_head: See `plan`.
        example_inputs: See `plan`.
        loss: See `estimate_factors`.
        fisher: See `estimate_factors`.
        samples: See `estimate_factors`.
        weight_sharing: See `estimate_factors`.
        layers: See `estimate_factors`.
        max_examples: See `estimate_factors`.
        seed: See `estimate_factors`.
        autocast: See `estimate_factors`.
        offload: See `estimate_factors`.
        progress: See `estimate_factors`.

    Raises:
        ValueError: As its parts do, but settings are checked before the factors are estimated.
    """
    _check_settings(target, method, scores, allocation, max_ratio, round_to)
    if factors is None:
        if loader is None:
            raise ValueError(
                "prune: loader must yield batches where no factors are given, got None; pass one of them"
            )
        if scores == "ekfac" and isinstance(loader, Iterator):
            raise TypeError(
                f"prune: loader must be readable twice for scores='ekfac', got a {type(loader).__name__}, "
                "which is over after one pass; pass a DataLoader or a list of batches"
            )
        factors = estimate_factors(
            model,
            loader,
            loss=loss,
            fisher=fisher,
            samples=samples,
            kind="channel",
            weight_sharing=weight_sharing,
            layers=layers,
            max_examples=max_examples,
            seed=seed,
            autocast=autocast,
            offload=offload,
            progress=progress,
        )
    if scores == "ekfac" and not factors.settings.moments_count and loader is not None:
        factors.second_moments(model, loader, max_examples=max_examples, offload=offload, progress=progress)
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
        example_inputs=example_inputs,
    )
    return made.apply(model, inplace=inplace)


def _check_settings(
    target: Any, method: str, scores: str, allocation: str, max_ratio: Any, round_to: Any
) -> Target:
    goal = parse_target(target)
    if method not in METHODS:
        raise ValueError(f"plan: method must be one of {', '.join(METHODS)}, got {method!r}")
    if scores not in SCORES:
        raise ValueError(f"plan: scores must be one of {', '.join(SCORES)}, got {scores!r}")
    if allocation not in ALLOCATIONS:
        raise ValueError(f"plan: allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    if allocation == "least_loss" and goal.measure == "ratio":
        raise ValueError(
            f"plan: target must be in flops or params for allocation='least_loss', got {target!r}; a ratio "
            "of units has no cost"
        )
    if isinstance(max_ratio, bool) or not isinstance(max_ratio, int | float):
        raise TypeError(f"plan: max_ratio must be a number, got {max_ratio!r}")
    if not 0 <= max_ratio <= 1:
        raise ValueError(
            f"plan: max_ratio must lie in [0, 1], the share of a side that may be cut, got {max_ratio!r}"
        )
    if isinstance(round_to, bool) or not isinstance(round_to, int):
        raise TypeError(f"plan: round_to must be an integer, got {round_to!r}")
    if round_to < 1:
        raise ValueError(f"plan: round_to must be at least 1, got {round_to}")
    return goal


def _example(factors: Factors, given: Tensor | None) -> Tensor:
    """One example ``(1, ...)``."""
    settings = factors.settings
    if given is None:
        return torch.zeros(
            1,
            *settings.example_shape,
            dtype=getattr(torch, settings.example_dtype.removeprefix("torch.")),
            device="cpu",
        )
    if not isinstance(given, Tensor):
        raise TypeError(f"plan: example_inputs must be a tensor, got {type(given).__name__}")
    if given.dim() == 0 or len(given) == 0:
        raise ValueError(f"plan: example_inputs must hold an example, got the shape {tuple(given.shape)}")
    return given[:1].detach()
