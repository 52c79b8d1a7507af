"""What `benchmarks.cifar` found: results.jsonl, table.md and a chart of each network, from what there is."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cifar_stages import DENSE
from benchmarks.stages import read_json, write_text
from eigendamage_ext.report import mean_sd

Record = dict[str, Any]


def write(out: Path) -> Path | None:
    """Writes the report of a folder and returns the path of the table; None if nothing was measured yet."""
    records = collect(out)
    if not records:
        return None
    lines = "".join(json.dumps(record) + "\n" for record in records)
    write_text(out / "results.jsonl", lines)
    for network in dict.fromkeys(record["network"] for record in records):
        found = chart([record for record in records if record["network"] == network])
        if found is not None:
            write_text(out / f"{network}.svg", found)
    write_text(out / "table.md", table(records, read_json(out / "settings.json")))
    return out / "table.md"


def collect(out: Path) -> list[Record]:
    """A record for each network that was measured, of all seeds; by network, variant, budget and seed."""
    records = []
    for path in out.glob("*/*/result.json"):
        record = read_json(path)
        timed = path.with_name("latency.json")
        latency = read_json(timed) if timed.exists() else {"ms": {}, "dense_ms": {}}
        records.append(record | {"ms": latency["ms"], "dense_ms": latency["dense_ms"]})
    return sorted(
        records, key=lambda r: (r["network"], variant(r) != DENSE, variant(r), -r["budget"], r["seed"])
    )


def variant(record: Record) -> str:
    """What was done to the network."""
    if record["method"] is None:
        return DENSE
    return ".".join(record[key] for key in ("method", "scores", "allocation"))


def table(records: Sequence[Record], settings: Record) -> str:
    """The records as Markdown: mean ± standard deviation over the seeds."""
    sizes = sorted({int(size) for record in records for size in record["ms"]})
    head = ["network", "cut by", "FLOPs, M", "kept", "parameters, M", "kept"]
    head += ["accuracy cut, %", "with BN", "fine-tuned", "points lost", "seeds"]
    head += [f"ms, batch {size}" for size in sizes] + [f"speed, batch {size}" for size in sizes]
    rows: dict[tuple[str, str, float], list[Record]] = defaultdict(list)
    dense: dict[tuple[str, int], float] = {}
    for record in records:
        rows[record["network"], variant(record), record["budget"]].append(record)
        if variant(record) == DENSE:
            dense[record["network"], record["seed"]] = record["accuracy_tuned"]
    lines = [head, ["---"] * len(head)]
    for (network, cut, _), group in rows.items():
        lost = [
            100 * (dense[network, r["seed"]] - r["accuracy_tuned"])
            for r in group
            if (network, r["seed"]) in dense
        ]
        accuracies = [_percent(group, key) for key in ("accuracy", "accuracy_bn", "accuracy_tuned")]
        row = [
            network,
            cut,
            f"{_mean(group, 'flops') / 1e6:.1f}",
            f"{100 * _mean(group, 'flops_kept'):.1f} %",
        ]
        row += [f"{_mean(group, 'params') / 1e6:.3f}", f"{100 * _mean(group, 'params_kept'):.1f} %"]
        row += ["", "", accuracies[2], ""] if cut == DENSE else [*accuracies, mean_sd(lost) if lost else ""]
        row.append(str(len(group)))
        for size in map(str, sizes):
            row.append(mean_sd([r["ms"][size] for r in group if size in r["ms"]] or [float("nan")], 2))
        for size in map(str, sizes):
            speeds = [r["dense_ms"][size] / r["ms"][size] for r in group if size in r["ms"]]
            row.append(f"{fmean(speeds):.2f}×" if speeds else "")
        lines.append(row)
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_about(settings)}\n"


def _mean(group: Sequence[Record], key: str) -> float:
    return fmean(record[key] for record in group)


def _percent(group: Sequence[Record], key: str) -> str:
    return mean_sd([100 * record[key] for record in group])


def _about(settings: Record) -> str:
    count = {key: settings[key] or "all" for key in ("train_images", "test_images")}
    return (
        f"CIFAR-10 as JPEG: {count['train_images']} training images, a tenth of them held out, and "
        f"{count['test_images']} test images, on which accuracy is measured after the last epoch. "
        f"Fine-tuning: {settings['finetune_epochs']} epochs with the trained network as teacher. "
        f"Time: a forward pass{' under bfloat16 autocast' if settings['device'] == 'cuda' else ''}, channels "
        f"last, median of {settings['repeats']}, in turn with the trained network. "
        f"PyTorch {settings['torch']} on {settings['device']}."
    )


def chart(records: Sequence[Record]) -> str | None:
    """Fine-tuned accuracy against FLOPs of one network as an SVG file; None if nothing was cut yet."""
    try:
        from eigendamage_ext.report import charts
    except ModuleNotFoundError:  # matplotlib draws them
        return None
    whole = [100 * record["accuracy_tuned"] for record in records if variant(record) == DENSE]
    cuts = [record for record in records if variant(record) != DENSE]
    if not whole or not cuts:
        return None
    budgets = sorted({record["budget"] for record in cuts}, reverse=True)
    found: dict[str, dict[float, list[float]]] = {}
    for record in cuts:
        by_budget = found.setdefault(variant(record), {budget: [] for budget in budgets})
        by_budget[record["budget"]].append(100 * record["accuracy_tuned"])
    network = records[0]["network"]
    picture = charts.methods(
        network,
        f"Test accuracy of {network} after fine-tuning against the FLOPs kept, by what it was cut by. "
        f"Dense: {fmean(whole):.1f} %.",
        budgets=budgets,
        series=[(re.sub("[._]", " ", name), list(accuracy.values())) for name, accuracy in found.items()],
        dense=whole,
    )
    return charts.standalone(picture)
