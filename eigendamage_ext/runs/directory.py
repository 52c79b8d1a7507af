"""A run's folder: one process at a time, one configuration for ever, files that are whole or absent.

    config.toml    what was asked for; begins the run
    env.json       with what it was made
    events.jsonl   what happened
    stages/        what later stages go on from

Other files are the stages' results.
"""

import fcntl
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from eigendamage_ext._tables import to_toml
from eigendamage_ext.runs.environment import environment
from eigendamage_ext.runs.events import Events
from eigendamage_ext.runs.settings import Pruned
from eigendamage_ext.runs.stages import Stage, make, read_json, write_json, write_text

CONFIG, LOCK, MARK = "config.toml", ".lock", "# eigendamage"
UNREACHABLE, FIRST = "stages/unreachable.json", "stages/dense.json"
NOTES = (CONFIG, "env.json", "events.jsonl", Path(UNREACHABLE).name)
FOLDERS = ("stages", "networks")
RESULTS = ("factors*.safetensors", "plan.json", "net.safetensors", "result.json", "times.json", "report.html")


class RunDirectory:
    """The folder, held by this process until the end of the ``with``.

    Args:
        path: The folder; it may be absent, empty, or a run's with the same settings.
        command: What the run is of, for messages.
        settings: What the run depends on.
        start_over: Throw away what is there of a run.
        quiet: Say nothing of how it goes.

    Raises:
        ValueError: The folder is no run's, of a run with other settings, or another process works in it.
    """

    def __init__(
        self, path: Path, command: str, settings: Pruned, *, start_over: bool = False, quiet: bool = False
    ) -> None:
        self.path, self.command, self.settings = path, command, settings
        self.start_over, self.quiet = start_over, quiet
        self.events = Events(path / "events.jsonl")

    def __enter__(self) -> "RunDirectory":
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(self._fault("a file", "choose another"))
        self.path.mkdir(parents=True, exist_ok=True)
        lock = _locked(self.path / LOCK)
        if lock is None:
            raise ValueError(self._fault("one that another process works in", "wait for it or end it"))
        self._lock = lock
        try:
            self._prepare()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt)
            with suppress(OSError):  # such as the one that ended the run
                self.events.add("stopped" if stopped else "failed", error=f"{type(error).__name__}: {error}")
        os.close(self._lock)

    def complete(self, stages: Sequence[Stage]) -> None:
        """Makes what is missing, in order; events and lines on standard error tell how it goes."""
        logged = [replace(stage, make=partial(self._made, stage)) for stage in stages]
        for _ in make(logged, None, self.tell):
            pass

    def tell(self, text: str) -> None:
        """A line on standard error, unless the run is quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def _made(self, stage: Stage) -> None:
        self.events.add("begun", stage=stage.name)
        began = time.monotonic()
        stage.make()
        self.events.add("ended", stage=stage.name, seconds=round(time.monotonic() - began, 3))

    def _prepare(self) -> None:
        config, text = self.path / CONFIG, to_toml(self.settings.record())
        if config.exists() and config.read_text().startswith(MARK):
            if self.start_over or not any(self._made_files()):  # a run that made nothing binds nobody
                self._clear()
        elif others := sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")):
            raise ValueError(self._fault(f"one that holds {others[0]!r} and no run", "choose another"))
        if not config.exists():
            write_text(
                config, f"{MARK} {self.command} --config {CONFIG} -o OTHER does the same again\n{text}"
            )
        self._compare(tomllib.loads(config.read_text()), tomllib.loads(text))
        for unfinished in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
            unfinished.unlink()
        (self.path / "stages").mkdir(exist_ok=True)
        self._note_environment()

    def _made_files(self) -> Iterator[Path]:
        """What stages have made."""
        for path in self.path.rglob("*"):
            if path.is_file() and path.name not in NOTES and not path.name.startswith("."):
                yield path

    def _compare(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
        if names:
            found = [f"{name} {there.get(name)} in place of {here.get(name)}" for name in names[:3]]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{self.command}: output must be a new folder or that of a run with the same settings, got "
                f"{', '.join(found)}{more} in {self.path / CONFIG}; choose another with -o, or throw that "
                "run away with --start-over"
            )

    def _note_environment(self) -> None:
        path, now = self.path / "env.json", environment(self.settings.device)
        if not path.exists():
            write_json(path, now)
            self.events.add("started", command=self.command)
            return
        before = read_json(path)
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        self.events.add("resumed", command=self.command, changed=changed)
        for name in sorted(changed.keys() - {"commit", "system"}):
            self.tell(
                f"note: {name} is {changed[name]} and was {before.get(name)} when the run began: numbers may "
                "differ from those of a run in one go"
            )

    def _clear(self) -> None:
        """Removes what runs make; the configuration last, so that a kill leaves a run of the old settings."""
        for folder in FOLDERS:
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for pattern in (*RESULTS, ".*.tmp", *reversed(NOTES)):
            for file in self.path.glob(pattern):
                file.unlink()

    def _fault(self, got: str, remedy: str) -> str:
        return f"{self.command}: output must be a new folder or a run's, got {got}, {self.path}; {remedy}"


def _locked(path: Path) -> int | None:
    """A lock that ends with the process; None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would live on in a loader's workers
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    return descriptor
