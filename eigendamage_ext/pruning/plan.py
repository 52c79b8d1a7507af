"""A plan: what becomes of every layer, what that costs and what it loses; editable, nothing changed yet."""

import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.layers import LayerSpec, check_layer
from eigendamage_ext.pruning.forms import (
    FORMS,
    Cost,
    available,
    cost,
    factorize,
    form_of,
    obstacle,
    rotates_input,
    rotates_output,
)
from eigendamage_ext.pruning.least_loss import Options
from eigendamage_ext.pruning.measure import Measurement, measure
from eigendamage_ext.pruning.methods.directions import LayerScores
from eigendamage_ext.pruning.surgery import rebuild
from eigendamage_ext.pruning.table import change, table

COLUMNS = {
    "layer": "left",
    "form": "left",
    "inputs": "right",
    "outputs": "right",
    "params": "right",
    "FLOPs": "right",
    "loss +": "right",
    "note": "left",
}


class Change(NamedTuple):
    """A number before and after."""

    before: int
    after: int


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: Its name in the model.
        spec: The layer in numbers.
        form: "dense" (left alone), "input", "output" or "both": which rotations it gets.
        input_rank: Input directions kept in each group; all of them where the form has no input rotation.
        output_rank: Output directions kept in each group, likewise.
        params: Parameters before and after.
        flops: FLOPs of one example before and after, 2·MAC.
        predicted_loss: Increase of the mean loss that the quadratic model predicts for this cut alone.
        note: Why the layer was left alone, or that it was set by hand.
    """

    name: str
    spec: LayerSpec
    form: str
    input_rank: int
    output_rank: int
    params: Change
    flops: Change
    predicted_loss: float
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A layer and everything it could become.

    Attributes:
        spec: The layer in numbers.
        positions: Pixels (of a Linear: rows) of one example at its input and at its output.
        scores: What its directions are worth; None for a layer that can only stay dense.
    """

    spec: LayerSpec
    positions: tuple[int, int]
    scores: LayerScores | None

    def cost(self, form: str, input_rank: int, output_rank: int) -> Cost:
        """What the layer costs in a form."""
        return cost(self.spec, form, input_rank, output_rank, *self.positions)

    def least_cost(self, input_rank: int, output_rank: int, by: str) -> int:
        """The cheapest form's "params" or "flops" when each side keeps this rank, or all of it."""
        costs = (self.cost(form, input_rank, output_rank) for form in available(self.spec))
        return min(c.params if by == "params" else c.flops for c in costs)

    def cheapest(self, input_rank: int, output_rank: int, by: str) -> LayerPlan:
        """The row of the cheapest form; among equals the one that loses least."""
        rows = [self.row(form, input_rank, output_rank) for form in available(self.spec)]
        return min(rows, key=lambda row: (getattr(row, by).after, row.predicted_loss))

    def options(
        self, input_ranks: Sequence[int], output_ranks: Sequence[int], by: str
    ) -> tuple[Options, Callable[[int], tuple[str, int, int]]]:
        """Every form at every pair of these ranks, each option once.

        Returns:
            Costs in "params" or "flops" and predicted losses; and what an index into them stands for: form,
            input rank and output rank.
        """
        assert self.scores is not None
        losses = self.scores.predicted_losses()
        offers = []
        for form in available(self.spec):
            inputs = input_ranks if rotates_input(form) else [self.spec.in_per_group]
            outputs = output_ranks if rotates_output(form) else [self.spec.out_per_group]
            ranks = (torch.tensor(sides, device="cpu") for sides in (inputs, outputs))
            i, o = torch.cartesian_prod(*ranks).unbind(1)
            costs = self.cost(form, i, o)  # type: ignore[arg-type]  # the formula holds for tensors
            cost = torch.as_tensor(getattr(costs, by), device="cpu").expand(len(i))
            offers.append((torch.full_like(i, FORMS.index(form)), i, o, cost, losses[i, o]))
        forms, ranks_in, ranks_out, cost, loss = map(torch.cat, zip(*offers, strict=True))

        def option(index: int) -> tuple[str, int, int]:
            return FORMS[int(forms[index])], int(ranks_in[index]), int(ranks_out[index])

        return Options(cost, loss), option

    def row(self, form: str, input_rank: int, output_rank: int, note: str = "") -> LayerPlan:
        """The layer in a form; the rank of a side without a rotation is not read."""
        input_rank = input_rank if rotates_input(form) else self.spec.in_per_group
        output_rank = output_rank if rotates_output(form) else self.spec.out_per_group
        before, after = self.cost("dense", 0, 0), self.cost(form, input_rank, output_rank)
        return LayerPlan(
            name=self.spec.name,
            spec=self.spec,
            form=form,
            input_rank=input_rank,
            output_rank=output_rank,
            params=Change(before.params, after.params),
            flops=Change(before.flops, after.flops),
            predicted_loss=self.scores.predicted_loss(input_rank, output_rank) if self.scores else 0.0,
            note=note,
        )

    def bases(self, row: LayerPlan) -> tuple[Tensor | None, Tensor | None]:
        """Kept directions, ``(g, c_in/g, r_A)`` and ``(g, c_out/g, r_G)``; None for a merged side."""
        assert self.scores is not None
        return (
            self.scores.input_basis[:, :, : row.input_rank] if rotates_input(row.form) else None,
            self.scores.output_basis[:, :, : row.output_rank] if rotates_output(row.form) else None,
        )


