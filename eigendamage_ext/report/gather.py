"""From what pruning returned to what a report tells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from eigendamage_ext._adapter import Adapter
from eigendamage_ext._files import weights_digest
from eigendamage_ext._objective import Loss
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.curvature.state import check_model, device_of
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.report.cuts import layer_cuts, spectra
from eigendamage_ext.report.data import Measurement, ReportData
from eigendamage_ext.report.measure import Judge, Measured, evaluated, timed
from eigendamage_ext.report.provenance import environment, plan_settings, target_name, why

_TELLING = ("max_ratio", "round_to", "prune_head", "damping", "reference_compat", "seed")
_UNKNOWN = Measured()
_LAST_ROUND = " What is told of layers is what the last round did to the network that it found."


@dataclass(frozen=True)
class _Entry:
    """A result, or what is told of one that is not here; costs are (parameters, FLOPs)."""

    result: PruneResult | None
    record: Mapping[str, Any]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def found(self) -> tuple[int, int]:
        """What the network cost that the plan was made for."""
        return self.record["params"][0], self.record["flops"][0]


def gather(
    results: PruneResult | Mapping[str, Any] | Iterable[PruneResult | Mapping[str, Any]],
    *,
    model: nn.Module | None = None,
    factors: Factors | None = None,
    loader: Iterable[Any] | None = None,
    loss: str | Loss = "cross_entropy",
    adapter: Adapter | None = None,
    time_batches: Sequence[int] = (1, 64),
    repeats: int = 11,
    dense: Measured = _UNKNOWN,
    measured: Sequence[Measured] = (),
    chosen: int = -1,
    title: str = "",
    subtitle: str = "",
    settings: Mapping[str, str] | None = None,
) -> ReportData:
    """Everything that a page can tell of one result or of several: budgets, methods, rounds.

    Args:
        results: What `prune`, `Plan.apply` or the rounds of a `Pruner` returned, in the order to be shown. In
            place of a result its plan's ``record()`` will do; such a network is not measured.
        model: The network as it was before the cut. It is timed beside the results.
        factors: Those of the chosen plan, which cuts directions, for the spectra.
        loader: Batches with targets, best held out, for accuracies and for the loss that each cut
            adds by itself. It needs `model`, and is read up to four times for each network.
        loss: What the loader's examples are judged by, as `training.mean_loss` takes it: that of the factors.
        adapter: How batches and outputs are to be read, if they are unusual.
        time_batches: How many examples are in the batches that are timed.
        repeats: Passes of each network in a timing, of which the median counts.
        dense: What is known already of the network before the cut.
        measured: What is known already of each result, in their order.
        chosen: Number of the result that the page is about.
        title: Of the page; "" for the network's class and the method.
        subtitle: A paragraph below it.
        settings: More of how this was made, told first.

    Raises:
        ValueError: There is no result, a number is out of range, or a loader comes without the model.
        TypeError: A result is something else.
    """
    entries = [_entry(result) for result in _several(results)]
    _check(entries, model, loader, measured, chosen)
    for argument, sizes in (("time_batches", time_batches), ("repeats", [repeats])):
        if wrong := [size for size in sizes if size < 1]:
            raise ValueError(f"report: {argument} must be at least 1, got {wrong[0]}; leave it out")
    known = [dense, *(measured or [_UNKNOWN] * len(entries))]
    here = [entry.result for entry in entries]
    if model is not None:
        if loader is not None:
            known = evaluated(model, here, Judge(loader, loss, adapter), known)
        known = timed(model, here, time_batches, repeats, known)

    original = max((entry.before for entry in entries), key=lambda cost: cost[1])
    whole = known[0]
    rows = [Measurement(0, 1.0, whole.accuracy, whole.accuracy, *original, milliseconds=whole.milliseconds)]
    places = _places(entries, original)
    methods = _methods([entry.record["settings"] for entry in entries], places)
    for entry, method, (budget, label), now in zip(entries, methods, places, known[1:], strict=True):
        rows.append(
            Measurement(
                0,
                budget,
                now.accuracy_cut,
                now.accuracy,
                *entry.after,
                milliseconds=now.milliseconds,
                predicted_loss=entry.record["predicted_loss"] if entry.found == original else None,
                measured_loss=None if now.loss is None or whole.loss is None else now.loss - whole.loss,
                method=method,
                label=label,
            )
        )
    one = entries[chosen]
    keys = [row.key for row in rows[1:]]
    skipped: dict[str, str] = {}
    for entry in entries:
        skipped.update(entry.record["skipped"])
    return ReportData(
        title=title or _title(one, methods[chosen]),
        subtitle=subtitle,
        chosen=keys[chosen],
        measurements=rows,
        layers=dict(zip(keys, (layer_cuts(entry.record) for entry in entries), strict=True)),
        why=why(one.record["settings"]) + (_LAST_ROUND if one.found != original else ""),
        skipped=skipped,
        spectra=spectra(one.result.plan, factors) if one.result and factors is not None else (),
        settings={
            **(settings or {}),
            **plan_settings([entry.record["settings"] for entry in entries]),
            **_how(model, loader, known, repeats),
            **_digests(one.result),
            **environment(device_of(one.result.model) if one.result else "cpu"),
        },
    )


def _several(results: Any) -> Sequence[Any]:
    return list(results) if isinstance(results, Iterable) and not isinstance(results, Mapping) else [results]


def _entry(result: Any) -> _Entry:
    if isinstance(result, PruneResult):
        before, after = (result.params_before, result.flops_before), (result.params_after, result.flops_after)
        return _Entry(result, result.plan.record(), before, after)
    if not isinstance(result, Mapping) or not {"settings", "layers", "params", "flops"} <= result.keys():
        raise TypeError(
            f"report: results must be of prune, or records of plans, got {type(result).__name__}; "
            "pass a PruneResult or plan.record()"
        )
    params, flops = result["params"], result["flops"]
    return _Entry(None, result, (params[0], flops[0]), (params[1], flops[1]))


def _check(
    entries: Sequence[_Entry],
    model: nn.Module | None,
    loader: Iterable[Any] | None,
    measured: Sequence[Measured],
    chosen: int,
) -> None:
    if not entries:
        raise ValueError("report: results must hold a result, got none; prune something first")
    if not -len(entries) <= chosen < len(entries):
        raise ValueError(
            f"report: chosen must be the number of a result, got {chosen} of {len(entries)}; count from 0"
        )
    if measured and len(measured) != len(entries):
        raise ValueError(
            f"report: measured must tell of every result, got {len(measured)} for {len(entries)}; "
            "pass Measured() where nothing is known"
        )
    if model is not None:
        check_model(model, caller="report")
    elif loader is not None:
        raise ValueError(
            "report: model must be given with a loader, got None; pass the network as it was before the cut"
        )
    if loader is not None and isinstance(loader, Iterator):
        raise TypeError(
            f"report: loader must be readable again, got a {type(loader).__name__}, which is over after one "
            "pass; pass a DataLoader or a list of batches"
        )


def _places(entries: Sequence[_Entry], original: tuple[int, int]) -> list[tuple[float, str]]:
    """The fraction that each network is placed at, and what that is called."""
    shares = [entry.after[1] / original[1] for entry in entries]
    if any(entry.before != original for entry in entries):
        return [(share, f"round {number}") for number, share in enumerate(shares, start=1)]
    places = []
    for entry, share in zip(entries, shares, strict=True):
        target = entry.record["settings"]["target"]
        if entry.found != original:
            places.append((share, "all rounds"))
        elif "flops" in target:
            places.append((float(target["flops"]), ""))
        else:
            places.append((share, target_name(target)))
    return places


def _methods(settings: Sequence[Mapping[str, Any]], places: Sequence[tuple[float, str]]) -> list[str]:
    """A name for each plan's method; where two have one name and place, with what else tells them apart."""
    names = []
    for plan in settings:
        extra = ["ekfac"] if plan.get("scores") == "ekfac" else []
        extra += ["least loss"] if plan.get("allocation") == "least_loss" else []
        names.append(", ".join([plan["method"], *extra]))
    for field in _TELLING:
        for group in _alike(names, places):
            if len({settings[i].get(field) for i in group}) > 1:
                for i in group:
                    names[i] += f", {field.replace('_', ' ')} {settings[i].get(field)}"
    for group in _alike(names, places):
        for count, i in enumerate(group[1:], start=2):
            names[i] += f" ({count})"
    return names


def _alike(names: Sequence[str], places: Sequence[tuple[float, str]]) -> list[list[int]]:
    """Numbers of plans that have both in common."""
    alike: dict[tuple[str, float], list[int]] = {}
    for i, (name, (budget, _)) in enumerate(zip(names, places, strict=True)):
        alike.setdefault((name, budget), []).append(i)
    return list(alike.values())


def _title(entry: _Entry, method: str) -> str:
    network = type(entry.result.model).__name__ if entry.result else "A network"
    return f"{network}, pruned by {method}"


def _how(
    model: nn.Module | None, loader: Iterable[Any] | None, known: Sequence[Measured], repeats: int
) -> dict[str, str]:
    told = {}
    if loader is not None:
        told["accuracy and loss"] = "on the examples of the loader, in eval mode"
    if model is not None and known[0].milliseconds:
        told["time"] = f"median of {repeats} passes, networks in turn, random inputs, eval mode"
    return told


def _digests(result: PruneResult | None) -> dict[str, str]:
    if result is None:
        return {}
    return {
        "SHA-256 of what was cut": result.parent,
        "SHA-256 of this network": weights_digest(result.model.state_dict()),
    }
