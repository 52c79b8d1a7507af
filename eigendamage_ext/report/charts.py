"""The charts of a report. What they show is plain numbers: this module knows nothing of networks.

Each is narrow, so that the same drawing is legible on a phone and beside another one on a desk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .svg import COLOURS, SHAPES, Scale, around, axes, line, mark, specks, svg, text

WIDTH, HEIGHT = 360.0, 262.0
SPECKS = 64  # of a spectrum: longer ones are thinned evenly


@dataclass(frozen=True)
class Point:
    """A place on a chart: every seed's ``ys`` at ``x``, and what is told under the pointer."""

    x: float
    ys: Sequence[float]
    title: str
    chosen: bool = False

    @property
    def mean(self) -> float:
        """Where the mark is."""
        return sum(self.ys) / len(self.ys)


@dataclass(frozen=True)
class Series:
    """Points of one colour and shape; ``faint`` ones are open, on a dashed line."""

    colour: int
    points: Sequence[Point]
    faint: bool = False


def key(colour: int) -> str:
    """The mark that stands for a series in a legend."""
    return f'<span class="key s{colour % COLOURS}" aria-hidden="true">{SHAPES[colour % len(SHAPES)]}</span>'


def curves(
    description: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    level: float | None = None,
    diagonal: bool = False,
    zero: bool = False,
) -> str:
    """Lines over percentages kept, up to 100.

    Args:
        description: For readers that do not see it.
        series: At least one with a point.
        xlabel: Of the x axis.
        ylabel: Of the y axis.
        level: Where the dense network is.
        diagonal: Draw y = x / 100 too.
        zero: The y axis begins at 0.
    """
    values = [y for s in series for p in s.points for y in p.ys] + ([] if level is None else [level])
    low, high = around(values)
    first = min(p.x for s in series for p in s.points)
    x = Scale(max(0.0, min(first - 5, 90)), 102, 44, WIDTH - 8)
    y = Scale(0 if zero else low, high, HEIGHT - 40, 24)
    parts = list(axes(x, y, xlabel=xlabel, ylabel=ylabel))
    if level is not None:
        parts.append(line([(x.start, y(level)), (x.end, y(level))], "level"))
    if diagonal:
        ends = (max(x.low, 100 * y.low), min(100, 100 * y.high))
        parts.append(line([(x(v), y(v / 100)) for v in ends], "guide"))
    for s in series:
        colour = f"s{s.colour % COLOURS}"
        parts.append(line([(x(p.x), y(p.mean)) for p in s.points], f"line {colour}{' dash' * s.faint}"))
    for s in series:
        colour = f"s{s.colour % COLOURS}"
        for p in s.points:
            if len(p.ys) > 1:
                parts.append(specks([(x(p.x), y(v)) for v in p.ys], f"seed {colour}"))
            if p.chosen and not s.faint:
                parts.append(mark(x(p.x), y(p.mean), "ring", size=9))
            style = f"{'open' if s.faint else 'mark'} {colour}"
            parts.append(mark(x(p.x), y(p.mean), style, shape=s.colour % len(SHAPES), title=p.title))
    return svg(description, WIDTH, HEIGHT, *parts)


def scatter(description: str, series: Sequence[Series], *, xlabel: str, ylabel: str) -> str:
    """Each point's mean against its x, log–log with the diagonal.

    What is zero or less has no place on the scale: an open triangle at the lower edge stands in.
    """
    points = [p for s in series for p in s.points]
    positive = [v for p in points for v in (p.x, p.mean) if 0 < v < math.inf]
    low, high = (min(positive) / 1.8, max(positive) * 1.8) if positive else (0.1, 1.0)
    x = Scale(low, high, 48, WIDTH - 8, log=True)
    y = Scale(low, high, HEIGHT - 40, 24, log=True)
    parts = list(axes(x, y, xlabel=xlabel, ylabel=ylabel))
    parts.append(line([(x(low), y(low)), (x(high), y(high))], "guide"))
    for s in series:
        for p in s.points:
            if not 0 < p.x < math.inf or not math.isfinite(p.mean):
                continue
            colour = f"s{s.colour % COLOURS}"
            if p.mean > 0:
                shape = s.colour % len(SHAPES)
                parts.append(mark(x(p.x), y(p.mean), f"mark pale {colour}", shape=shape, title=p.title))
            else:
                parts.append(mark(x(p.x), y.start - 6, f"open {colour}", shape=3, title=p.title))
    return svg(description, WIDTH, HEIGHT, *parts)


def spectrum(
    description: str, title: str, sides: Sequence[tuple[Sequence[float], Sequence[bool]]], floor: float = 1e-8
) -> str:
    """Eigenvalues over the largest, log scale, largest first; the output side in s0, the input side in s1.

    Args:
        description: For readers that do not see it.
        title: Above it.
        sides: Eigenvalues and whether each direction is kept: of the output side, then of the input side.
        floor: What is below is drawn on it.
    """
    width, height = 200.0, 138.0
    largest = [max(values, default=0.0) for values, _ in sides]
    shares = [
        [max(v / top, floor) for v in values] if top > 0 else []
        for (values, _), top in zip(sides, largest, strict=True)
    ]
    lowest = min((v for side in shares for v in side), default=0.1)
    x = Scale(0, 1, 42, width - 6)
    y = Scale(10.0 ** math.floor(min(-1, math.log10(lowest)) + 1e-9), 1.0, height - 20, 26, log=True)
    parts = list(axes(x, y, x_ticks=0, y_ticks=4))
    parts += [text(x(0), y.start + 15, "largest", "start"), text(x(1), y.start + 15, "smallest", "end")]
    shown = title if len(title) <= 24 else "…" + title[-23:]
    parts.append(text(0, 13, shown, "start", "name"))
    for colour, (side, (_, kept)) in enumerate(zip(shares, sides, strict=True)):
        order = sorted(range(len(side)), key=lambda i: -side[i])
        last, step = max(1, len(order) - 1), max(1, math.ceil(len(order) / SPECKS))
        places = [(x(rank / last), y(side[i]), kept[i]) for rank, i in enumerate(order) if not rank % step]
        for keep, style in ((False, "gone"), (True, "kept")):
            parts.append(specks([(a, b) for a, b, k in places if k is keep], f"{style} s{colour}"))
    return svg(description, width, height, *parts, style="small")
