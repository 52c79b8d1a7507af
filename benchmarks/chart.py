"""The chart of a record: how many times faster each kernel is than plain PyTorch, as a stand-alone SVG.

One line for each case on a logarithmic axis, from the fastest plain way to the usual one. Colours follow the
reader's theme by themselves, so that it serves as an image.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contest import Record, fastest

# op -> (heading, the usual way where it has been measured, the cases that may be shown)
KERNELS = {
    "channel_covariance": ("channel covariance", "channel_im2col", ""),
    "patch_covariance": ("patch covariance", "patch_unfold", ""),
    "gradient_second_moment": ("second moment", "moment_unfold", ""),
    "eigh": ("eigh", "torch", r"(?!one of|.*float64)"),
}
MOST_ROWS = 8  # of a kernel

WIDTH, LEFT, RIGHT, ROW, HEAD = 790, 280, 40, 22, 34
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.muted { fill: #59636e; } .grid { stroke: #d1d9e0; } .one { stroke: #59636e; stroke-dasharray: 4 3; }
.span { stroke: #8cb8e8; stroke-width: 4; stroke-linecap: round; } .fast { fill: #0b5cad; }
.usual { fill: #ffffff; stroke: #0b5cad; stroke-width: 2; } .head { font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .muted { fill: #9198a1; } .grid { stroke: #30363d; } .one { stroke: #9198a1; }
  .span { stroke: #2f5f94; } .fast { fill: #6cb6ff; } .usual { fill: #0d1117; stroke: #6cb6ff; }
}
"""


@dataclass(frozen=True)
class Row:
    kernel: str
    label: str
    record: Record
    fastest: float
    usual: float
    usual_name: str


def rows(records: Sequence[Record], most: int = MOST_ROWS) -> list[Row]:
    """The cases shown: the first of each kernel, but of eigh, whose cases are sizes, from small to large."""
    found = []
    for op, (kernel, usual, cases) in KERNELS.items():
        named = [r for r in records if r["op"] == op and r.get("baselines ms") and re.match(cases, r["case"])]
        step = max(1, len(named) // most) if cases else 1
        for record in named[::step][:most]:
            ratios = record["times faster"]
            name = usual if usual in ratios else max(ratios, key=lambda n: ratios[n])
            label = record["case"].removeprefix(f"{kernel} ").removeprefix(f"{kernel.split()[0]} ")
            label = re.sub(r"(?<=\d)x(?=\d)", "×", label)
            found.append(Row(kernel, label, record, ratios[fastest(record)], ratios[name], name))
    return found


def draw(result: dict[str, Any]) -> str:
    shown, about = rows(result["records"]), result["about"]
    low = min([1.0, *(row.fastest for row in shown)])
    high = max([10.0, *(max(row.usual, row.fastest) for row in shown)]) * 1.15
    headings = len({row.kernel for row in shown})
    bottom = 56 + ROW * len(shown) + HEAD * headings
    height = bottom + 46

    def x(ratio: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(ratio / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="How many times faster each kernel is than plain PyTorch">',
        f"<style>{STYLE}</style>",
        _text(LEFT, 20, "times faster than plain PyTorch", "head"),
        f'<circle class="fast" cx="{LEFT + 6}" cy="38" r="5"/>',
        _text(LEFT + 18, 42, "its fastest way", "muted"),
        f'<circle class="usual" cx="{LEFT + 136}" cy="38" r="5"/>',
        _text(LEFT + 148, 42, "its usual way", "muted"),
    ]
    for tick in (1, 2, 5, 10, 20, 50, 100, 200):
        if low <= tick <= high:
            name = "one" if tick == 1 else "grid"
            parts.append(
                f'<line class="{name}" x1="{x(tick):.1f}" y1="54" x2="{x(tick):.1f}" y2="{bottom}"/>'
            )
            parts.append(_text(x(tick), bottom + 17, f"{tick}×", "muted", "middle"))
    y, kernel = 56.0, ""
    for row in shown:
        if row.kernel != kernel:
            kernel = row.kernel
            parts.append(_text(12, y + 22, kernel, "head"))
            y += HEAD
        middle = y + ROW / 2
        parts.append(_text(LEFT - 14, middle + 4.5, row.label, "", "end"))
        parts.append(
            f'<line class="span" x1="{x(row.fastest):.1f}" y1="{middle}" '
            f'x2="{x(row.usual):.1f}" y2="{middle}"/>'
        )
        parts.append(f'<circle class="usual" cx="{x(row.usual):.1f}" cy="{middle}" r="5"/>')
        parts.append(f'<circle class="fast" cx="{x(row.fastest):.1f}" cy="{middle}" r="5"/>')
        y += ROW
    caption = ", ".join(
        (about["cpu"], f"{about['cores']} cores", f"PyTorch {about['torch']}", about["date"][:10])
    )
    parts += [_text(12, height - 8, caption, "muted"), "</svg>"]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, name: str, anchor: str = "start") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
