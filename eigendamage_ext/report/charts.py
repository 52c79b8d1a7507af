"""Charts as inline SVG that follows the page's theme.

Drawn by matplotlib in placeholder colours, which become CSS variables afterwards; text stays text. Each chart
is narrow, so that the same drawing is legible on a phone and beside another one on a desk. What a chart shows
is plain numbers: this module knows nothing of networks.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_SLOTS = ("ink", "muted", "grid", "accent", "warm")
INK, MUTED, GRID, ACCENT, WARM = (f"#0b0b0{slot + 1}" for slot in range(len(_SLOTS)))
_VARIABLES = {f"#0b0b0{slot + 1}": f"var(--{name})" for slot, name in enumerate(_SLOTS)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "eigendamage",
    "text.parse_math": False,  # a name may contain a dollar sign
    "text.color": INK,
    "font.size": 10.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _: object = None) -> str:
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)


@contextmanager
def _canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        yield figure, axes


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as one ``<svg>`` element whose ids begin with ``name``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # Its <style> would apply to the whole page, its <metadata> names addresses.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r"#([\w-]+)[)\"]", ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # inside HTML an element needs no namespace
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            key = key.rpartition("}")[2]
            if key == "id":
                if value not in used:
                    continue
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value[1:]}"
            else:
                value = re.sub(r"url\(#([\w-]+)\)", rf"url(#{name}-\1)", value)
            element.attrib[key] = value
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": description, "class": "chart"})
    text = ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _fractions(axes: Axes, budgets: Sequence[float]) -> None:
    axes.set_xlim(min(budgets) - 0.06, 1.05)
    axes.set_xticks(sorted({*budgets, 1.0}), [f"{100 * b:.3g}" for b in sorted({*budgets, 1.0})])
    axes.set_xlabel("FLOPs kept, %")
    axes.grid(False, axis="x")


def accuracy(
    name: str,
    description: str,
    *,
    budgets: Sequence[float],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    dense: float,
) -> str:
    """Accuracy in percent against FLOPs; ``before[i]`` and ``after[i]`` hold every seed at ``budgets[i]``."""
    with _canvas(400, 280) as (figure, axes):
        axes.axhline(dense, color=INK, linewidth=1, dashes=(4, 3))
        for values, colour in ((before, WARM), (after, ACCENT)):
            axes.plot(budgets, [sum(v) / len(v) for v in values], color=colour)
            for budget, seeds in zip(budgets, values, strict=True):
                axes.plot(
                    [budget] * len(seeds),
                    seeds,
                    "o",
                    color=colour,
                    markersize=5,
                    alpha=0.35,
                    markeredgewidth=0,
                )
        _fractions(axes, budgets)
        axes.set_ylabel("held-out accuracy, %")
        return _svg(figure, name, description)


def time(
    name: str, description: str, *, budgets: Sequence[float], relative: Sequence[Sequence[float]]
) -> str:
    """Time of a batch relative to the dense net against the FLOPs kept; ``relative[i]`` holds every seed."""
    with _canvas(400, 280) as (figure, axes):
        axes.axhline(1, color=INK, linewidth=1, dashes=(4, 3))
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(1, 2.5))
        axes.plot(budgets, [sum(v) / len(v) for v in relative], color=ACCENT)
        for budget, seeds in zip(budgets, relative, strict=True):
            axes.plot(
                [budget] * len(seeds), seeds, "o", color=ACCENT, markersize=5, alpha=0.35, markeredgewidth=0
            )
        _fractions(axes, budgets)
        axes.set_ylim(0, max(1.12, 1.08 * max(max(v) for v in relative)))
        axes.set_ylabel("time of a batch, dense = 1")
        return _svg(figure, name, description)


def heat_map(
    name: str,
    description: str,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    labels: Sequence[Sequence[str]],
    title: str,
    xlabel: str,
) -> str:
    """Cells tinted by ``values`` in [0, 1], with ``labels`` written in them; 1 is left untinted and muted."""
    with _canvas(400, 62 + 22 * len(rows)) as (figure, axes):
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                whole = value >= 1
                tint = 0.0 if whole else 0.12 + 0.6 * (1 - value)
                axes.add_patch(
                    Rectangle((j + 0.03, i + 0.05), 0.94, 0.9, color=ACCENT, alpha=tint, linewidth=0)
                )
                axes.text(
                    j + 0.5,
                    i + 0.52,
                    labels[i][j],
                    ha="center",
                    va="center",
                    fontsize=9.5,
                    color=MUTED if whole else INK,
                )
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel=xlabel, title=title)
        axes.set_xticks([j + 0.5 for j in range(len(columns))], columns)
        axes.set_yticks(
            [i + 0.5 for i in range(len(rows))], [n if len(n) <= 20 else "…" + n[-19:] for n in rows]
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(False)
        return _svg(figure, name, description)


def spectrum(
    name: str,
    description: str,
    *,
    title: str,
    sides: Sequence[tuple[Sequence[float], Sequence[bool]]],
    floor: float = 1e-8,
) -> str:
    """Eigenvalues over the largest, log scale, largest first; the input side, then the output side.

    Each side is its eigenvalues and whether the direction is kept. Long spectra are thinned evenly; what is
    below ``floor`` is drawn on it.
    """
    lowest = 0.1
    with _canvas(220, 176) as (figure, axes):
        for (values, kept), colour in zip(sides, (WARM, ACCENT), strict=True):
            top = max(values, default=0.0)
            if len(values) < 2 or top <= 0:
                continue
            order = sorted(range(len(values)), key=lambda i: -values[i])
            step = max(1, len(order) // 64)
            points = [
                (100 * rank / (len(order) - 1), max(values[order[rank]] / top, floor), kept[order[rank]])
                for rank in range(0, len(order), step)
            ]
            lowest = min(lowest, *(p[1] for p in points))
            axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, linewidth=0.8, alpha=0.5)
            for keep, fill in ((True, colour), (False, "none")):
                chosen = [p for p in points if p[2] is keep]
                axes.plot(
                    [p[0] for p in chosen],
                    [p[1] for p in chosen],
                    "o",
                    color=colour,
                    markerfacecolor=fill,
                    markersize=3 if keep else 2.6,
                    markeredgewidth=0 if keep else 0.5,
                )
        axes.set_yscale("log")
        axes.set(ylim=(10 ** math.floor(math.log10(lowest) - 0.01), 2), xlim=(-3, 103), title=title)
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_xticks([0, 50, 100], ["0", "50", "100 %"])
        axes.grid(False, axis="x")
        return _svg(figure, name, description)


def scatter(
    name: str,
    description: str,
    *,
    title: str,
    groups: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> str:
    """Measured against predicted, log–log with the diagonal; one colour per group, at most two groups.

    A measured value of zero or less has no place on the scale: an open triangle at the lower edge stands in.
    """
    positive = [v for group in groups for side in group for v in side if v > 0]
    low, high = (min(positive) / 1.8, max(positive) * 1.8) if positive else (0.1, 1.0)
    with _canvas(400, 330) as (figure, axes):
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(4, 3))
        for (predicted, measured), colour in zip(groups, (ACCENT, WARM), strict=False):
            shown = [(p, m) for p, m in zip(predicted, measured, strict=True) if p > 0]
            axes.plot(
                [p for p, m in shown if m > 0],
                [m for p, m in shown if m > 0],
                "o",
                color=colour,
                markersize=6,
                alpha=0.6,
                markeredgewidth=0,
            )
            axes.plot(
                [p for p, m in shown if m <= 0],
                [low * 1.15 for p, m in shown if m <= 0],
                "v",
                color=colour,
                markersize=6,
                markerfacecolor="none",
            )
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title)
        axes.set(xlabel="predicted increase of the loss", ylabel="measured")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(numticks=7))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(_power))
        axes.set_box_aspect(0.75)
        return _svg(figure, name, description)
