"""What is made file by file, each whole or not at all, so that a killed run goes on from its files."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from eigendamage_ext._files import write_atomically
from eigendamage_ext.training import OutOfTime

DONE, FAILED, UNFINISHED, INTERRUPTED = 0, 1, 3, 130
ASSUMED = {"cuda": 100e12, "cpu": 50e9}  # FLOP/s while training


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


def prepare(out: Path, record: Mapping[str, Any], device: str, *, caller: str) -> None:
    """Makes the folder, or checks that it holds files of the same settings.

    Raises:
        ValueError: It holds others.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "settings.json"
    if path.exists():
        before = read_json(path)
        for name, value in record.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{caller}: --out must be of a run with the same settings, got {name} {before.get(name)} "
                    f"in place of {value}; choose another folder than {out}"
                )
    else:
        write_json(path, record)
    for unfinished in out.rglob(".*.tmp"):  # of a run that was killed while it wrote
        unfinished.unlink()
    if torch.device(device).type == "cuda":
        torch.backends.cudnn.deterministic = True


def complete(
    out: Path,
    stages: Sequence[Stage],
    deadline: float | None,
    device: str,
    made: Callable[[Stage], None] = lambda _: None,
) -> int:
    """Makes what is missing, and says how it goes.

    Args:
        out: The folder, to name it.
        stages: Everything.
        deadline: A ``time.monotonic()``, or None.
        device: Where it is done.
        made: Is told of each stage that is done.

    Returns:
        0, `UNFINISHED` or `INTERRUPTED`.
    """
    left = sum(stage.work for stage in stages if not stage.path.exists())
    speed = ASSUMED[torch.device(device).type]
    print(
        f"{out}: {left / 1e15:.3g} PFLOP to do; at {speed / 1e12:g} TFLOP/s, which is an estimate, "
        f"{duration(left / speed)}",
        file=sys.stderr,
    )
    code = DONE
    try:
        for stage in make(stages, deadline, lambda text: print(text, file=sys.stderr, flush=True)):
            made(stage)
        if not all(stage.path.exists() for stage in stages):
            code = UNFINISHED
    except OutOfTime:
        code = UNFINISHED
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return code


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
