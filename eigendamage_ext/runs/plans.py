"""Plans for several budgets and methods, from one file of factors; no data are read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.pruning.allocation import UnreachableError
from eigendamage_ext.pruning.plan import Plan
from eigendamage_ext.pruning.table import change, table
from eigendamage_ext.runs.reach import briefly
from eigendamage_ext.runs.settings import Goal, PlanSettings, Way
from eigendamage_ext.runs.subject import make_plan, network


class Planned(NamedTuple):
    """A budget, a method, and the plan, or why there is none."""

    way: Way
    goal: Goal
    plan: Plan[Any] | str


def plans(settings: PlanSettings, source: Path, caller: str) -> Iterator[Planned]:
    """The plans, methods first.

    Args:
        settings: What is planned.
        source: A file of factors, or the folder of a run.
        caller: The command, for messages.

    Raises:
        ValueError: The factors do not fit the network or a method; an ArtifactError where a file is damaged.
    """
    out = source if source.is_dir() else None
    found = Factors.load(out / "factors.safetensors" if out else source)
    model = network(settings, settings.seed, caller, out=out)
    for way in settings.ways:
        for goal in settings.goals:
            try:
                made: Plan[Any] | str = make_plan(model, found, goal, way, settings, settings.seed, None)
            except UnreachableError as error:
                made = briefly(error)
            yield Planned(way, goal, made)


def compared(found: Sequence[Planned]) -> str:
    """Several plans as a table."""
    columns = {"method": "left", "budget": "left"}
    columns |= dict.fromkeys(["parameters", "FLOPs", "predicted loss", "layers cut"], "right")
    rows = [[str(way), str(goal), *_row(plan)] for way, goal, plan in found if isinstance(plan, Plan)]
    lines = [f"{way}, {goal}: {reason}" for way, goal, reason in found if isinstance(reason, str)]
    return "\n".join([table(columns, rows, [""] * len(columns))] * bool(rows) + lines)


def _row(plan: Plan[Any]) -> Iterator[str]:
    yield change(plan.params_before, plan.params_after)
    yield change(plan.flops_before, plan.flops_after)
    yield "" if plan.predicted_loss is None else f"{plan.predicted_loss:.3g}"
    yield f"{sum(row.params.after != row.params.before for row in plan.values())} of {len(plan)}"
