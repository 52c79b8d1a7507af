"""Sections, tables and figures as HTML; what is given as plain text is escaped here."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says, plain.
        bar: A share in [0, 1], drawn under the text.
        tint: How dark the cell is, in [0, 1].
    """

    text: str
    bar: float | None = None
    tint: float | None = None

    def html(self, kind: str) -> str:
        """As ``<td>`` of a class."""
        for name, share, whole in (("bar", self.bar, 100), ("tint", self.tint, 45)):
            if share is not None:
                size = whole * min(max(share, 0.0), 1.0)
                style = f' style="--{name}:{size:.3g}%"'
                return f"<td{_class(kind, name)}{style}>{escape(self.text)}</td>"
        return f"<td{_class(kind)}>{escape(self.text)}</td>"


def section(heading: str, words: str, *content: str) -> str:
    """A section; its words and content are HTML."""
    parts = ["<section>", f"<h2>{escape(heading)}</h2>", f"<p>{words}</p>" if words else "", *content]
    return "\n".join(filter(None, [*parts, "</section>"]))


def table(
    caption: str,
    align: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    chosen: int | None = None,
    style: str = "",
) -> str:
    """A table that scrolls in a box of its own.

    Args:
        caption: Above it, plain.
        align: "l" for a column of text, "r" for one of numbers.
        header: Names of the columns, plain.
        rows: The first cell of each is plain and names the row.
        chosen: Number of the row to point at.
        style: A class of the style sheet.
    """
    kinds = ["number" if side == "r" else "" for side in align]
    columns = zip(kinds, header, strict=True)
    head = "".join(f'<th scope="col"{_class(kind)}>{_whole(name)}</th>' for kind, name in columns)
    body = []
    for number, (name, *cells) in enumerate(rows):
        filled = (cell if isinstance(cell, Cell) else Cell(cell) for cell in cells)
        tds = "".join(cell.html(kind) for kind, cell in zip(kinds[1:], filled, strict=True))
        pointed = ' class="chosen" aria-current="true"' if number == chosen else ""
        body.append(f'<tr{pointed}><th scope="row">{_whole(str(name))}</th>{tds}</tr>')
    lines = "\n".join(body)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{_class(style)}><caption><span>{escape(caption)}</span></caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>"
    )


def figure(chart: str, caption: str = "") -> str:
    """A chart and what is said below it, both HTML."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{chart}{below}</figure>"


def details(summary: str, *content: str) -> str:
    """HTML that is shown on demand, and in print."""
    return "\n".join([f"<details><summary>{escape(summary)}</summary>", *content, "</details>"])


def legend(mark: str, words: str) -> str:
    """One entry of a legend: a mark in HTML, words in plain text."""
    return f'<span class="legend">{mark}{escape(words)}</span>'


def stroke(style: str) -> str:
    """The mark of a line, or of a box, in a legend."""
    return f'<span class="stroke {style}" aria-hidden="true"></span>'


def _whole(name: str) -> str:
    """A name whose percentage is not broken."""
    return escape(name.replace(" %", "\N{NO-BREAK SPACE}%"))


def _class(*names: str) -> str:
    given = " ".join(filter(None, names))
    return f' class="{given}"' if given else ""
