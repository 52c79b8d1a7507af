"""Axes, marks and text as inline SVG. Colours are classes, so that a chart follows the page's theme."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from .words import number

SHAPES = ("●", "■", "◆", "▲")
COLOURS = 6  # classes s0 to s5 of the style sheet


@dataclass(frozen=True)
class Scale:
    """Numbers from ``low`` to ``high`` onto pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a number lies, in pixels."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round numbers in the range, at most so many."""
        return (_log_ticks if self.log else _linear_ticks)(self.low, self.high, most)


def around(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """A range with some room around the values."""
    low, high = min(values), max(values)
    room = share * (high - low) or 0.5 * abs(high) or 0.5
    return low - room, high + room


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s for s in (size, 2 * size, 5 * size, 10 * size) if (high - low) / s <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in range(first, last + 1) for d in digits]
        ticks = [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def svg(description: str, width: float, height: float, *parts: str, style: str = "") -> str:
    """The whole drawing; readers that do not see it get the description."""
    label, box, kind = escape(description), f"0 0 {width:g} {height:g}", f"chart {style}".strip()
    return f'<svg class="{kind}" role="img" aria-label="{label}" viewBox="{box}">{"".join(parts)}</svg>'


def axes(
    x: Scale, y: Scale, *, xlabel: str = "", ylabel: str = "", x_ticks: int = 5, y_ticks: int = 5
) -> Iterator[str]:
    """Grid lines with their numbers, the label of y above its axis and that of x below."""
    for value in y.ticks(y_ticks):
        at = y(value)
        yield f'<path class="grid" d="M{x.start:.1f} {at:.1f}H{x.end:.1f}"/>'
        yield text(x.start - 6, at + 4, number(value), "end")
    yield f'<path class="axis" d="M{x.start:.1f} {y.start:.1f}H{x.end:.1f}"/>'
    for value in x.ticks(x_ticks) if x_ticks else ():
        at = x(value)
        yield f'<path class="axis" d="M{at:.1f} {y.start:.1f}v4"/>'
        yield text(at, y.start + 16, number(value), "middle")
    if ylabel:
        yield text(0, 11, ylabel, "start")
    if xlabel:
        yield text((x.start + x.end) / 2, y.start + 33, xlabel, "middle")


def text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    """A line of text."""
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points, in pixels."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path class="{style}" d="M{path}"/>'


def specks(points: Sequence[tuple[float, float]], style: str) -> str:
    """Many small dots in one path: strokes of no length with round ends."""
    path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return f'<path class="{style}" d="{path}"/>' if path else ""


def mark(x: float, y: float, style: str, *, shape: int = 0, size: float = 4, title: str = "") -> str:
    """A dot, square, diamond or triangle; the title appears under the pointer."""
    r = size * (1, 0.9, 1.25, 1.2)[shape]
    path = {
        0: f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0",
        1: f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
        2: f"M{x - r:.1f} {y:.1f}l{r} {-r}l{r} {r}l{-r} {r}z",
        3: f"M{x - r:.1f} {y + 0.8 * r:.1f}h{2 * r}l{-r} {-1.8 * r}z",
    }[shape]
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="{style}" d="{path}">{inner}</path>'
