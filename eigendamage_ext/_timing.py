"""Calls that take turns at being timed, so that a slow moment hits them all."""

import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """The middle of some times, and between what half of them lie."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Spread":
        """Median and quartiles of at least two times."""
        lower, median, upper = quantiles(times, method="inclusive")
        return cls(median, lower, upper)


def in_turn(
    runs: Sequence[Callable[[], Any]], rounds: int, wait: Callable[[], None] = lambda: None
) -> list[list[float]]:
    """Seconds of every call, a list for each of `runs`.

    Args:
        runs: What is timed.
        rounds: How often each is called; every second round goes the other way around.
        wait: Returns when the device is done; called before and after each call.
    """
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for index in reversed(range(len(runs))) if number % 2 else range(len(runs)):
            wait()
            start = time.perf_counter()
            runs[index]()
            wait()
            times[index].append(time.perf_counter() - start)
    return times
