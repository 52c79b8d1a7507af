"""Plans that cut directions: which form each layer takes, and how many directions of each side it keeps."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Inputs
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.layers import LayerSpec, layer_at
from eigendamage_ext.pruning.allocation import Side, Target, Term, allowed, allowed_ranks, solve
from eigendamage_ext.pruning.depthwise import separate, thin
from eigendamage_ext.pruning.forms import (
    FORMS,
    UNROTATED,
    Cost,
    Rotations,
    cost,
    factorize,
    form_of,
    obstacle,
    rotates_input,
    rotates_output,
)
from eigendamage_ext.pruning.least_loss import Options, choose
from eigendamage_ext.pruning.measure import Measurement
from eigendamage_ext.pruning.methods.directions import DirectionMethod, LayerScores
from eigendamage_ext.pruning.methods.eigendamage import channel_scores
from eigendamage_ext.pruning.plan import Change, Plan
from eigendamage_ext.pruning.surgery import rebuild


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: Its name in the model.
        spec: The layer in numbers; of one that was rebuilt before, its core.
        form: "dense" (left alone), "input", "output" or "both": which sides are rotated, and cut; or
            "depthwise": both, and the core is a depthwise convolution.
        input_rank: Input directions kept in each group; all of them where the form has no input rotation.
        output_rank: Output directions kept in each group, likewise.
        params: Parameters before and after.
        flops: FLOPs of one example before and after, 2·MAC.
        predicted_loss: Increase of the mean loss that the quadratic model predicts for this cut alone; None
            for a core that becomes depthwise.
        widths: Input and output directions of each group before; of a depthwise core, its channels.
        note: Why the layer was left alone, or that it was set by hand.
    """

    name: str
    spec: LayerSpec
    form: str
    input_rank: int
    output_rank: int
    params: Change
    flops: Change
    predicted_loss: float | None
    widths: tuple[int, int]
    note: str = ""


@dataclass(frozen=True)
class Candidate:
    """A layer and everything it could become.

    Attributes:
        spec: The layer in numbers; of one that was rebuilt before, its core.
        positions: Pixels (of a Linear: rows) of one example at its input and at its output.
        scores: What its directions are worth; None for a layer that can only stay dense.
        forms: Those it can take, "dense" among them.
        rotations: What an earlier round put around the core.
        obstacle: Why it can only stay dense, or None.
    """

    spec: LayerSpec
    positions: tuple[int, int]
    scores: LayerScores | None
    forms: Sequence[str]
    rotations: Rotations = UNROTATED
    obstacle: str | None = None

    @property
    def widths(self) -> tuple[int, int]:
        """Input and output directions of each group; of a depthwise core, its channels."""
        if self.rotations.separated:
            return self.spec.in_channels, self.spec.out_channels
        return self.spec.in_per_group, self.spec.out_per_group

    def cost(self, form: str, input_rank: int, output_rank: int) -> Cost:
        """What the layer costs in a form."""
        return cost(self.spec, form, input_rank, output_rank, *self.positions, self.rotations)

    def least_cost(self, input_rank: int, output_rank: int, by: str) -> int:
        """The cheapest form's "params" or "flops" when each side keeps this rank, or all of it."""
        costs = (self.cost(form, input_rank, output_rank) for form in self._at(input_rank, output_rank))
        return min(c.params if by == "params" else c.flops for c in costs)

    def cheapest(self, input_rank: int, output_rank: int, by: str) -> LayerPlan:
        """The row of the cheapest form; among equals the one that loses least."""
        rows = [self.row(form, input_rank, output_rank) for form in self._at(input_rank, output_rank)]
        losses = {row.form: math.inf if row.predicted_loss is None else row.predicted_loss for row in rows}
        return min(rows, key=lambda row: (getattr(row, by).after, losses[row.form]))

    def _at(self, input_rank: int, output_rank: int) -> Sequence[str]:
        """The forms that count at these ranks: a layer that loses no direction stays as it is."""
        whole = (input_rank, output_rank) == self.widths
        return ("dense",) if whole else self.forms

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
        for form in self.forms:
            inputs = input_ranks if rotates_input(form) else self.widths[:1]
            outputs = output_ranks if rotates_output(form) else self.widths[1:]
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
        input_rank = input_rank if rotates_input(form) else self.widths[0]
        output_rank = output_rank if rotates_output(form) else self.widths[1]
        if self.rotations.separated:
            input_rank = output_rank = min(input_rank, output_rank)
        before, after = self.cost("dense", 0, 0), self.cost(form, input_rank, output_rank)
        loss = self.scores.predicted_loss(input_rank, output_rank) if self.scores else 0.0
        return LayerPlan(
            name=self.spec.name,
            spec=self.spec,
            form=form,
            input_rank=input_rank,
            output_rank=output_rank,
            params=Change(before.params, after.params),
            flops=Change(before.flops, after.flops),
            predicted_loss=None if form == "depthwise" and not self.rotations.separated else loss,
            widths=self.widths,
            note=note,
        )

    def bases(self, row: LayerPlan) -> tuple[Tensor | None, Tensor | None]:
        """Kept directions, ``(g, c_in/g, r_A)`` and ``(g, c_out/g, r_G)``; None for a merged side."""
        assert self.scores is not None
        return (
            self.scores.input_basis[:, :, : row.input_rank] if rotates_input(row.form) else None,
            self.scores.output_basis[:, :, : row.output_rank] if rotates_output(row.form) else None,
        )


