"""From settings to a folder with pruned networks: every stage of a run, for one network or for several."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from eigendamage_ext.runs import estimation, page
from eigendamage_ext.runs.candidate import PLAN_WORK, Candidate
from eigendamage_ext.runs.directory import FIRST, UNREACHABLE, RunDirectory
from eigendamage_ext.runs.reach import briefly, obstacle
from eigendamage_ext.runs.settings import Goal, PruneSettings, SweepSettings, Way
from eigendamage_ext.runs.stages import Stage, read_json, write_json
from eigendamage_ext.runs.subject import REPEATS, TIMED_BATCHES, Subject

REPORT, TIMES = "report.html", "times.json"


class Asked(NamedTuple):
    """A network that is asked for: its name, "" for the only one, what is kept, and how it is cut."""

    name: str
    goal: Goal
    way: Way

    def folder(self, out: Path) -> Path:
        """Where its files go."""
        if not self.name:
            return out
        return out / "networks" / f"{self.way}-{self.goal.measure}-{self.goal.value}"


def prune(
    settings: PruneSettings, out: Path, *, start_over: bool = False, quiet: bool = False
) -> list[Asked]:
    """Prunes a network into a folder, or goes on with it.

    Args:
        settings: All that the result depends on.
        out: The folder.
        start_over: Throw away what is there of another run.
        quiet: Say nothing of how it goes.

    Returns:
        The network that was asked for; what was found is in the folder.

    Raises:
        ValueError, OSError, ImportError: The message says what to do.
    """
    asked = [Asked("", settings.goal, settings.way)]
    with RunDirectory(out, "prune", settings, start_over=start_over, quiet=quiet) as directory:
        _complete(directory, asked)
    return asked


def sweep(
    settings: SweepSettings, out: Path, *, start_over: bool = False, quiet: bool = False
) -> list[Asked]:
    """Prunes a network to several budgets by several methods; see `prune`."""
    asked = [Asked(f"{way}, {goal}", goal, way) for way in settings.ways for goal in settings.goals]
    with RunDirectory(out, "sweep", settings, start_over=start_over, quiet=quiet) as directory:
        _complete(directory, asked)
    return asked


def _complete(directory: RunDirectory, asked: Sequence[Asked]) -> None:
    out, settings = directory.path, directory.settings
    done = [(one.folder(out) / "result.json").exists() or one.name in unreachable(out) for one in asked]
    if all(done) and (out / REPORT).exists():
        directory.tell(f"{directory.command}: all of {out} is done already")
        return
    subject = Subject(settings, out, directory.command, progress=not directory.quiet)
    reachable = _reachable(directory, subject, asked)
    candidates = [
        Candidate(
            subject,
            one.folder(out),
            one.goal,
            one.way,
            estimation.factors_path(out, one.way),
            directory.events,
            one.name,
        )
        for one in reachable
    ]
    dense = 2 * subject.work(subject.data.calibration) + subject.work(subject.data.test)
    stages = [Stage("the network as it is", out / FIRST, dense, subject.measure_dense)]
    stages += estimation.stages(subject, out, [one.way for one in reachable])
    stages += [stage for one in candidates for stage in one.stages()]
    work = REPEATS * subject.cost.flops * sum(TIMED_BATCHES) * (1 + len(candidates))
    stages.append(Stage("time", out / TIMES, work, partial(_time, subject, candidates, out / TIMES)))
    write = partial(page.write, out / REPORT, subject, candidates, out / TIMES)
    stages.append(Stage("report", out / REPORT, PLAN_WORK, write))
    directory.complete(stages)


def _time(subject: Subject, candidates: Sequence[Candidate], path: Path) -> None:
    subject.write_times(path, [candidate.network() for candidate in candidates])


def unreachable(out: Path) -> dict[str, str]:
    """The networks of a run that cannot be made, and why."""
    path = out / UNREACHABLE
    found: dict[str, str] = read_json(path) if path.exists() else {}
    return found


def _reachable(directory: RunDirectory, subject: Subject, asked: Sequence[Asked]) -> list[Asked]:
    """Those whose budget can be met; found out once.

    Raises:
        UnreachableError: None of them.
    """
    path = directory.path / UNREACHABLE
    if not path.exists():
        found = {one.name: error for one in asked if (error := obstacle(subject, one.goal, one.way))}
        if len(found) == len(asked):
            raise next(iter(found.values()))
        for name, error in found.items():
            directory.tell(f"note: {name}: {briefly(error)}; it is left out")
        write_json(path, {name: briefly(error) for name, error in found.items()})
    left_out = unreachable(directory.path)
    return [one for one in asked if one.name not in left_out]
