"""What a run found, as a table in a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eigendamage_ext.pruning.table import change, table
from eigendamage_ext.runs.directory import FIRST
from eigendamage_ext.runs.pipeline import TIMES, Asked, unreachable
from eigendamage_ext.runs.stages import read_json


def summary(out: Path, asked: Sequence[Asked]) -> str:
    """The networks of a run that is done, under the one they come from."""
    left_out, dense, timed = unreachable(out), read_json(out / FIRST), read_json(out / TIMES)
    done = [(one, read_json(one.folder(out) / "result.json")) for one in asked if one.name not in left_out]
    tuned = any(found["accuracy"] != found["accuracy_cut"] for _, found in done)
    titles = ["accuracy cut"] * tuned + ["accuracy", "parameters", "FLOPs"]
    titles += [f"ms, batch of {size}" for size in timed]
    named = [("as it was", dense), *((one.name or str(one.goal), found) for one, found in done)]
    rows = []
    for number, (name, found) in enumerate(named):
        times = [f"{times[number]:.2f}" for times in timed.values()]
        rows.append([name, *_row(found, dense, tuned), *times])
    lines = [f"{name}: {reason}" for name, reason in left_out.items()]
    columns = {"network": "left"} | dict.fromkeys(titles, "right")
    return "\n".join([table(columns, rows, [""] * len(columns)), *lines])


def _row(found: dict[str, Any], dense: dict[str, Any], tuned: bool) -> Iterator[str]:
    if tuned:
        yield _percent(found.get("accuracy_cut"))
    yield _percent(found["accuracy"])
    yield change(dense["params"], found["params"])
    yield change(dense["flops"], found["flops"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