class DirectionPlan(Plan[LayerPlan]):
    """Which directions of its eigenbasis every layer keeps; see `Plan`."""

    COLUMNS: ClassVar = {
        "layer": "left",
        "form": "left",
        "inputs": "right",
        "outputs": "right",
        "params": "right",
        "FLOPs": "right",
        "loss +": "right",
        "note": "left",
    }

    def __init__(
        self,
        candidates: Mapping[str, Candidate],
        rows: Mapping[str, LayerPlan],
        *,
        settings: Mapping[str, Any],
        skipped: Mapping[str, str],
        original: Measurement,
        example: Inputs,
    ) -> None:
        super().__init__(rows, settings=settings, skipped=skipped, original=original, example=example)
        self._candidates = dict(candidates)

    @property
    def predicted_loss(self) -> float | None:
        """Sum over the layers: the quadratic model has no terms between layers. None if one has no number."""
        losses = [row.predicted_loss for row in self.values()]
        return None if None in losses else sum(loss for loss in losses if loss is not None)

    def scores(self, name: str) -> LayerScores | None:
        """What the directions of a layer are worth; None for one that can only stay dense."""
        self._check_name(name, self, "scores")
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
            form: "dense", "input", "output", "both" or "depthwise", as the method has them. None: the one
                that rotates just the sides then cut, or "depthwise".
            input_rank: Input directions kept in each group. None: as many as now.
            output_rank: Output directions kept in each group. None: as many as now.

        Raises:
            ValueError: An unknown layer, a form it cannot take, a rank out of range or of a side that the
                form keeps whole.
            TypeError: A rank that is not an integer.
        """
        self._check_name(name, self, "set")
        candidate = self._candidates[name]
        row, widths = self[name], candidate.widths
        sides = (
            ("input_rank", input_rank, row.input_rank, widths[0]),
            ("output_rank", output_rank, row.output_rank, widths[1]),
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
            form = form_of(input_rotation=ranks[0] < widths[0], output_rotation=ranks[1] < widths[1])
            if form != "dense" and "depthwise" in candidate.forms:
                form = "depthwise"
        if form not in FORMS:
            raise ValueError(f"plan.set: form must be one of {', '.join(FORMS)}, got {form!r}")
        if form not in candidate.forms:
            reason = candidate.obstacle or "a side of one channel has no direction to cut"
            if "depthwise" in (form, *candidate.forms):
                reason = f"the method is {self.settings['method']!r}"
            choice = " or ".join(candidate.forms)
            raise ValueError(f"plan.set: form of {name!r} must be {choice}, got {form!r}; {reason}")
        rotated = (rotates_input(form), rotates_output(form))
        for (argument, given, _, width), cut in zip(sides, rotated, strict=True):
            if not cut and given not in (None, width):
                raise ValueError(
                    f"plan.set: {argument} of {name!r} must be left out for form {form!r}, which keeps all "
                    f"{width}, got {given}; choose a form with a rotation on this side"
                )
        self._rows[name] = candidate.row(form, ranks[0], ranks[1], note="set by hand")

    def _title(self) -> str:
        return f"{super()._title()}, {self.settings['scores']} scores"

    def _cells(self, row: LayerPlan) -> Sequence[str]:
        return row.form, f"{row.input_rank}/{row.widths[0]}", f"{row.output_rank}/{row.widths[1]}"

    def _shape(self, row: LayerPlan) -> dict[str, Any]:
        ranks = {"input_rank": row.input_rank, "output_rank": row.output_rank}
        return {"form": row.form, **ranks, "widths": row.widths}

    def _rebuild(self, model: nn.Module, inplace: bool) -> nn.Module:
        builders: dict[str, Callable[[nn.Module], nn.Module]] = {}
        for name, row in self.items():
            wanted, found = self._candidates[name].rotations, Rotations.around(model.get_submodule(name))
            if found != wanted:
                raise ValueError(
                    f"apply: layer {name!r} of model must be as in the plan, got {found} in place of "
                    f"{wanted}; pass the model that was analysed, or one built alike"
                )
            if row.form == "dense":
                continue
            inputs, outputs = self._candidates[name].bases(row)
            if inputs is not None and wanted.separated:
                builders[name] = partial(thin, channels=inputs)
            elif inputs is not None and outputs is not None and row.form == "depthwise":
                builders[name] = partial(self._separate, name, inputs, outputs)
            else:
                builders[name] = partial(factorize, input_basis=inputs, output_basis=outputs)
        return rebuild(model, builders, inplace=inplace)

    def _separate(self, name: str, inputs: Tensor, outputs: Tensor, layer: nn.Module) -> nn.Module:
        """The layer with a depthwise core; its row then tells how much of the core that leaves out."""
        separated, error = separate(layer, inputs, outputs, seed=self.settings["seed"])
        self._rows[name] = replace(self[name], note=f"{100 * error:.0f} % of the core's norm left out")
        return separated


def plan_directions(
    model: nn.Module,
    factors: Factors,
    method: DirectionMethod,
    goal: Target,
    *,
    kept: Mapping[str, str],
    fixed: Mapping[str, str],
    skipped: Mapping[str, str],
    original: Measurement,
    example: Inputs,
    settings: Mapping[str, Any],
) -> DirectionPlan:
    """Scores every layer's directions and meets the target.

    Args:
        model: The model; it is not changed.
        factors: Of kind "channel".
        method: What scores them.
        goal: The target.
        kept: Why a layer stays as it is unless it is set by hand, by name.
        fixed: Why a layer can only stay as it is.
        skipped: Why a layer is not in the plan.
        original: The model, measured on `example`.
        example: Inputs of one example.
        settings: As the plan has them; "scores", "allocation", "max_ratio" and "round_to" are read.

    Raises:
        ValueError: The target cannot be reached.
    """
    kept = dict(kept)
    basis = factors.eigenbasis(corrected=settings["scores"] == "ekfac")
    candidates: dict[str, Candidate] = {}
    for name, spec in factors.specs.items():
        if name in skipped:
            continue
        rotations = Rotations.around(model.get_submodule(name))
        separated = rotations.separated and spec.in_channels > 1
        reason = fixed.get(name) or (None if separated else obstacle(spec))
        forms = ("dense",) if reason else ("dense", "depthwise") if separated else method.forms(spec)
        score = channel_scores if separated else method.scores
        values = None if reason else score(spec, layer_at(model, name), basis[name])
        candidates[name] = Candidate(spec, original.positions[name], values, forms, rotations, reason)
        if reason:
            kept.setdefault(name, reason)
    rows = {
        name: candidate.row("dense", 0, 0, note=kept.get(name, "")) for name, candidate in candidates.items()
    }
    free = {name: candidate for name, candidate in candidates.items() if name not in kept}
    allocate = _by_least_loss if settings["allocation"] == "least_loss" else _by_threshold
    for name, row in allocate(free, goal, original, settings["max_ratio"], settings["round_to"]).items():
        rows[name] = replace(row, note="no cut pays at this budget") if row.form == "dense" else row
    return DirectionPlan(
        candidates, rows, settings=settings, skipped=skipped, original=original, example=example
    )


def _ranks(candidate: Candidate, max_ratio: float, round_to: int) -> tuple[list[int], list[int]]:
    """The input and output ranks that a layer may keep."""
    inputs, outputs = candidate.widths
    return (
        allowed_ranks(inputs, max_ratio=max_ratio, round_to=round_to),
        allowed_ranks(outputs, max_ratio=max_ratio, round_to=round_to),
    )


def _by_threshold(
    free: Mapping[str, Candidate], target: Target, original: Measurement, max_ratio: float, round_to: int
) -> dict[str, LayerPlan]:
    """The rows of the layers that may be cut: one threshold, then the cheapest form of each."""
    by = "params" if target.measure == "params" else "flops"
    sides: list[Side] = []
    terms = []
    for candidate in free.values():
        assert candidate.scores is not None
        scores = (candidate.scores.input_scores, candidate.scores.output_scores)
        cost = operator.add if target.measure == "ratio" else partial(candidate.least_cost, by=by)
        terms.append(Term((len(sides), len(sides) + 1), cost))
        sides += map(Side, scores, _ranks(candidate, max_ratio, round_to))
    units = sum(len(side.scores) for side in sides)
    total = units if target.measure == "ratio" else getattr(original, by)
    ranks = solve(sides, terms, target, total)
    pairs = zip(ranks[::2], ranks[1::2], strict=True)
    return {name: free[name].cheapest(*kept, by=by) for name, kept in zip(free, pairs, strict=True)}


def _by_least_loss(
    free: Mapping[str, Candidate], target: Target, original: Measurement, max_ratio: float, round_to: int
) -> dict[str, LayerPlan]:
    """The rows of the layers that may be cut: the ranks and forms of least predicted loss together."""
    by = target.measure
    total = getattr(original, by)
    fixed = total - sum(getattr(candidate.cost("dense", 0, 0), by) for candidate in free.values())
    offers = [
        candidate.options(*_ranks(candidate, max_ratio, round_to), by=by) for candidate in free.values()
    ]
    allowance = allowed(target, total, fixed, least=sum(int(options.cost.min()) for options, _ in offers))
    chosen = choose([options for options, _ in offers], allowance) if offers else []
    return {
        name: candidate.row(*option(at))
        for (name, candidate), (_, option), at in zip(free.items(), offers, chosen, strict=True)
    }
