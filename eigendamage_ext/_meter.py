"""One progress display for a job of many unlike stages, its work known beforehand."""

import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .data import TensorLoader


class Counted:
    """A loader that tells the meter: ``work`` for each full pass."""

    def __init__(self, loader: TensorLoader, meter: "Meter", work: float) -> None:
        self.loader, self.meter, self.step = loader, meter, work / len(loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.meter.advance(self.step)


class Meter:
    """Progress on standard error: a bar with the time left on a terminal, otherwise a line per stage."""

    def __init__(self, total: float, *, enabled: bool) -> None:
        console = Console(stderr=True)
        self.lines = enabled and not console.is_terminal
        self.console, self.total, self.done, self.start = console, total, 0.0, time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not enabled or self.lines,
        )
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "Meter":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def stage(self, text: str) -> None:
        self.bar.update(self.task, description=text)
        if self.lines:
            elapsed = time.monotonic() - self.start
            left = f", about {elapsed * (self.total / self.done - 1):.0f} s left" if self.done else ""
            self.console.print(f"{text} ({elapsed:.0f} s{left})", highlight=False)

    def advance(self, work: float) -> None:
        self.done += work
        self.bar.advance(self.task, work)
