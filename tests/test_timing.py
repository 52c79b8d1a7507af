"""Calls in turn: their order, what is timed, and the middle of the times."""

import pytest
import torch

from eigendamage_ext import _devices, _timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    return sleep


def test_calls_take_turns_from_both_ends(clock):
    calls = []

    def run(name, seconds):
        calls.append(name)
        clock(seconds)

    runs = [lambda: run("a", 1), lambda: run("b", 2), lambda: run("c", 4)]
    times = _timing.in_turn(runs, 3)
    assert "".join(calls) == "abccbaabc"
    assert times == [[1] * 3, [2] * 3, [4] * 3]


def test_a_device_is_waited_for_within_the_time_but_not_at_its_expense(clock):
    queue = []

    def wait():
        for seconds in queue:
            clock(seconds)
        queue.clear()

    queue.append(64)  # was asked for before
    assert _timing.in_turn([lambda: queue.append(3), lambda: queue.append(5)], 2, wait) == [[3, 3], [5, 5]]


def test_the_middle_and_the_quarters():
    assert _timing.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3, 2, 4)


def test_networks_warm_up_and_run_without_gradients(clock):
    seen = []

    class Slow(torch.nn.Module):
        def forward(self, x):
            seen.append((torch.is_inference_mode_enabled(), x.shape))
            clock(10.0 if len(seen) == 1 else 0.25)
            return x

    assert _devices.milliseconds([Slow()], torch.zeros(2, 3), 3) == [250]
    assert seen == [(True, (2, 3))] * 4