class Plan(Mapping[str, LayerPlan]):
    """What becomes of every covered layer, by name: made by `plan`, edited by `set`, carried out by `apply`.

    Attributes:
        settings: What it was made with, as JSON: target, method, scores, max_ratio, round_to, prune_head, and
            under "factors" the settings of the factors.
        skipped: Why a layer has no factors, by name.
        params_before: Parameters of the whole model.
        flops_before: FLOPs of the whole model for one example, as `torch.utils.flop_counter` counts them.
    """

    def __init__(
        self,
        candidates: Mapping[str, Candidate],
        rows: Mapping[str, LayerPlan],
        *,
        settings: Mapping[str, Any],
        skipped: Mapping[str, str],
        original: Measurement,
        example: Tensor,
    ) -> None:
        self._candidates = dict(candidates)
        self._rows = dict(rows)
        self._example = example
        self.settings = dict(settings)
        self.skipped = dict(skipped)
        self.params_before = original.params
        self.flops_before = original.flops

    def __getitem__(self, name: str) -> LayerPlan:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def target(self) -> dict[str, float]:
        """What was asked for: {"flops": 0.5}."""
        return dict(self.settings["target"])

    @property
    def params_after(self) -> int:
        """Parameters of the whole model once the plan is carried out."""
        return self.params_before - sum(row.params.before - row.params.after for row in self.values())

    @property
    def flops_after(self) -> int:
        """FLOPs of the whole model for one example once the plan is carried out."""
        return self.flops_before - sum(row.flops.before - row.flops.after for row in self.values())

    @property
    def predicted_loss(self) -> float:
        """Sum over the layers: the quadratic model has no terms between layers."""
        return sum(row.predicted_loss for row in self.values())

    def __str__(self) -> str:
        rows = [
            (
                row.name,
                row.form,
                f"{row.input_rank}/{row.spec.in_per_group}",
                f"{row.output_rank}/{row.spec.out_per_group}",
                change(*row.params),
                change(*row.flops),
                f"{row.predicted_loss:.3g}",
                row.note,
            )
            for row in self.values()
        ]
        rows += [(name, "dense", "", "", "", "", "", reason) for name, reason in self.skipped.items()]
        totals = (
            "whole model",
            "",
            "",
            "",
            change(self.params_before, self.params_after),
            change(self.flops_before, self.flops_after),
            f"{self.predicted_loss:.3g}",
            "",
        )
        title = (
            f"{self.settings['method']}, target {json.dumps(self.target)}, {self.settings['scores']} scores"
        )
        return f"{title}\n{table(COLUMNS, rows, totals)}"

    def scores(self, name: str) -> LayerScores | None:
        """What the directions of a layer are worth; None for one that can only stay dense."""
        return self._candidates[name].scores

    def set(
        self,
        name: str,
        *,
        form: str | None = None,
        input_rank: int | None = None,
        output_rank: int | None = None,
    ) -> None:
        """Edits a layer; costs and predicted loss follow, other layers stay as they are.

        Args:
            name: The layer.
            form: "dense", "input", "output" or "both". None: the one that rotates just the sides then cut.
            input_rank: Input directions kept in each group. None: as many as now.
            output_rank: Output directions kept in each group. None: as many as now.

        Raises:
            ValueError: An unknown layer, a form it cannot take, a rank out of range or of a side that the
                form keeps whole.
            TypeError: A rank that is not an integer.
        """
        candidate = self._candidate(name)
        row, spec = self[name], candidate.spec
        sides = (
            ("input_rank", input_rank, row.input_rank, spec.in_per_group),
            ("output_rank", output_rank, row.output_rank, spec.out_per_group),
        )
        for argument, given, _, width in sides:
            if given is None:
                continue
            if not isinstance(given, int) or isinstance(given, bool):
                raise TypeError(f"plan.set: {argument} must be an integer, got {given!r}")
            if not 1 <= given <= width:
                raise ValueError(f"plan.set: {argument} of {name!r} must lie in 1…{width}, got {given}")
        ranks = [now if given is None else given for _, given, now, _ in sides]
        if form is None:
            form = form_of(
                input_rotation=ranks[0] < spec.in_per_group, output_rotation=ranks[1] < spec.out_per_group
            )
        if form not in FORMS:
            raise ValueError(f"plan.set: form must be one of {', '.join(FORMS)}, got {form!r}")
        if form not in available(spec):
            reason = obstacle(spec) or "a side of one channel has no direction to cut"
            choice = " or ".join(available(spec))
            raise ValueError(f"plan.set: form of {name!r} must be {choice}, got {form!r}; {reason}")
        rotated = (rotates_input(form), rotates_output(form))
        for (argument, given, _, width), cut in zip(sides, rotated, strict=True):
            if not cut and given not in (None, width):
                raise ValueError(
                    f"plan.set: {argument} of {name!r} must be left out for form {form!r}, which keeps all "
                    f"{width}, got {given}; choose a form with a rotation on this side"
                )
        self._rows[name] = candidate.row(form, ranks[0], ranks[1], note="set by hand")

    def apply(self, model: nn.Module, *, inplace: bool = False) -> "PruneResult":
        """Carries the plan out: replaces every layer that is not "dense".

        The cores come from the weights of the model at hand, which may differ from those that were scored (a
        moving average, another dtype); its layers must have the same names and shapes.

        Args:
            model: The model, left as it is unless `inplace`.
            inplace: Replace the layers of `model` itself.

        Raises:
            ValueError: A layer is missing or of another shape; nothing has been changed then.
        """
        for candidate in self._candidates.values():
            check_layer(model, candidate.spec, caller="apply", origin="the plan")
        before = measure(model, self._example)
        builders = {}
        for name, row in self.items():
            if row.form != "dense":
                inputs, outputs = self._candidates[name].bases(row)
                builders[name] = partial(factorize, input_basis=inputs, output_basis=outputs)
        rebuilt = rebuild(model, builders, inplace=inplace)
        after = measure(rebuilt, self._example)
        return PruneResult(rebuilt, self, before.params, after.params, before.flops, after.flops)

    def _candidate(self, name: str) -> Candidate:
        if name in self._candidates:
            return self._candidates[name]
        if name in self.skipped:
            remedy = f"it was skipped: {self.skipped[name]}"
        else:
            nearest = difflib.get_close_matches(name, self, cutoff=0.0)
            remedy = f"the nearest names are {', '.join(map(repr, nearest))}"
        raise ValueError(f"plan.set: name must be a layer of the plan, got {name!r}; {remedy}")


@dataclass(frozen=True)
class PruneResult:
    """A pruned model, the plan it came from, and what both models cost, measured.

    Attributes:
        model: The smaller model, in the train or eval mode of the original.
        plan: What was done.
        params_before: Parameters of the original.
        params_after: Parameters of `model`.
        flops_before: FLOPs of the original for one example, counted by `torch.utils.flop_counter`.
        flops_after: FLOPs of `model`, counted likewise.
    """

    model: nn.Module
    plan: Plan
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int

    def __str__(self) -> str:
        return (
            f"{self.plan}\nmeasured: parameters {self.params_before:,} → {self.params_after:,}, "
            f"FLOPs {self.flops_before:,} → {self.flops_after:,}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, with the plan as its provenance; see `eigendamage_ext.save`."""
        from eigendamage_ext.artifact import save  # the artefact stands above pruning

        save(self, path)
