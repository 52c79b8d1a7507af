"""Distil the small experiments into one record, and show it in docs/results.md and docs/results.svg.

python -m benchmarks.paper.results [--out DIR]     distils what benchmarks.paper left there
python -m benchmarks.paper.results --render        only draws the committed record again
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.report import commit, with_section
from eigendamage_ext import _devices, ops
from eigendamage_ext.runs.stages import read_json, write_text

from .asked import DENSE
from .report import Row, rows
from .settings import read

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs" / "small"
RECORD = REPOSITORY / "benchmarks" / "results" / "paper-small.json"
PAGE = REPOSITORY / "docs" / "results.md"
FIGURE = REPOSITORY / "docs" / "results.svg"
TITLES = {
    "resnet8": "ResNet-8, 32/64/128, CIFAR-10 as JPEG",
    "resnet32": "ResNet-32, 16/32/64, CIFAR-10 as JPEG",
    "digits": "ResNet-8, 64/128/256, digits",
}
ROUNDS, EXACT = "digits-rounds", "digits-exact"
KEPT = (
    "seed",
    "flops_kept",
    "params_kept",
    "accuracy",
    "accuracy_bn",
    "accuracy_tuned",
    "accuracy_validation",
)
MARKS = ("<!-- {} -->", "<!-- /{} -->")

Record = dict[str, Any]


def distil(out: Path) -> Record:
    """What every small experiment found, and where."""
    experiments = {}
    for name in (*TITLES, ROUNDS, EXACT):
        settings = read(CONFIGS / f"{name}.toml")
        found = [
            row._replace(done=[_rounded(record) for record in row.done]) for row in rows(out / name, settings)
        ]
        experiments[name] = [row._asdict() for row in found]
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "cpu": _devices.name("cpu"),
        "threads": torch.get_num_threads(),
        "simd": ops.build_info()["simd"],
        "torch": torch.__version__,
    }
    return {"about": about, "experiments": experiments}


def _rounded(record: Record) -> Record:
    return {key: round(record[key], 5) for key in KEPT if key in record}


def text(record: Record) -> str:
    """The record as JSON, a row on each line."""

    def named(name: str, value: str) -> str:
        return f"{json.dumps(name)}: {value}"

    experiments = [
        named(name, "[\n" + ",\n".join(map(json.dumps, found)) + "\n]")
        for name, found in record["experiments"].items()
    ]
    about = named("about", json.dumps(record["about"]))
    return f"{{{about},\n" + named("experiments", "{" + ",\n".join(experiments) + "}}") + "\n"


def loaded(record: Record) -> dict[str, list[Row]]:
    """The rows of each experiment."""
    return {name: [Row(**row) for row in found] for name, found in record["experiments"].items()}


def one_pass(experiments: Mapping[str, Sequence[Row]]) -> str:
    """A table: what every method leaves at each budget, without and with fine-tuning, on every network."""
    budgets = sorted({row.budget for name in TITLES for row in experiments[name] if row.budget}, reverse=True)
    head = ["cut by", *(budget.removeprefix("flops ") for budget in budgets)]
    lines = [head, ["---"] * len(head)]
    for name, title in TITLES.items():
        found = experiments[name]
        [dense] = [row for row in found if row.manner == DENSE]
        whole = f"{dense.percent('accuracy')} → {dense.percent('accuracy_tuned')}"
        seeds = f", {len(dense.done)} seeds" if len(dense.done) > 1 else ""
        lines.append([f"**{title}**{seeds}, dense {whole}", *[""] * len(budgets)])
        table = {(row.method, row.budget): row for row in found}
        best = {
            budget: max((_tuned(row) for row in found if row.budget == budget), default=0.0)
            for budget in budgets
        }
        for method in dict.fromkeys(row.method for row in found if row.manner != DENSE):
            cells = ((table.get((method, budget)), best[budget]) for budget in budgets)
            lines.append([_named(method), *(_cell(row, most) if row else "" for row, most in cells)])
    return _markdown(lines)


def _tuned(row: Row) -> float:
    return row.mean("accuracy_tuned") if row.done else 0.0


def _named(method: str) -> str:
    return method.replace(".", ", ").replace("_", " ")


def _cell(row: Row, best: float | None = None) -> str:
    """Cut, with BN re-estimated, fine-tuned."""
    if not row.done:
        return f"not below {fmean(row.nearest):.2f}"
    cut, bn = (f"{100 * row.mean(key):.1f}" for key in ("accuracy", "accuracy_bn"))
    tuned = row.percent("accuracy_tuned")
    return f"{cut} ({bn}) → {f'**{tuned}**' if _tuned(row) == best else tuned}"


def rounds(found: Sequence[Row]) -> str:
    """A table: one pass against rounds to the same budget."""
    manners = [manner for manner in dict.fromkeys(row.manner for row in found) if manner != DENSE]
    lines = [["cut by"], ["---"]]
    for manner in manners:
        lines[0] += [f"{manner.replace('-', ' ')}: FLOPs", "parameters", "fine-tuned"]
        lines[1] += ["---"] * 3
    for method in dict.fromkeys(row.method for row in found if row.manner != DENSE):
        line = [_named(method)]
        for manner in manners:
            last = [row for row in found if (row.method, row.manner) == (method, manner)][-1:]
            if not last:
                line += [""] * 3
            elif last[0].done:
                line += [f"{100 * last[0].mean(key):.1f} %" for key in ("flops_kept", "params_kept")]
                line.append(last[0].percent("accuracy_tuned"))
            else:
                line += [f"not below {fmean(last[0].nearest):.2f}", "", ""]
        lines.append(line)
    return _markdown(lines)


def fishers(drawn: Sequence[Row], exact: Sequence[Row]) -> str:
    """A table: what methods find by one drawn label, and by the exact Fisher."""
    cuts = [row for row in exact if row.manner != DENSE]
    budgets, methods = (
        list(dict.fromkeys(getattr(row, key) for row in cuts)) for key in ("budget", "method")
    )
    head = [
        "cut by",
        *(f"{b.removeprefix('flops ')}, {how}" for b in budgets for how in ("one draw", "exact")),
    ]
    lines = [head, ["---"] * len(head)]
    for method in methods:
        wanted = [(method, budget) for budget in budgets]
        rows = [
            row
            for key in wanted
            for found in (drawn, exact)
            for row in found
            if (row.method, row.budget) == key
        ]
        lines.append([_named(method), *(_cell(row) for row in rows)])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(about: Record) -> str:
    """Where the figures are from."""
    return (
        f"({about['cpu']}, {about['threads']} thread, {about['simd']}, PyTorch {about['torch']}; "
        f"{about['date']}, commit {about['commit']}.)"
    )


def sections(record: Record) -> Iterator[tuple[str, str]]:
    """What stands between the marks of the page, by their names."""
    experiments = loaded(record)
    yield (
        "one pass",
        f"![Accuracy against FLOPs](results.svg)\n\n{one_pass(experiments)}\n\n{provenance(record['about'])}",
    )
    yield "rounds", rounds(experiments[ROUNDS])
    yield "fishers", fishers(experiments["digits"], experiments[EXACT])


def page(document: str, record: Record) -> str:
    """The page with its sections replaced."""
    for name, section in sections(record):
        begin, end = (mark.format(name) for mark in MARKS)
        document = with_section(document, f"{begin}\n{section}\n{end}", begin, end)
    return document


def figure(record: Record, form: str = "svg") -> Any:
    """Accuracy against FLOPs of every network, before and after fine-tuning; the SVG ends with `stamp`."""
    from . import chart

    experiments = loaded(record)
    picture = chart.draw([chart.panels(title, experiments[name]) for name, title in TITLES.items()], form)
    return picture + stamp(record) if form == "svg" else picture


def stamp(record: Record) -> str:
    """A comment that says which record was drawn: other versions of matplotlib draw it otherwise."""
    return f"<!-- record {hashlib.sha256(text(record).encode()).hexdigest()} -->\n"


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper.results", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/paper"), help="(default: %(default)s)")
    parser.add_argument("--render", action="store_true", help="draw the committed record again")
    options = parser.parse_args(arguments)
    if not options.render:
        write_text(RECORD, text(distil(options.out)))
    record = read_json(RECORD)
    write_text(PAGE, page(PAGE.read_text(), record))
    write_text(FIGURE, figure(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
