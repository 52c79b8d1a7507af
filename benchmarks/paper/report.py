"""What an experiment found: events.jsonl, table.md and charts, from the files of the stages that are done."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from eigendamage_ext.report import mean_sd
from eigendamage_ext.runs.stages import Stage, read_json, write_text

from .asked import DENSE, Asked
from .settings import Settings

Record = dict[str, Any]


class Events:
    """events.jsonl: a line for every stage that is done.

    It is made anew from the stages' files, and grows by a line whenever another is there: a line that was
    torn by a kill is whole after the next start.
    """

    def __init__(self, out: Path, stages: Sequence[Stage]) -> None:
        self.out, self.path = out, out / "events.jsonl"
        write_text(self.path, "".join(self._line(stage) for stage in stages if stage.path.exists()))

    def add(self, stage: Stage) -> None:
        """A stage is done."""
        with self.path.open("a") as file:
            file.write(self._line(stage))

    def _line(self, stage: Stage) -> str:
        found = read_json(stage.path) if stage.path.suffix == ".json" else {}
        event = {"stage": stage.name, "file": str(stage.path.relative_to(self.out)), **found}
        return json.dumps(event) + "\n"


class Row(NamedTuple):
    """What was asked of a network, and what every seed found.

    Attributes:
        manner: `Pruning.name`, or "dense".
        method: What it was cut by, or "dense".
        budget: In words.
        done: Records of the seeds that could do it.
        nearest: Where some could not, the nearest budget of each.
    """

    network: str
    manner: str
    method: str
    budget: str
    done: Sequence[Record]
    nearest: Sequence[float]

    def mean(self, key: str) -> float:
        """Over the seeds."""
        return fmean(record[key] for record in self.done)

    def percent(self, key: str) -> str:
        """Mean ± sample standard deviation over the seeds, in percent."""
        return mean_sd([100 * record[key] for record in self.done])


def rows(out: Path, settings: Settings) -> Iterator[Row]:
    """Whatever is done, in the order of the settings."""
    for network in settings.networks:
        for asked in Asked.all(settings):
            paths = [out / f"{network}-seed{seed}" / asked.folder / "result.json" for seed in settings.seeds]
            records = [_found(path) for path in paths if path.exists()]
            if records:
                done = [record for record in records if "nearest" not in record]
                nearest = [record["nearest"] for record in records if "nearest" in record]
                yield Row(network, asked.manner, asked.variant, asked.budget, done, nearest)


def _found(path: Path) -> Record:
    """A result, and how fast it is if that was timed."""
    latency = path.with_name("latency.json")
    return read_json(path) | (read_json(latency) if latency.exists() else {})


def write(out: Path, settings: Settings) -> Path | None:
    """Writes the table and the charts, and returns the table's path; None if nothing was measured yet."""
    found = list(rows(out, settings))
    if not found:
        return None
    for network in dict.fromkeys(row.network for row in found):
        for manner in dict.fromkeys(row.manner for row in found):
            picture = chart(network, manner, found)
            if picture is not None:
                write_text(out / f"{network}-{manner}.svg", picture)
    write_text(out / "table.md", table(found, settings))
    return out / "table.md"


def chart(network: str, manner: str, found: Sequence[Row]) -> str | None:
    """Accuracy against FLOPs before and after fine-tuning as an SVG file; None if nothing was cut."""
    try:
        from . import chart as drawing
    except ModuleNotFoundError:  # matplotlib draws it
        return None
    panels = drawing.panels(
        network, [row for row in found if row.network == network and row.manner in (manner, DENSE)]
    )
    return drawing.draw([panels]) if panels else None


HEAD = ("cut by", "budget", "FLOPs", "parameters", "cut, %", "with BN", "fine-tuned", "points lost", "seeds")


def table(found: Sequence[Row], settings: Settings) -> str:
    """The rows as Markdown, a table for each network and manner; mean ± standard deviation over the seeds."""
    text = ""
    dense = {
        (r["network"], r["seed"]): r["accuracy"] for row in found if row.manner == DENSE for r in row.done
    }
    for network, manner in dict.fromkeys((row.network, row.manner) for row in found if row.manner != DENSE):
        shown = [row for row in found if row.network == network and row.manner in (manner, DENSE)]
        sizes = sorted({int(size) for row in shown for record in row.done for size in record.get("ms", ())})
        head = [*HEAD, *(f"{what}, batch {size}" for what in ("ms", "speed") for size in sizes)]
        lines = [head, ["---"] * len(head), *([*_cells(row, dense), *_times(row, sizes)] for row in shown)]
        text += f"## {network}, {manner.replace('-', ' ')}\n\n"
        text += "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n"
    return text + about(settings) + "\n"


def _cells(row: Row, dense: Mapping[tuple[str, int], float]) -> list[str]:
    if not row.done:
        near = ", ".join(f"{value:g}" for value in sorted(set(row.nearest)))
        return [row.method, row.budget, f"not reachable; nearest {near}", *[""] * (len(HEAD) - 3)]
    lost = [
        100 * (dense[r["network"], r["seed"]] - r["accuracy_tuned"])
        for r in row.done
        if (r["network"], r["seed"]) in dense
    ]
    return [
        row.method,
        row.budget,
        f"{100 * row.mean('flops_kept'):.1f} %",
        f"{100 * row.mean('params_kept'):.1f} %",
        row.percent("accuracy"),
        row.percent("accuracy_bn"),
        row.percent("accuracy_tuned"),
        mean_sd(lost) if lost else "",
        f"{len(row.done)} of {len(row.done) + len(row.nearest)}" if row.nearest else str(len(row.done)),
    ]


def _times(row: Row, sizes: Sequence[int]) -> Iterator[str]:
    """Milliseconds, and how many times faster than the network as it was trained, at each batch size."""
    timed = [record for record in row.done if "ms" in record]
    for size in map(str, sizes):
        yield mean_sd([record["ms"][size] for record in timed], 2) if timed else ""
    for size in map(str, sizes):
        faster = [record["dense_ms"][size] / record["ms"][size] for record in timed]
        yield f"{fmean(faster):.2f}×" if timed else ""


def about(settings: Settings) -> str:
    """How to read the table."""
    data = settings.data
    count = {key: getattr(data, key) or "all" for key in ("train_images", "test_images")}
    return (
        f"{data.name}: {count['train_images']} training images, of which {100 * data.validation:g} % held "
        f"out to choose by, and {count['test_images']} test images, on which accuracy is measured after the "
        "last epoch; mean ± standard deviation over the seeds. FLOPs and parameters are what is kept of the "
        "whole network. With BN: batch-norm statistics re-estimated, nothing trained. Points lost: against "
        "the network as it was trained. The dense network is fine-tuned like the others, as a control."
        + (
            f" Time: a forward pass, median of {settings.timing.repeats}, in turn with it."
            if settings.timing
            else ""
        )
    )
