"""What a run found, as a table in a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eigendamage_ext.pruning.table import change, table
from eigendamage_ext.runs.directory import FIRST
from eigendamage_ext.runs.pipeline import Asked, unreachable
from eigendamage_ext.runs.stages import read_json


def summary(out: Path, asked: Sequence[Asked]) -> str:
    """The networks of a run that are done, under the one they come from."""
    left_out, dense = unreachable(out), read_json(out / FIRST)
    done = [(one, read_json(one.folder(out) / "result.json")) for one in asked if one.name not in left_out]
    tuned = any(found["accuracy"] != found["accuracy_cut"] for _, found in done)
    columns = {"network": "left"} | dict.fromkeys(["accuracy cut"] * tuned + ["accuracy"], "right")
    columns |= dict.fromkeys(["parameters", "FLOPs", *_batches(done[0][1])], "right")
    rows = [["as it was", *_row(dense, dense, done[0][1], 0, tuned)]]
    rows += [[one.name or str(one.goal), *_row(found, dense, found, 1, tuned)] for one, found in done]
    lines = [f"{name}: {reason}" for name, reason in left_out.items()]
    return "\n".join([table(columns, rows, [""] * len(columns)), *lines])


def _batches(found: dict[str, Any]) -> Iterator[str]:
    for size in found["milliseconds"]:
        yield f"ms, batch of {size}"


def _row(
    found: dict[str, Any], dense: dict[str, Any], timed: dict[str, Any], column: int, tuned: bool
) -> Iterator[str]:
    if tuned:
        yield _percent(found.get("accuracy_cut"))
    yield _percent(found["accuracy"])
    yield change(dense["params"], found["params"])
    yield change(dense["flops"], found["flops"])
    for times in timed["milliseconds"].values():
        yield f"{times[column]:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
