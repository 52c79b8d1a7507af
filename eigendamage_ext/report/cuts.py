"""What a plan cuts, as plain numbers: from its record, and from the factors it was made with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.pruning.direction_plan import DirectionPlan
from eigendamage_ext.pruning.plan import Plan
from eigendamage_ext.report.data import LayerCut, Spectrum


def layer_cuts(record: Mapping[str, Any]) -> list[LayerCut]:
    """Every layer of a plan, from what its ``record()`` says."""
    return [_layer_cut(name, layer) for name, layer in record["layers"].items()]


def _layer_cut(name: str, layer: Mapping[str, Any]) -> LayerCut:
    if "filters" in layer:
        inputs, outputs = _pair(layer["inputs"]), _pair(layer["filters"])
        form = "dense" if inputs[0] == inputs[1] and outputs[0] == outputs[1] else "filters"
    else:
        inputs = layer["widths"][0], layer["input_rank"]
        outputs = layer["widths"][1], layer["output_rank"]
        form = layer["form"]
    return LayerCut(
        name=name,
        form=form,
        inputs=inputs,
        outputs=outputs,
        params=_pair(layer["params"]),
        flops=_pair(layer["flops"]),
        predicted_loss=layer["predicted_loss"],
        note=layer["note"],
        group=layer.get("group") or "",
    )


def _pair(numbers: Any) -> tuple[int, int]:
    before, after = numbers
    return before, after


def spectra(plan: Plan[Any], factors: Factors) -> list[Spectrum]:
    """Eigenvalues of the factors of every layer, and which directions a plan keeps; of filters none.

    Raises:
        ValueError: The plan has a layer that the factors lack.
    """
    if not isinstance(plan, DirectionPlan):
        return []
    if missing := [name for name in plan if name not in factors]:
        raise ValueError(
            f"report: factors must be those of the plan, got none of layer {missing[0]!r}; pass the factors "
            "that it was made with"
        )
    basis, found = factors.eigenbasis(), []
    for name, row in plan.items():
        A, G, scores = basis[name].A.values, basis[name].G.values, plan.scores(name)
        inputs = _kept(A, scores.input_order if scores else None, row.input_rank)
        outputs = _kept(G, scores.output_order if scores else None, row.output_rank)
        found.append(Spectrum(name, A.flatten().tolist(), inputs, G.flatten().tolist(), outputs))
    return found


def _kept(values: Tensor, order: Tensor | None, rank: int) -> list[bool]:
    """Which eigenvalues, ``(g, n)`` or ``(n,)``, are the first ``rank`` of each group in ``order (g, n)``."""
    if order is None or order.numel() != values.numel():
        return [True] * values.numel()  # a layer, or a depthwise core, whose directions are not cut
    kept = torch.zeros_like(order, dtype=torch.bool)
    return kept.scatter(1, order[:, :rank], True).flatten().tolist()
