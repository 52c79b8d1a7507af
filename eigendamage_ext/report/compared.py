"""The sections that compare networks: against FLOPs, in numbers, in predicted and measured loss."""

import math
from collections.abc import Sequence
from html import escape
from statistics import fmean, median

from . import charts
from .charts import Point, Series
from .data import DENSE, ReportData, Summary, rank_correlation
from .markup import details, figure, legend, section, stroke, table
from .words import digits, mean_sd, number, unit


def frontier(rows: Sequence[Summary], chosen: Summary | None) -> str:
    """What is lost, and how long a batch takes, against the FLOPs kept; of several networks."""
    pruned = [row for row in rows if not row.dense]
    if len(pruned) < 2:
        return ""
    figures = [chart for chart in (_lost(rows, pruned, chosen), _clock(pruned, chosen)) if chart]
    if not figures:
        return ""
    seeds = " Lines are means; each faint dot is one seed." if len(pruned[0].flops) > 1 else ""
    what = "Accuracy" if any(row.accuracy for row in pruned) else "Loss"
    timed = " and time" if any(row.speedup for row in pruned) else ""
    ring = " The ring marks the network that this page is about." if chosen else ""
    return section(
        f"{what}{timed} against FLOPs", f"{ring}{seeds}".strip(), '<div class="pair">', *figures, "</div>"
    )


def numbers(rows: Sequence[Summary], chosen: Summary | None) -> str:
    """Every network in figures."""
    if not rows:
        return ""
    several = len(_methods(rows)) > 1
    tuned = any(row.accuracy_cut for row in rows if not row.dense)
    known = [row for row in rows if row.accuracy]
    columns: list[tuple[str, str, list[str]]] = [("budget", "l", [row.name for row in rows])]
    if several:
        columns.append(("method", "l", [row.key.method for row in rows]))
    if tuned:
        cells = ["" if row.dense else mean_sd(row.accuracy_cut) for row in rows]
        columns.append(("accuracy before, %", "r", cells))
    if known:
        columns.append(
            ("fine-tuned, %" if tuned else "accuracy, %", "r", [mean_sd(row.accuracy) for row in rows])
        )
        lost = ["" if row.dense else mean_sd(row.points_lost) for row in rows]
        columns.append(("points lost", "r", lost))
    columns.append(_counts("parameters", [fmean(row.params) for row in rows]))
    columns.append(_counts("FLOPs", [fmean(row.flops) for row in rows]))
    columns.append(("FLOPs kept, %", "r", [f"{100 * fmean(row.flops_kept):.1f}" for row in rows]))
    batches = _batches(rows)
    for n in batches:
        of = f", batch of\N{NO-BREAK SPACE}{n}" if len(batches) > 1 else " per batch"
        columns.append((f"ms{of}", "r", [_mean_time(row.milliseconds.get(n, ())) for row in rows]))
        speeds = [f"{fmean(row.speedup[n]):.2f}×" if n in row.speedup else "" for row in rows]
        columns.append(("speed", "r", speeds))
    seeds = len(rows[0].flops)
    spread = f", mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else ""
    lost_words = "Points lost compares each seed with its own dense network. " if known and seeds > 1 else ""
    pointed = next((i for i, row in enumerate(rows) if row is chosen), None)
    return section(
        "In numbers",
        f"{lost_words}FLOPs are two per multiply-add of convolutions and linear layers, for one example."
        + (f" A batch holds {batches[0]} example{'s' * (batches[0] > 1)}." if len(batches) == 1 else ""),
        table(
            f"Every network{spread}",
            "".join(side for _, side, _ in columns),
            [name for name, _, _ in columns],
            list(zip(*(cells for _, _, cells in columns), strict=True)),
            chosen=pointed if len(rows) > 2 else None,
            style="networks",
        ),
    )


def _counts(name: str, values: Sequence[float]) -> tuple[str, str, list[str]]:
    """A column of numbers of parameters or FLOPs, in a unit that suits the first."""
    letter, size = unit(values[0])
    decimals = 1 + digits(values[0] / size)
    return f"{name}, {letter}".rstrip(", "), "r", [f"{value / size:.{decimals}f}" for value in values]


