"""What is made file by file, each whole or not at all, so that a killed run goes on from its files."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from eigendamage_ext._files import write_atomically


@dataclass(frozen=True)
class Stage:
    """Something to make.

    Attributes:
        name: What it is, in words.
        path: The last file it writes: it is done when that is there.
        work: Floating-point operations, about.
        make: Makes it.
        checkpoint: Where it goes on if it was stopped in the middle; of no use once it is done.
    """

    name: str
    path: Path
    work: float
    make: Callable[[], None]
    checkpoint: Path | None = None


def make(stages: Sequence[Stage], deadline: float | None, announce: Callable[[str], None]) -> Iterator[Stage]:
    """Makes what is missing, in order, and yields it; stops before what would not be done in time.

    Args:
        stages: Everything.
        deadline: A ``time.monotonic()``, or None.
        announce: Is told what comes next and, once that is known, how long all will take.

    Raises:
        OutOfTime: In the middle of a stage that can go on later.
    """
    todo = []
    for stage in stages:
        if stage.path.exists():
            _forget(stage)
        else:
            todo.append(stage)
    began, done = time.monotonic(), 0.0
    for index, stage in enumerate(todo):
        now = time.monotonic()
        rate = done / (now - began) if done else None
        if deadline is not None and rate:  # the first is begun in any case
            needed = 0.0 if stage.checkpoint else stage.work / rate
            if now + needed > deadline:
                return
        left = sum(other.work for other in todo[index:])
        remaining = f", about {duration(left / rate)} left in all" if rate else ""
        announce(f"[{len(stages) - len(todo) + index + 1}/{len(stages)}] {stage.name}{remaining}")
        stage.make()
        _forget(stage)
        done += stage.work
        yield stage


def duration(seconds: float) -> str:
    """Seconds, or minutes where they are many."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def read_json(path: Path) -> Any:
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text())


def _forget(stage: Stage) -> None:
    """Removes what a stage that is done went on from."""
    if stage.checkpoint:
        stage.checkpoint.unlink(missing_ok=True)
