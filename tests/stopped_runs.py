"""Runs of the command line that end too early, each in a process of its own that is forked from this one.

    python stopped_runs.py FOLDER '{"signal": "SIGKILL", "every": 5, "random": 2, "command": ["prune", …]}' …

For each JSON object: makes the command once, then begins it again and again, each time in a new folder, and
ends it by the signal: at every 5th place, say, where a file is written, replaced or noted, and twice after a
random while. Each is then run to its end. Prints a list for each object: a record of every trial.
"""

import json
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from eigendamage_ext import cli
from eigendamage_ext.runs import candidate
from eigendamage_ext.runs.events import Events, read_events

Act = Callable[[], None]


def trapped(act: Act, place: int) -> Callable[[], int]:
    """Calls `act` at a place, counted from 1; returns what tells how many places there were."""
    passed = 0

    def count() -> None:
        nonlocal passed
        passed += 1
        if passed == place:
            act()

    def around(function: Any, *, after: bool) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            count()
            result = function(*args, **kwargs)
            if after:
                count()
            return result

        return called

    os.replace = around(os.replace, after=True)
    os.fsync = around(os.fsync, after=False)
    Events.add = around(Events.add, after=True)  # type: ignore[method-assign]
    return lambda: passed


def forked(work: Callable[[], int]) -> int:
    """Starts a process that does the work and exits with what it returns."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with open(os.devnull, "w") as null, redirect_stdout(null):
            code = work()
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(folder: Path) -> dict[str, bytes]:
    """What must be the same however a run came to its end."""
    names = ("net.safetensors", "plan.json", "result.json", "config.toml")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.rglob(name)}


def damaged(folder: Path) -> list[str]:
    """Files of a run that do not load, apart from those that are being written under a name of their own."""
    loaders: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".toml": lambda path: tomllib.loads(path.read_text()),
        ".safetensors": safetensors.torch.load_file,
        ".html": lambda path: path.read_text().index("</html>"),
    }
    found = []
    for path in folder.rglob("[!.]*.*"):
        try:
            loaders.get(path.suffix, lambda path: None)(path)
        except Exception as error:
            found.append(f"{path.name}: {error}")
    return found


def trials(
    folder: Path, number: int, randoms: int, every: int, command: list[str]
) -> Iterator[dict[str, Any]]:
    """Ends runs and finishes them; see above."""

    def run(out: Path) -> int:
        return cli.main([*command, "-o", str(out), "--quiet"])

    # Once here, so that those to come find every module imported.
    with open(os.devnull, "w") as null, redirect_stdout(null):
        assert run(folder / "whole") == 0
    expected = results(folder / "whole")
    assert expected

    def counted() -> int:
        told = trapped(lambda: None, 0)
        code = run(folder / "counted")
        (folder / "places").write_text(str(told()))
        return code

    began = time.monotonic()
    assert ended(forked(counted)) == 0 and results(folder / "counted") == expected
    seconds, places = time.monotonic() - began, int((folder / "places").read_text())
    draw = random.Random(0)
    plans: list[tuple[str, float]] = [("place", at) for at in range(1, places + 1, every)]
    plans += [("after", draw.uniform(0, seconds)) for _ in range(randoms)]
    for index, (how, when) in enumerate(plans):
        out = folder / f"run{index}"

        def stopped(out: Path = out, how: str = how, when: float = when) -> int:
            if how == "place":
                trapped(lambda: os.kill(os.getpid(), number), int(when))
            return run(out)

        child = forked(stopped)
        if how == "after":
            time.sleep(when)
            os.kill(child, number)
        first = ended(child)
        broken = damaged(out)
        second = ended(forked(lambda out=out: run(out)))
        found = results(out) if second == 0 else {}
        yield {
            how: when,
            "first": first,
            "second": second,
            "same": found == expected,
            "damaged": broken,
            "left": [path.name for name in ("*.tmp", "tuning.safetensors") for path in out.rglob(name)],
            "events": read_events(out / "events.jsonl"),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    candidate.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    root, *asked = sys.argv[1:]
    for index, text in enumerate(asked):
        ask, here = json.loads(text), Path(root, str(index))
        here.mkdir()
        number = getattr(signal, ask["signal"])
        print(json.dumps(list(trials(here, number, ask["random"], ask["every"], ask["command"]))), flush=True)
