"""The first pass over the data: estimating the Kronecker factors of a model's layers."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, check_adapter, qualified_name
from eigendamage_ext._objective import Loss, check_loss
from eigendamage_ext.curvature.checks import check_autocast, check_integer, check_word
from eigendamage_ext.curvature.factor_sums import FactorSums
from eigendamage_ext.curvature.factors import Factors, LayerFactors
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, Fisher
from eigendamage_ext.curvature.layers import LayerSpec, Patterns, select
from eigendamage_ext.curvature.moments import KINDS, WEIGHT_SHARINGS
from eigendamage_ext.curvature.settings import FactorSettings
from eigendamage_ext.curvature.state import check_model, preserved


def estimate_factors(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: str | Loss = "cross_entropy",
    fisher: str = "mc",
    samples: int = 1,
    kind: str = "channel",
    weight_sharing: str = "expand",
    layers: Patterns | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    offload: bool = False,
    adapter: Adapter | None = None,
    progress: bool = True,
) -> Factors:
    """Estimates the Kronecker factors of the layers of a model in one pass over a loader.

    With a_nt the input patch of example n at output position t, a_ntk its pixel at kernel offset k, and g_nt
    the gradient of that example's own loss at the layer's output,

        patch    A = 1/(N·T)   Σ_n Σ_t     a_nt a_ntᵀ        Grosse & Martens 2016
        channel  A = 1/(N·T·K) Σ_n Σ_t Σ_k a_ntk a_ntkᵀ      Wang et al. 2019
                 G = 1/N       Σ_n Σ_t     g_nt g_ntᵀ        summed over the vectors of the Fisher

    The model runs in eval mode and is left as it was: weights, gradients, requires_grad, buffers, modes,
    hooks and the random state, whatever happens.

    Args:
        model: Returns logits ``(N, C)``; "cross_entropy" allows ``(N, T, C)``, "mse" and "bce_with_logits"
            ``(N,)``. They are its output, its output's ``logits``, "logits" in a mapping or first in a tuple.
        loader: Yields ``(inputs, target)``, inputs alone, or a mapping, whose "labels" or "label" are the
            targets. Inputs are a tensor, a tuple for ``model(*inputs)`` or a mapping for ``model(**inputs)``;
            tensors start with N, and move to the model's device.
        loss: "cross_entropy", "mse" (Σ(z − y)², no ½) or "bce_with_logits", summed over an example's outputs.
            The cross entropy of logits ``(N, T, C)`` is summed over the positions that count: those whose
            target, where targets ``(N, T)`` are given, is not -100, and whose "attention_mask" ``(N, T)``,
            where the inputs have one, is not 0. Tokens whose mask is 0 are left out of A too. Or a function
            of your own for "empirical": ``loss(logits, targets)`` returns the examples' losses ``(N,)``.
        fisher: "mc", gradients at labels drawn from the model; "exact", the expectation over such labels, one
            backward pass for each output; or "empirical", gradients at the given labels.
        samples: Number of draws for "mc". A draw depends on the seed, the example's number and its own alone.
        kind: "channel" (c_in × c_in, offsets of a kernel share it) or "patch" (c_in·K, and 1 for a bias).
        weight_sharing: "expand", each position a row of its own; or "reduce", the mean input and the summed
            gradient of an example (Eschenhagen et al. 2023), whose rows must then lie together.
        layers: Only these: exact names, globs or module types, one or several.
        max_examples: Stop after exactly that many, within a batch if need be.
        seed: Seed of the draws.
        autocast: Run the model forward and back under `torch.autocast` with this dtype, torch.bfloat16 or
            torch.float16; None in the dtype it has, whatever autocast surrounds the call. Sums are float32
            all the same. Gradients are those of single examples, so float16 needs no loss scaling.
        offload: Keep the sums in the CPU's memory: a device then holds no more than one layer's term at a
            time, and waits while each goes over in every batch.
        adapter: How to read batches and outputs that are not of the usual kinds; see `Adapter`.
        progress: Show a progress bar.

    Returns:
        The factors, on the device of each layer or, with `offload`, on the CPU; in the layer's dtype (halves:
        float32).

    Raises:
        TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
    """
    caller = "estimate_factors"
    check_loss(caller, loss, LOSSES)
    check_word(caller, "fisher", fisher, FISHERS)
    if callable(loss) and fisher != "empirical":
        raise ValueError(
            f"{caller}: fisher must be 'empirical' for a loss of your own, got {fisher!r}; labels can be "
            f"drawn for {', '.join(LOSSES)} alone"
        )
    check_word(caller, "kind", kind, KINDS)
    check_word(caller, "weight_sharing", weight_sharing, WEIGHT_SHARINGS)
    samples = check_integer(caller, "samples", samples, least=1)
    seed = check_integer(caller, "seed", seed)
    if max_examples is not None:
        max_examples = check_integer(caller, "max_examples", max_examples, least=1)
    check_autocast(caller, autocast)
    adapter = check_adapter(caller, adapter)
    check_model(model, caller=caller)
    covered, skipped = select(model, layers)
    _check_any(covered, skipped)
    with preserved(model):
        collector = FactorSums(
            covered, kind=kind, weight_sharing=weight_sharing, autocast=autocast, offload=offload
        )
        seen = collector.run(
            model,
            loader,
            Fisher(loss, fisher, samples, seed, caller),
            adapter=adapter,
            max_examples=max_examples,
            description="Kronecker factors",
            progress=progress,
        )
        sums = collector.factors(seen.count)
    example = seen.example
    skipped = {
        name: reason
        for name, _ in model.named_modules()
        if (reason := skipped.get(name) or collector.dropped.get(name))
    }
    _check_any(sums, skipped)
    return Factors(
        {name: LayerFactors(A, G, seen.count) for name, (A, G) in sums.items()},
        {name: LayerSpec.of(name, covered[name]) for name in sums},
        skipped,
        FactorSettings(
            loss=qualified_name(loss) if callable(loss) else loss,
            fisher=fisher,
            samples=samples,
            kind=kind,
            weight_sharing=weight_sharing,
            seed=seed,
            count=seen.count,
            example_shape=tuple(example.shape[1:]) if isinstance(example, Tensor) else (),
            example_dtype=str(example.dtype).removeprefix("torch.") if isinstance(example, Tensor) else "",
            autocast=str(autocast).removeprefix("torch.") if autocast else None,
        ),
        example,
    )


def _check_any(layers: Mapping[str, Any], skipped: Mapping[str, str]) -> None:
    """Refuses to go on without a single layer."""
    if not layers:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in list(skipped.items())[:5])
        raise ValueError(
            "estimate_factors: model must have a layer that can be covered, got "
            f"{f'none ({reasons})' if reasons else 'no such layer'}; see `layers`"
        )
