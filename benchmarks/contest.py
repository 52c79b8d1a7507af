"""One kernel and what one would use instead, timed in turn in one run."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import probes

Run = Callable[[], Any]
Record = dict[str, Any]

THREADS = 2
SECONDS = 2.5  # what a case may take, all contestants together
LEAST_ROUNDS, MOST_ROUNDS = 5, 25


@dataclass(frozen=True)
class Contest:
    """Contestants on the same data, whose answers have been checked.

    Attributes:
        op: the kernel's name.
        case: the shape in words; with the op it names the record.
        ours: the kernel.
        baselines: what computes the same, by name.
        flops: operations of the least arithmetic known, two for a multiply-add; 0 where nobody knows.
        read: bytes that must be read; with `written` 0 where nobody knows.
        written: bytes that must be written.
        threads: of all contestants.
        dtype: of the arithmetic.
        least_rounds: however long they take.
        error: of what a contestant gives for the first of its inputs, relative to the exact answer.
    """

    op: str
    case: str
    ours: Run
    baselines: dict[str, Run] = field(default_factory=dict)
    flops: float = 0
    read: float = 0
    written: float = 0
    threads: int = THREADS
    dtype: torch.dtype = torch.float32
    least_rounds: int = LEAST_ROUNDS
    error: Callable[[Any], float] | None = None


def in_turn(call: Callable[..., Any], inputs: Sequence[Any]) -> Run:
    """A contestant that takes each of the inputs in turn, so that caches do not hold the next."""
    turns = itertools.cycle(inputs)
    return lambda: call(next(turns))


def relative_error(exact: torch.Tensor) -> Callable[[torch.Tensor], float]:
    """``‖found − exact‖ / ‖exact‖`` in float64."""
    norm = torch.linalg.norm(exact.flatten())
    return lambda found: float(torch.linalg.norm((found.double() - exact).flatten()) / norm)


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def hold(contest: Contest, benchmark: Any) -> None:
    """Every round times the baselines and probes the machine, then pytest-benchmark times ours.

    What else the machine does so hits all alike. The record goes to ``benchmark.extra_info``.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(contest.threads)
    try:
        warm = sum(seconds(run) for run in (contest.ours, *contest.baselines.values()))
        rounds = max(contest.least_rounds, min(MOST_ROUNDS, int(SECONDS / max(warm, 1e-9))))
        times: dict[str, list[float]] = {name: [] for name in contest.baselines}
        peaks: list[float] = []

        def others() -> None:
            peaks.append(probes.multiply_adds(contest.threads, contest.dtype))
            for name, run in contest.baselines.items():
                times[name].append(seconds(run))

        benchmark.pedantic(contest.ours, setup=others, rounds=rounds, warmup_rounds=1)
        medians = {name: statistics.median(taken) for name, taken in times.items()}
        ours = benchmark.stats.stats.median
        benchmark.extra_info.update(record(contest, ours, medians, statistics.median(peaks)))
    finally:
        torch.set_num_threads(before)


def record(contest: Contest, ours: float, baselines: dict[str, float], peak: float) -> Record:
    """What a contest found, as plain numbers.

    Args:
        contest: what was run.
        ours: median seconds of the kernel.
        baselines: those of the others.
        peak: FLOP/s of multiply-adds in the same rounds.
    """
    found: Record = {
        "op": contest.op,
        "case": contest.case,
        "threads": contest.threads,
        "ms": ours * 1e3,
        "baselines ms": {name: taken * 1e3 for name, taken in baselines.items()},
        "times faster": {name: taken / ours for name, taken in baselines.items()},
    }
    floor = 0.0
    if contest.flops:
        found |= {"GFLOP/s": contest.flops / ours / 1e9, "share of FMA peak": contest.flops / ours / peak}
        floor = contest.flops / peak
    if contest.read + contest.written:
        rates = probes.bandwidth(contest.threads)
        found["GB/s"] = (contest.read + contest.written) / ours / 1e9
        floor = max(floor, contest.read / rates.read + contest.written / rates.write)
    if floor:
        found |= {"floor ms": floor * 1e3, "share of floor": floor / ours}
    return found


def fastest(found: Record) -> str:
    """The name of the fastest baseline."""
    taken: dict[str, float] = found["baselines ms"]
    return min(taken, key=lambda name: taken[name])
