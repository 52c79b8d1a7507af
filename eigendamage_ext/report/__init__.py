"""The report: what was cut, what it cost and what it saved, as one self-contained HTML page.

`ReportData` is plain numbers and names: whoever measured something fills in what there is, and a section
without data is left out. The page has no script and fetches nothing; it follows the reader's light or dark
theme and fits a phone. matplotlib draws the charts and is imported only then.
"""

import os
from typing import BinaryIO

from .._files import write_atomically
from .data import (
    LayerCut,
    LossPair,
    Measurement,
    ReportData,
    Spectrum,
    Summary,
    headline,
    mean_sd,
    rank_correlation,
    summarize,
)

__all__ = [
    "LayerCut",
    "LossPair",
    "Measurement",
    "ReportData",
    "Spectrum",
    "Summary",
    "headline",
    "mean_sd",
    "rank_correlation",
    "render",
    "summarize",
    "write_report",
]


def write_report(path: str | os.PathLike[str], data: ReportData) -> None:
    """Write the page of ``data`` to ``path``, whole or not at all.

    Raises:
        FileNotFoundError: The folder does not exist.
        ModuleNotFoundError: matplotlib, which draws the charts, is missing.
    """
    html = render(data).encode()

    def write(file: BinaryIO) -> None:
        file.write(html)

    write_atomically(path, write)


def render(data: ReportData) -> str:
    """The page of ``data`` as HTML; raises as `write_report` does when matplotlib is missing."""
    try:
        from . import page
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "report: matplotlib must be installed for the charts, got no module "
            f"{error.name!r}; run `pip install matplotlib`",
            name=error.name,
        ) from error
    return page.render(data)
