"""Plans that cut output filters: which filters of each group of coupled layers stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Inputs
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.allocation import Side, Target, Term, UnreachableError, allowed_ranks, solve
from eigendamage_ext.pruning.channels import Site, sites
from eigendamage_ext.pruning.coupling import ChannelGroup, Coupling, cuts
from eigendamage_ext.pruning.measure import Measurement
from eigendamage_ext.pruning.methods.filters import FilterGroup, FilterMethod, Filters, Options
from eigendamage_ext.pruning.plan import Change, Plan
from eigendamage_ext.pruning.surgery import slice_channels


@dataclass(frozen=True)
class FilterRow:
    """What becomes of one layer.

    Attributes:
        name: Its name in the model.
        spec: The layer in numbers.
        inputs: Input channels before and after.
        filters: Output filters before and after.
        params: Parameters before and after.
        flops: FLOPs of one example before and after, 2·MAC.
        predicted_loss: Increase of the mean loss that the method predicts for cutting these filters alone;
            None if it does not predict any.
        note: Why all its filters stay, or that it was set by hand.
    """

    name: str
    spec: LayerSpec
    inputs: Change
    filters: Change
    params: Change
    flops: Change
    predicted_loss: float | None
    note: str = ""


@dataclass(frozen=True)
class Ranked:
    """A group of coupled layers whose filters may be cut, and the worth of its units.

    Attributes:
        group: Which channels of which modules go together.
        filters: The layers that make these channels.
        scores: What each unit is worth, best first, never ascending.
        order: The units in that order, ``(units,)`` int64.
    """

    group: ChannelGroup
    filters: Mapping[str, Filters]
    scores: Sequence[float]
    order: Tensor

    @classmethod
    def of(cls, group: ChannelGroup, filters: Mapping[str, Filters], scores: Tensor) -> "Ranked":
        """Ranks the units by ``scores (units,)``."""
        order = scores.argsort(descending=True, stable=True)
        return cls(group, filters, scores[order].tolist(), order)


class FilterPlan(Plan[FilterRow]):
    """Which output filters every layer keeps; see `Plan`. Layers that are coupled keep the same."""

    COLUMNS: ClassVar = {
        "layer": "left",
        "inputs": "right",
        "filters": "right",
        "params": "right",
        "FLOPs": "right",
        "loss +": "right",
        "note": "left",
    }

    def __init__(
        self,
        method: FilterMethod,
        options: Options,
        groups: Sequence[Ranked],
        sites: Mapping[str, Site],
        kept: Sequence[int],
        *,
        notes: Mapping[str, str],
        settings: Mapping[str, Any],
        skipped: Mapping[str, str],
        original: Measurement,
        example: Inputs,
    ) -> None:
        self._method, self._options = method, options
        self._groups, self._sites = list(groups), dict(sites)
        self._whole = {g: len(ranked.order) for g, ranked in enumerate(groups)}
        self._kept = dict(enumerate(kept))
        self._of = {name: g for g, ranked in enumerate(groups) for name in ranked.filters}
        rows = {name: self._row(name, note) for name, note in notes.items()}
        super().__init__(rows, settings=settings, skipped=skipped, original=original, example=example)

    @property
    def params_after(self) -> int:
        """Parameters of the whole model, batch norms too, once the plan is carried out."""
        before, after = (
            sum(site.cost(kept).params for site in self._sites.values()) for kept in (self._whole, self._kept)
        )
        return self.params_before - before + after

    def scores(self, name: str) -> Tensor | None:
        """What each unit of a layer's group is worth, ``(units,)`` float64; None where all stay."""
        self._check_name(name, self, "scores")
        if name not in self._of:
            return None
        ranked = self._groups[self._of[name]]
        scores = torch.empty(len(ranked.order), dtype=torch.float64, device="cpu")
        scores[ranked.order] = torch.tensor(ranked.scores, dtype=torch.float64, device="cpu")
        return scores

    def kept(self, name: str) -> Tensor:
        """Numbers of the filters that a layer keeps, ascending, int64."""
        self._check_name(name, self, "kept")
        return (~self._cut(name)).nonzero().flatten()

    def set(self, name: str, *, filters: int) -> None:
        """Edits how many filters a layer keeps, and with it the layers it is coupled with.

        Args:
            name: The layer.
            filters: How many of its filters stay: the best ones.

        Raises:
            ValueError: An unknown layer, one whose filters all stay, or a number it cannot keep.
            TypeError: A number that is not an integer.
        """
        self._check_name(name, self, "set")
        if isinstance(filters, bool) or not isinstance(filters, int):
            raise TypeError(f"plan.set: filters must be an integer, got {filters!r}")
        if name not in self._of:
            raise ValueError(
                f"plan.set: name must be a layer whose filters may be cut, got {name!r}: {self[name].note}"
            )
        number = self._of[name]
        units, each = self._groups[number].filters[name].units.shape
        if filters % each or not 1 <= filters // each <= units:
            steps = f" in steps of {each}" if each > 1 else ""
            raise ValueError(
                f"plan.set: filters of {name!r} must lie in {each}…{units * each}{steps}, got {filters}"
            )
        self._kept[number] = filters // each
        for other, site in self._sites.items():
            if site.spec and number in site.groups:
                by_hand = other in self._groups[number].filters
                self._rows[other] = self._row(other, "set by hand" if by_hand else self[other].note)

    def _cells(self, row: FilterRow) -> Sequence[str]:
        return tuple(f"{side.after}/{side.before}" for side in (row.inputs, row.filters))

    def _shape(self, row: FilterRow) -> dict[str, Any]:
        group = self._groups[self._of[row.name]].group.name if row.name in self._of else None
        kept = self.kept(row.name).tolist()
        return {"inputs": row.inputs, "filters": row.filters, "kept": kept, "group": group}

    def _row(self, name: str, note: str) -> FilterRow:
        """A layer when every group keeps what it keeps now."""
        site, loss = self._sites[name], None
        assert site.spec is not None
        if self._method.predicts:
            loss = 0.0
            if name in self._of:
                filters = self._groups[self._of[name]].filters[name]
                loss = self._method.predicted_loss(filters, self._cut(name), self._options)
        before, after = site.cost(self._whole), site.cost(self._kept)
        inputs, outputs = map(Change, site.width(self._whole), site.width(self._kept))
        return FilterRow(
            name=name,
            spec=site.spec,
            inputs=inputs,
            filters=outputs,
            params=Change(before.params, after.params),
            flops=Change(before.flops, after.flops),
            predicted_loss=loss,
            note=note,
        )

    def _gone(self, number: int) -> Tensor:
        """The units that a group loses."""
        return self._groups[number].order[self._kept[number] :]

    def _cut(self, name: str) -> Tensor:
        """Which of its filters a layer loses, ``(c_out,)`` bool."""
        _, filters = self._sites[name].channels
        cut = torch.zeros(filters, dtype=torch.bool, device="cpu")
        if name in self._of:
            number = self._of[name]
            cut[self._groups[number].filters[name].units[self._gone(number)]] = True
        return cut

    def _rebuild(self, model: nn.Module, inplace: bool) -> nn.Module:
        weights: dict[str, Tensor] = {}
        for number, ranked in enumerate(self._groups):
            for name, scored in ranked.filters.items() if len(self._gone(number)) else ():
                now = Filters.of(scored.spec, model.get_submodule(name), scored.units, scored.factors)
                updated = self._method.update(now, self._cut(name), self._options)
                if updated is not None:
                    weights[name] = updated
        removed = cuts((ranked.group, self._gone(number)) for number, ranked in enumerate(self._groups))
        return slice_channels(model, removed, weights=weights, inplace=inplace)


