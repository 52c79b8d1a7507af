"""From factors to a plan: scores, budget, and what each layer becomes."""

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, Inputs, as_inputs, check_adapter, count, map_tensors, take
from eigendamage_ext._finite import check_finite
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.layers import (
    LayerSpec,
    Pattern,
    Patterns,
    as_patterns,
    check_layer,
    check_patterns,
    matches,
    select,
)
from eigendamage_ext.curvature.state import check_model
from eigendamage_ext.pruning.coupling import channel_groups
from eigendamage_ext.pruning.direction_plan import plan_directions
from eigendamage_ext.pruning.filter_plan import plan_filters
from eigendamage_ext.pruning.measure import Measurement, measure
from eigendamage_ext.pruning.methods.directions import DirectionMethod
from eigendamage_ext.pruning.plan import Plan
from eigendamage_ext.pruning.reads import read_layers
from eigendamage_ext.pruning.settings import Settings


def plan(
    model: nn.Module,
    factors: Factors | None = None,
    *,
    target: Any,
    method: str = "eigendamage",
    scores: str = "kfac",
    allocation: str = "threshold",
    ignored_layers: Patterns = (),
    max_ratio: float = 0.95,
    round_to: int = 1,
    prune_head: bool = False,
    damping: float = 0.01,
    seed: int = 0,
    reference_compat: bool = False,
    example_inputs: Any = None,
    adapter: Adapter | None = None,
) -> Plan[Any]:
    """Decides what every layer keeps so that the model costs what is asked for. Nothing is changed.

    A method cuts *directions* of each layer's eigenbasis, or *filters*: output channels, with all that is
    coupled with them. Units of all layers are cut under one threshold on their scores, the paper's rule; what
    still fits comes back. With ``allocation="least_loss"`` the sum of predicted losses is made as small as
    the budget allows, over all ranks and forms of all layers; thin networks keep far more accuracy that way.
    The model is never above the target, and at most 1 % of the original (or one step of a rank, if that is
    more) below it. FLOPs are not time: on a CPU half of them, in three layers for one, are faster only from
    about 128 channels up.

    ======================  ==========  ===================================================================
    method                  cuts        needs of the factors
    ======================  ==========  ===================================================================
    eigendamage             directions  kind "channel"; for scores "ekfac" `Factors.second_moments` too
    eigendamage-depthwise   directions  the same
    c-obd                   filters     `Factors.diagonal`
    c-obs                   filters     kind "patch"
    kron-obd, kron-obs      filters     kind "patch"
    taylor                  filters     `Factors.gradients`
    l1, nn-slimming,        filters     nothing
    random
    ======================  ==========  ===================================================================

    Args:
        model: The model the factors were estimated on.
        factors: Its factors; None for a method that needs nothing.
        target: {"flops": f} or {"params": f}, the fraction of the whole model that is kept, in (0, 1]; or
            {"ratio": r}, the share of units that fall under the threshold, in [0, 1). A number or "50%".
            Units are the filters, or the input and output directions, of the layers that may be cut. Those
            of a side that its layer's form merges, and of a layer that no form makes cheaper, stay although
            they fall.
        method: See above.
        scores: Of directions: "kfac", eigenvalues of the Kronecker factors; or "ekfac", the second moments of
            the gradient in their eigenbasis.
        allocation: "threshold" or, of directions, "least_loss", which has no use for a target "ratio".
        ignored_layers: Names, globs or module types that stay as they are; of filters: that keep theirs.
        max_ratio: At most this share of a side, or of the filters of a layer, is cut, in [0, 1]; the best
            always stays.
        round_to: Kept ranks (per group) and numbers of filters are multiples of this, or everything.
        prune_head: Cut directions of the layer that makes the logits, too. Its filters always stay.
        damping: Of c-obs and kron-obs: times its mean eigenvalue, added to a factor before it is inverted.
        seed: Of "random", and of one start of the decompositions of "eigendamage-depthwise".
        reference_compat: Scores as the authors' implementation has them where it differs from the paper: for
            comparison only.
        example_inputs: Inputs of the model, a tensor, a tuple of arguments or a mapping, tensors
            ``(n, ...)``; the FLOPs of their first example count. None: `Factors.example`.
        adapter: Finds the logits, and so the head, where a model has them in an unusual place; see `Adapter`.

    Returns:
        A `DirectionPlan` or a `FilterPlan`.

    Raises:
        ValueError: A target that is out of range or cannot be reached (the message names the nearest value),
            another argument out of range, a weight or factor that is not finite, or factors that do not fit
            the model or the method.
        TypeError: An argument of the wrong type.
        ImportError: The method cuts filters and torch_pruning, which tells what is coupled, is not there.
    """
    settings = Settings(
        target, method, scores, allocation, max_ratio, round_to, prune_head, damping, seed, reference_compat
    )
    adapter = check_adapter("plan", adapter)
    check_model(model, caller="plan")
    check_finite(model, caller="plan")
    _check_factors(factors, settings)
    example = _example(factors, example_inputs)
    if factors is not None:
        for spec in factors.specs.values():
            check_layer(model, spec, caller="plan", origin="the factors")
    ignored_layers = check_ignored(model, ignored_layers)
    return (_directions if settings.cuts_directions else _filters)(
        model, factors, settings, ignored_layers, example, measure(model, example, adapter)
    )