def _mean_time(values: Sequence[float]) -> str:
    return mean_sd(values, digits(fmean(values))) if values else ""


def losses(data: ReportData, rows: Sequence[Summary]) -> str:
    """The loss that was predicted for each cut against the one that was measured."""
    sweep = [(row, p, m) for row in rows for p, m in zip(row.predicted_loss, row.measured_loss, strict=False)]
    figures = []
    if data.alone:
        pairs = [(p.predicted, p.measured, f"{p.layer}, {p.cut}") for p in data.alone]
        figures.append(_pairs("each layer cut alone", [pairs]))
    if len(sweep) > 1:
        methods = _methods(rows)
        groups = [[(p, m, _full(row)) for row, p, m in sweep if row.key.method == one] for one in methods]
        figures.append(_pairs("whole networks", groups, methods))
    if not figures and not sweep:
        return ""
    listed = [("all layers", _full(row), p, m) for row, p, m in sweep]
    listed += [(pair.layer, pair.cut, pair.predicted, pair.measured) for pair in data.alone]
    made = table(
        "Increase of the loss, by each cut",
        "llrrr",
        ("layer", "cut", "predicted", "measured", "measured over predicted"),
        [(a, b, number(p), number(m), number(m / p, 2) if p > 0 else "") for a, b, p, m in listed],
    )
    return section(
        "Predicted and measured loss",
        "The increase of the mean loss that the factors predict for a cut, against the one measured when the "
        "cut is made and nothing else: no re-estimated statistics, no fine-tuning. The prediction is a "
        "second-order expansion: good at ranking cuts, and too low where the loss bends up faster than a "
        "parabola, as it does around a network with hardly any loss left.",
        *(['<div class="pair">', *figures, "</div>"] if figures else []),
        details("Each cut in numbers", made) if figures else made,
    )


def _lost(rows: Sequence[Summary], pruned: Sequence[Summary], chosen: Summary | None) -> str:
    """Accuracy, or else the measured increase of the loss, against FLOPs."""
    if any(row.accuracy for row in pruned):
        dense = rows[0].accuracy if rows[0].dense else ()
        after = _series(pruned, "accuracy", chosen, "{} % accuracy")
        before = _series(pruned, "accuracy_cut", chosen, "{} % before fine-tuning", faint=True)
        told = _told(pruned, "accuracy", " %")
        description = f"Accuracy against FLOPs kept. Dense: {mean_sd(dense)} %; {told}."
        label, level = "accuracy, %", fmean(dense) if dense else None
        tuned = bool(before)
    else:
        after, before = _series(pruned, "measured_loss", chosen, "loss up by {}"), []
        description = f"Increase of the loss against FLOPs kept: {_told(pruned, 'measured_loss', '', 3)}."
        label, level, tuned = "increase of the loss, before fine-tuning", 0.0, False
    if not after:
        return ""
    chart = charts.curves(description, [*before, *after], xlabel="FLOPs kept, %", ylabel=label, level=level)
    entries = [legend(charts.key(i), name) for i, name in enumerate(_methods(pruned)) if name]
    if not entries and tuned:
        entries.append(legend(charts.key(0), "fine-tuned"))
    if tuned:
        entries.append(legend(stroke("dash"), "before fine-tuning"))
    entries.append(legend(stroke("level"), "dense"))
    return figure(chart, " ".join(entries))


