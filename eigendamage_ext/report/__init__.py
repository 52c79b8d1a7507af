"""The report: what was cut, what it cost and what it saved, as one self-contained HTML page.

`gather` makes `ReportData` of what pruning returned and measures what nobody has measured yet; `write_report`
makes the page. `ReportData` is plain numbers and names, and a section without data is left out. The page has
no script and fetches nothing; it follows the reader's light or dark theme and fits a phone.
"""

import os
from typing import BinaryIO

from .._files import write_atomically
from .data import (
    DENSE,
    Key,
    LayerCut,
    LossPair,
    Measurement,
    ReportData,
    Spectrum,
    Summary,
    headline,
    rank_correlation,
    summarize,
)
from .gather import gather
from .measure import Measured
from .page import render
from .words import mean_sd

__all__ = [
    "DENSE",
    "Key",
    "LayerCut",
    "LossPair",
    "Measured",
    "Measurement",
    "ReportData",
    "Spectrum",
    "Summary",
    "gather",
    "headline",
    "mean_sd",
    "rank_correlation",
    "render",
    "summarize",
    "write_report",
]


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Writes the page of ``data`` to ``path``, whole or not at all.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    html = render(data).encode()

    def write(file: BinaryIO) -> None:
        file.write(html)

    write_atomically(path, write)
