"""A progress bar with the time left, on standard error."""

import sys
import time
from collections.abc import Generator, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0


def track(
    iterable: Iterable[T],
    *,
    total: int | None,
    description: str,
    enabled: bool = True,
    outer: bool = False,
) -> Generator[T, None, None]:
    """Yields the items and shows how far they are: a bar on a terminal, otherwise a plain line now and then.

    Args:
        iterable: What to go through.
        total: How many items there are, or None where nobody knows; without it no time left is shown.
        description: What is going on, in a word or two.
        enabled: False shows nothing.
        outer: What is done with an item shows bars of its own, so lines alone are written.
    """
    if not enabled:
        yield from iterable
    elif sys.stderr.isatty() and not outer:
        yield from _bar(iterable, total, description)
    else:
        yield from _lines(iterable, total, description)


def _bar(iterable: Iterable[T], total: int | None, description: str) -> Generator[T, None, None]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        for item in iterable:
            try:
                yield item
            finally:  # an item counts as done, too, where the caller stops after it
                progress.advance(task)


def _lines(iterable: Iterable[T], total: int | None, description: str) -> Generator[T, None, None]:
    start = shown = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            rest = (
                "" if total is None else f"/{total}, about {(now - start) / done * (total - done):.0f} s left"
            )
            print(f"{description}: {done}{rest}", file=sys.stderr, flush=True)