def plan_filters(
    model: nn.Module,
    factors: Factors | None,
    method: FilterMethod,
    options: Options,
    goal: Target,
    *,
    specs: Mapping[str, LayerSpec],
    kept: Mapping[str, str],
    skipped: Mapping[str, str],
    coupling: Coupling,
    original: Measurement,
    example: Inputs,
    settings: Mapping[str, Any],
) -> FilterPlan:
    """Scores every group of coupled filters and meets the target.

    Args:
        model: The model.
        factors: What the method needs to know of its layers; None if that is nothing.
        method: What scores them.
        options: What the method is told.
        goal: The target.
        specs: The model's layers in numbers.
        kept: Why all filters of a layer stay, by name.
        skipped: Why a layer is not in the plan.
        coupling: Which filters go together.
        original: The model, measured on `example`.
        example: Inputs of one example.
        settings: As the plan has them; "max_ratio" and "round_to" are read.

    Raises:
        ValueError: The target cannot be reached, or the method finds something that is not finite.
    """
    notes = {name: coupling.refused.get(name, "") for name in specs} | dict(kept)
    groups = []
    for group in coupling.groups:
        names = [member.name for member in group.producers]
        reasons = {name: notes[name] for name in names if notes.get(name, "no layer of the plan")}
        filters = {
            member.name: Filters.of(
                specs[member.name],
                model.get_submodule(member.name),
                member.channels,
                factors[member.name] if factors and method.needs else None,
            )
            for member in group.producers
            if not reasons
        }
        seen = FilterGroup(group.name, tuple(filters.values()), _norms(model, group))
        if not reasons and (obstacle := method.obstacle(seen)):
            reasons = dict.fromkeys(names, obstacle)
        for name in names:
            if reasons and name not in reasons:
                other, reason = next(iter(reasons.items()))
                reasons[name] = f"coupled with {other!r}: {reason}"
        notes.update((name, reason) for name, reason in reasons.items() if name in notes)
        if not reasons:
            scores = method.unit_scores(seen, options)
            groups.append(Ranked.of(group, filters, scores))
    if not groups and goal.kept < 1 and not goal.yielding:
        why = "; ".join(f"{name!r}: {reason}" for name, reason in [*notes.items(), *skipped.items()][:5])
        raise UnreachableError(
            f"plan: model must have filters that method={settings['method']!r} may cut, got none "
            f"({why}); take another method or ignore fewer layers"
        )
    found = sites(model, specs, original.positions, [ranked.group for ranked in groups])
    ratios = {"max_ratio": settings["max_ratio"], "round_to": settings["round_to"]}
    sides = [Side(ranked.scores, allowed_ranks(len(ranked.order), **ratios)) for ranked in groups]
    if goal.measure == "ratio":
        terms = [Term((side,), int) for side in range(len(sides))]
        total = sum(len(ranked.order) for ranked in groups)
    else:
        terms = [
            Term(site.groups, partial(_cost, site, goal.measure)) for site in found.values() if site.groups
        ]
        total = getattr(original, goal.measure)
    return FilterPlan(
        method,
        options,
        groups,
        found,
        solve(sides, terms, goal, total),
        notes=notes,
        settings=settings,
        skipped=skipped,
        original=original,
        example=example,
    )


def _cost(site: Site, measure: str, *kept: int) -> int:
    """What a site costs when its groups keep so many units."""
    cost: int = getattr(site.cost(dict(zip(site.groups, kept, strict=True))), measure)
    return cost


def _norms(model: nn.Module, group: ChannelGroup) -> Sequence[Tensor]:
    """Scales γ of the batch norms of a group, ``(units, m)`` each; of one without scales ones."""
    scales = []
    for member in group.norms:
        weight = model.get_submodule(member.name)._parameters.get("weight")
        if weight is None:
            scales.append(torch.ones(member.channels.shape, dtype=torch.float64, device="cpu"))
        else:
            scales.append(weight.detach().to("cpu", torch.float64)[member.channels])
    return scales
