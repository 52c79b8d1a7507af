"""Charts: accuracy against the FLOPs kept, a line for each method, before and after fine-tuning."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .asked import DENSE
from .report import Row

SIDES = (("accuracy_bn", "cut, BN re-estimated"), ("accuracy_tuned", "fine-tuned"))
INK, MUTED, GRID = "#24292f", "#59636e", "#d8dee4"
LINES = {  # method -> colour, dashes, marker; open markers are filter methods
    "eigendamage": ("#0b5cad", "-", "o"),
    "eigendamage-depthwise": ("#6cb0f0", "-", "D"),
    "kron-obd": ("#d1365a", "-", "s"),
    "kron-obs": ("#d1365a", "--", "s"),
    "c-obd": ("#e08a1e", "-", "^"),
    "c-obs": ("#e08a1e", "--", "^"),
    "taylor": ("#7a4fb5", "-", "v"),
    "l1": ("#4d8b31", "-", "P"),
    "nn-slimming": ("#8a6346", "-", "X"),
    "random": ("#9aa2ab", "--", "x"),
}
MORE = ("#00998a", "#b8a100", "#c05bb5", "#3b3f8f")  # variants and what is new
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eigendamage",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.5,
}


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        title: Above it.
        dense: Accuracy in percent of the whole network.
        lines: For each method FLOPs kept and accuracy, both in percent.
    """

    title: str
    dense: float | None
    lines: dict[str, list[tuple[float, float]]]


def panels(title: str, rows: Sequence[Row]) -> list[Panel]:
    """Those of one network, before and after fine-tuning; none if nothing was cut."""
    cuts = [row for row in rows if row.manner != DENSE and row.done]
    whole = [row for row in rows if row.manner == DENSE and row.done]
    found = []
    ends = {row.budget.partition(",")[0] for row in cuts if "round" in row.budget}
    for key, side in SIDES if cuts else ():
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in cuts:
            name = f"{row.method} to {row.budget.partition(',')[0]}" if len(ends) > 1 else row.method
            lines.setdefault(name, []).append((100 * row.mean("flops_kept"), 100 * row.mean(key)))
        dense = 100 * fmean(row.mean("accuracy") for row in whole) if whole else None
        found.append(
            Panel(f"{title}: {side}", dense, {name: sorted(points) for name, points in lines.items()})
        )
    return found


def draw(grid: Sequence[Sequence[Panel]], form: str = "svg") -> Any:
    """A figure of rows of panels with one legend, as the text of an SVG file or the bytes of a PNG."""
    names = list(dict.fromkeys(name for row in grid for panel in row for name in panel.lines))
    styles = dict(_styles(names))
    height = 250 * len(grid) + 24 + 16 * -(-len(names) // 4)
    with _style():
        figure = Figure(figsize=(760 / 72, height / 72), layout="constrained", facecolor="white")
        axes = figure.subplots(len(grid), len(grid[0]), squeeze=False)
        for row, places in zip(grid, axes, strict=True):
            for panel, place in zip(row, places, strict=True):
                _draw_panel(place, panel, styles)
            places[0].set_ylabel("test accuracy, %")
        for place in axes[-1]:
            place.set_xlabel("FLOPs kept, %")
        handles = {line.get_label(): line for place in axes.flat for line in place.get_lines()}
        figure.legend(
            [handles[name] for name in names],
            [name.replace(".", ", ").replace("_", " ") for name in names],
            loc="outside lower center",
            ncols=4,
            frameon=False,
            handlelength=3,
        )
        return _saved(figure, form)


def _draw_panel(axes: Axes, panel: Panel, styles: dict[str, Any]) -> None:
    axes.set_title(panel.title)
    if panel.dense is not None:
        axes.axhline(panel.dense, color=MUTED, linewidth=1, dashes=(1, 2.5))
    for name, points in panel.lines.items():
        axes.plot(*zip(*points, strict=True), label=name, **styles[name])
    axes.grid(False, axis="x")


def _styles(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    more = iter(MORE * len(names))
    for name in names:
        colour, dashes, marker = LINES.get(name.partition(" ")[0]) or (next(more), "-", "h")
        ours = name.startswith("eigendamage")
        yield (
            name,
            {
                "color": colour,
                "linestyle": dashes,
                "marker": marker,
                "markersize": 5 if ours else 4.5,
                "markerfacecolor": colour if ours else "white",
                "linewidth": 2.2 if ours else 1.3,
                "zorder": 3 if ours else 2,
            },
        )


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        yield


def _saved(figure: Figure, form: str) -> Any:
    if form == "png":
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=110)
        return picture.getvalue()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
