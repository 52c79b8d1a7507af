"""Contestants timed in turn on a device."""

import math
import statistics
import time
from typing import TYPE_CHECKING

import torch

from benchmarks.contest import Contest, Record, Run

if TYPE_CHECKING:
    from benchmarks.gpu.ceilings import Ceilings

SPAN = 3e-4  # seconds that one measurement takes at least, by repeating what is shorter
LEAST_ROUNDS, MOST_ROUNDS, MOST_REPEATS = 3, 60, 100


def once(run: Run, device: str, repeats: int = 1) -> float:
    """Seconds of one call: of `repeats` calls one after another, between events on the device's stream."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(repeats):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def elapsed(run: Run, device: str, repeats: int = 1, rounds: int = 7) -> float:
    """The median of some rounds, warmed up."""
    once(run, device, repeats)
    return statistics.median(once(run, device, repeats) for _ in range(rounds))


def hold(contest: Contest, device: str, seconds: float, ceilings: "Ceilings") -> Record:
    """Checks what each gives, then times all of them round by round for so many seconds.

    The record has the fields that `benchmarks.contest.record` writes, and "dtype", "us" of ours (median,
    interquartile range, number of rounds), "error" and "baseline errors".
    """
    runs = {"ours": contest.ours, **contest.baselines}
    errors = {name: contest.error(run()) for name, run in runs.items()} if contest.error else {}
    for run in runs.values():
        run()  # with its memory set aside and its algorithms chosen
    taken = {name: once(run, device) for name, run in runs.items()}
    repeats = {name: min(MOST_REPEATS, math.ceil(SPAN / max(t, 1e-9))) for name, t in taken.items()}
    turn = sum(taken[name] * repeats[name] for name in runs)
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(turn, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(once(run, device, repeats[name]))
    medians = {name: statistics.median(found) for name, found in times.items()}
    ours = medians.pop("ours")
    lower, _, upper = statistics.quantiles(times["ours"], n=4)
    found: Record = {
        "op": contest.op,
        "case": contest.case,
        "dtype": str(contest.dtype).removeprefix("torch."),
        "ms": ours * 1e3,
        "us": {"median": ours * 1e6, "iqr": (upper - lower) * 1e6, "n": rounds},
        "baselines ms": {name: median * 1e3 for name, median in medians.items()},
        "times faster": {name: median / ours for name, median in medians.items()},
        "error": errors.pop("ours", None),
        "baseline errors": errors,
    }
    if contest.flops:
        floor = ceilings.floor(contest.flops, contest.read + contest.written, contest.dtype)
        found |= {
            "GFLOP/s": contest.flops / ours / 1e9,
            "floor ms": floor * 1e3,
            "share of floor": floor / ours,
        }
    return found


def extra_megabytes(run: Run) -> float:
    """GPU memory that a call takes beyond its result."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    used: int = torch.cuda.max_memory_allocated() - before - result.numel() * result.element_size()
    return used / 1e6