def check_ignored(model: nn.Module, patterns: Patterns) -> tuple[Pattern, ...]:
    """The patterns; a ValueError with the nearest names where one matches no layer of the model."""
    layers, skipped = select(model)
    patterns = as_patterns(patterns)
    check_patterns(patterns, [*layers, *skipped], caller="plan", argument="ignored_layers")
    return patterns


def _directions(
    model: nn.Module,
    factors: Factors | None,
    settings: Settings,
    ignored: Patterns,
    example: Inputs,
    original: Measurement,
) -> Plan[Any]:
    assert factors is not None
    layers = {
        name: check_layer(model, spec, caller="plan", origin="the factors")
        for name, spec in factors.specs.items()
    }
    skipped = factors.skipped | _uncalled(factors.specs, original)
    kept = {}
    if original.head and not settings.prune_head:
        kept[original.head] = "the head; prune_head=True cuts it"
    for name, layer in layers.items():
        if matches(name, layer, ignored):
            kept[name] = "in ignored_layers"
    assert isinstance(settings.cutter, DirectionMethod)
    return plan_directions(
        model,
        factors,
        settings.cutter,
        settings.goal,
        kept=kept,
        fixed=read_layers(model, [name for name in layers if name not in skipped], example),
        skipped=skipped,
        original=original,
        example=example,
        settings=settings.record() | {"factors": asdict(factors.settings)},
    )


def _filters(
    model: nn.Module,
    factors: Factors | None,
    settings: Settings,
    ignored: Patterns,
    example: Inputs,
    original: Measurement,
) -> Plan[Any]:
    layers, skipped = select(model)
    specs = {name: LayerSpec.of(name, layer) for name, layer in layers.items()}
    skipped |= _uncalled(specs, original)
    specs = {name: spec for name, spec in specs.items() if name not in skipped}
    needed = settings.cutter.needs
    kept = {name: "in ignored_layers" for name in specs if matches(name, layers[name], ignored)}
    if factors is not None and needed:
        for name in specs.keys() - factors.specs.keys():
            kept.setdefault(name, f"no factors: {factors.skipped.get(name, 'it was not there')}")
    assert not isinstance(settings.cutter, DirectionMethod)
    return plan_filters(
        model,
        factors if needed else None,
        settings.cutter,
        settings.options,
        settings.goal,
        specs=specs,
        kept=kept,
        skipped=skipped,
        coupling=channel_groups(model, example),
        original=original,
        example=example,
        settings=settings.record() | {"factors": asdict(factors.settings) if factors and needed else None},
    )


def _uncalled(specs: dict[str, LayerSpec], original: Measurement) -> dict[str, str]:
    """Why layers that do not run exactly once are left out."""
    counts = {name: original.calls.get(name, 0) for name in specs}
    return {
        name: "called several times in one pass" if count else "not called on example_inputs"
        for name, count in counts.items()
        if count != 1
    }


def _check_factors(factors: Factors | None, settings: Settings) -> None:
    """Refuses factors that lack what the method reads."""
    method, needs = settings.method, settings.cutter.needs
    if not isinstance(factors, Factors | None):
        raise TypeError(
            f"plan: factors must be Factors or None, got {type(factors).__name__}; call "
            "estimate_factors(model, loader) first"
        )
    if needs is None:
        return
    kind = needs if needs in ("channel", "patch") else None
    call = {"diagonal": "diagonal", "gradient": "gradients"}.get(needs)
    if factors is None:
        made = "estimate_factors(model, loader" + (f", kind={kind!r})" if kind else ")")
        then = f" and factors.{call}(model, loader)" if call else ""
        raise ValueError(
            f"plan: factors must be given for method={method!r}, got None; call {made}{then} first"
        )
    if kind and factors.settings.kind != kind:
        raise ValueError(
            f"plan: factors must be of kind {kind!r} for method={method!r}, got {factors.settings.kind!r}; "
            f"estimate them with kind={kind!r}"
        )
    counts = {"diagonal": factors.settings.diagonal_count, "gradient": factors.settings.gradient_count}
    if call and not counts[needs]:
        raise ValueError(
            f"plan: factors must have the {needs} for method={method!r}, got none; call "
            f"factors.{call}(model, loader) first"
        )
    if settings.scores == "ekfac" and not factors.settings.moments_count:
        raise ValueError(
            "plan: factors must have second moments for scores='ekfac', got none; call "
            "factors.second_moments(model, loader) first"
        )


def _example(factors: Factors | None, given: Any) -> Inputs:
    """One example, every tensor ``(1, ...)``."""
    if given is None:
        if factors is None or factors.example is None:
            where = "are given" if factors is None else "hold one"
            raise ValueError(
                f"plan: example_inputs must be an input of the model where no factors {where}, got None; "
                "pass a batch"
            )
        return factors.example
    inputs = as_inputs(given)
    if inputs is None:
        raise TypeError(
            f"plan: example_inputs must be a tensor, a tuple or a mapping of tensors, got "
            f"{type(given).__name__}; pass what the model is called with"
        )
    if not count(inputs, "plan: example_inputs must hold an example", "example_inputs"):
        raise ValueError(
            "plan: example_inputs must hold an example, got none; pass a batch that is not empty"
        )
    example: Inputs = map_tensors(Tensor.detach, take(inputs, 1))
    return example
