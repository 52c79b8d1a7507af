"""The report of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eigendamage_ext.pruning.direction_plan import DirectionPlan
from eigendamage_ext.report import Measured, gather, write_report
from eigendamage_ext.runs.candidate import Candidate
from eigendamage_ext.runs.settings import Pruned
from eigendamage_ext.runs.stages import read_json
from eigendamage_ext.runs.subject import REPEATS, Subject

POINTS = 0.01  # of accuracy that the network on the page may lose, if there is a choice


def write(path: Path, subject: Subject, candidates: Sequence[Candidate], times: Path) -> None:
    """Writes the page of a run, about the smallest of its networks that is good.

    Args:
        path: Where it goes.
        subject: What was pruned.
        candidates: What was made of it.
        times: How fast they are.
    """
    timed = read_json(times)
    dense = read_json(subject.path)
    found = [read_json(candidate.folder / "result.json") for candidate in candidates]
    chosen = choose(dense, found)
    results: list[Any] = [read_json(candidate.folder / "plan.json") for candidate in candidates]
    results[chosen] = result = candidates[chosen].result()
    factors = candidates[chosen].factors
    data = gather(
        results,
        factors=subject.factors(factors) if factors and isinstance(result.plan, DirectionPlan) else None,
        dense=Measured(dense["accuracy"], dense["accuracy"], dense["loss"], _times(timed, 0)),
        measured=[
            Measured(one["accuracy"], one["accuracy_cut"], one["loss"], _times(timed, number))
            for number, one in enumerate(found, start=1)
        ],
        chosen=chosen,
        settings=_told(subject.settings),
    )
    write_report(path, data)


def choose(dense: dict[str, Any], found: Sequence[dict[str, Any]]) -> int:
    """The number of the smallest network that loses at most `POINTS`; if all lose more, of the best."""
    accuracies = [one["accuracy"] or 0.0 for one in found]
    least = (dense["accuracy"] or 0.0) - POINTS
    good = [number for number, accuracy in enumerate(accuracies) if accuracy >= least]
    if good:
        return min(good, key=lambda number: found[number]["flops"])
    return accuracies.index(max(accuracies))


def _times(timed: dict[str, list[float]], number: int) -> dict[int, float]:
    return {int(size): times[number] for size, times in timed.items()}


def _told(settings: Pruned) -> dict[str, str]:
    """How the networks were made, in words."""
    tuning = f"{settings.epochs} epochs, learning rate {settings.lr:g}, {settings.schedule}" + (
        ", distilled from the network as it was" if settings.distill else ""
    )
    return {
        "network": settings.model + (f", weights {settings.weights}" if settings.weights else ""),
        "data": settings.data,
        "batch norm": "taken anew from the training data" if settings.recalibrate_bn else "left as it was",
        "fine-tuning": tuning if settings.epochs else "none",
        "time": f"median of {REPEATS} passes, all networks in turn",
    }