def _clock(pruned: Sequence[Summary], chosen: Summary | None) -> str:
    """Time of a batch relative to the dense network, against FLOPs, for each method or size of a batch."""
    sizes = [n for n in _batches(pruned) if any(n in row.speedup for row in pruned)]
    methods = _methods(pruned)
    if len(methods) > 1:
        sizes = sizes[-1:]
    series, names = [], []
    for colour, (method, n) in enumerate((method, n) for method in methods for n in sizes):
        points = []
        for row in pruned:
            if n in row.speedup and row.key.method == method:
                relative = [1 / s for s in row.speedup[n]]
                title = f"{_full(row)}, batch of {n}: {fmean(relative):.2f} of the dense network's time"
                points.append(Point(100 * fmean(row.flops_kept), relative, title, row is chosen))
        if points:
            series.append(Series(colour, sorted(points, key=lambda p: -p.x)))
            names.append(method if len(methods) > 1 else f"batch of {n}")
    if not series:
        return ""
    told = "; ".join(
        f"{name}: " + ", ".join(f"{p.mean:.2f} at {p.x:.0f} %" for p in s.points)
        for name, s in zip(names, series, strict=True)
    )
    of = f"a batch of {sizes[0]}" if len(sizes) == 1 else "a batch"
    chart = charts.curves(
        f"Time of {of} relative to the dense network against FLOPs kept. {told}.",
        series,
        xlabel="FLOPs kept, %",
        ylabel=f"time of {of}, dense = 1",
        level=1.0,
        diagonal=True,
        zero=True,
    )
    entries = [legend(charts.key(s.colour), name) for s, name in zip(series, names, strict=True)]
    entries.append(legend(stroke("level"), "dense"))
    entries.append(legend(stroke("guide"), "if time followed FLOPs"))
    return figure(chart, " ".join(entries))


def _pairs(
    title: str, groups: Sequence[Sequence[tuple[float, float, str]]], names: Sequence[str] = ("",)
) -> str:
    """A scatter of (predicted, measured, name)."""
    together = [pair for group in groups for pair in group]
    predicted, measured = [p for p, _, _ in together], [m for _, m, _ in together]
    rho = rank_correlation(predicted, measured)
    stated = "undefined" if math.isnan(rho) else mean_sd([rho], 2)
    caption = f"Rank correlation (Spearman) {stated} over {len(together)} cuts."
    if ratios := [m / p for p, m, _ in together if p > 0]:
        caption += f" Measured over predicted, median: {number(median(ratios), 2)}."
    if below := sum(m <= 0 for m in measured):
        caption += f" Open triangles: {below} cut{'s' if below > 1 else ''} that did not raise the loss."
    series = [
        Series(
            i, [Point(p, [m], f"{name}: predicted {number(p)}, measured {number(m)}") for p, m, name in group]
        )
        for i, group in enumerate(groups)
    ]
    chart = charts.scatter(
        f"Measured against predicted increase of the loss, {title}. {caption}",
        series,
        xlabel="predicted increase of the loss",
        ylabel=f"measured, {title}",
    )
    named = [(i, name) for i, name in enumerate(names) if len(names) > 1 and groups[i]]
    entries = [legend(charts.key(i), name) for i, name in named]
    entries.append(legend(stroke("guide"), "as predicted"))
    return figure(chart, f"{' '.join(entries)}<br>{escape(caption)}")


def _series(
    rows: Sequence[Summary], what: str, chosen: Summary | None, told: str, *, faint: bool = False
) -> list[Series]:
    """A field of the rows against FLOPs, a series for each method that has it."""
    made = []
    for colour, method in enumerate(_methods(rows)):
        points = []
        for row in rows:
            values: Sequence[float] = getattr(row, what)
            if row.key.method == method and values:
                kept = 100 * fmean(row.flops_kept)
                title = f"{_full(row)}: {told.format(mean_sd(values, 2))}, {kept:.1f} % of the FLOPs"
                points.append(Point(kept, values, title, row is chosen))
        if points:
            made.append(Series(colour, sorted(points, key=lambda p: -p.x), faint))
    return made


def _told(rows: Sequence[Summary], what: str, unit: str, digits: int = 1) -> str:
    return "; ".join(
        f"{row.key.method} {100 * fmean(row.flops_kept):.0f} % of the FLOPs: "
        f"{mean_sd(getattr(row, what), digits)}{unit}".strip()
        for row in rows
        if getattr(row, what)
    )


def _methods(rows: Sequence[Summary]) -> list[str]:
    """The methods of what was cut, in the order of the rows."""
    return list(dict.fromkeys(row.key.method for row in rows if row.key != DENSE))


def _batches(rows: Sequence[Summary]) -> list[int]:
    """The sizes of batches that were timed."""
    return sorted({n for row in rows for n in row.milliseconds})


def _full(row: Summary) -> str:
    return f"{row.key.method}, {row.name}" if row.key.method else row.name
