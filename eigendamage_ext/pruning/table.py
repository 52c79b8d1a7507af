"""Numbers and tables as text."""

import io
from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 1000  # of the console: wider than any table, so that nothing is wrapped or cut off


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str]], totals: Sequence[str] | None) -> str:
    """Rows under a head and above their totals, if there are any, without colours.

    Args:
        columns: Title and "left" or "right" of each column.
        rows: A cell for each column; missing ones are empty.
        totals: The last row.
    """
    made = Table(box=SIMPLE, show_footer=totals is not None, pad_edge=False)
    for (title, side), total in zip(columns.items(), totals or [""] * len(columns), strict=True):
        made.add_column(title, Text(total), justify="left" if side == "left" else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(Text, row))
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(made)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def change(before: int, after: int) -> str:
    """Two numbers and the share that is left, or one number where nothing changes."""
    return short(before) if before == after else f"{short(before)} → {short(after)} ({after / before:.1%})"


def short(number: int) -> str:
    """Three digits and a letter: 1.23M."""
    for factor, letter in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{float(f'{number / factor:.3g}'):g}{letter}"
    return str(number)
