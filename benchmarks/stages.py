"""A folder of stages: the settings it is of, how much work they are, and the exit code."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eigendamage_ext.runs.stages import Stage, duration, make, read_json, write_json
from eigendamage_ext.training import OutOfTime

DONE, FAILED, UNFINISHED, INTERRUPTED = 0, 1, 3, 130
ASSUMED = {"cuda": 100e12, "cpu": 50e9}  # FLOP/s while training


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
