"""Memory does not grow with the length of a loader, and no batch is held once it is over."""

import itertools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import eigendamage_ext as ed

GROWTH = 24  # MB; 100 batches are 77
CALLS = {
    "estimate_factors": lambda model, loader, factors: ed.estimate_factors(model, loader, progress=False),
    "second_moments": lambda model, loader, factors: factors.second_moments(model, loader, progress=False),
    "diagonal": lambda model, loader, factors: factors.diagonal(model, loader, progress=False),
    "gradients": lambda model, loader, factors: factors.gradients(model, loader, progress=False),
    "evaluate": lambda model, loader, factors: ed.evaluate(model, loader),
    "mean_loss": lambda model, loader, factors: ed.mean_loss(model, loader),
    "recalibrate_bn": lambda model, loader, factors: ed.recalibrate_bn(model, loader),
    "finetune": lambda model, loader, factors: ed.finetune(model, loader, epochs=1, progress=False),
}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=8), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def batches(examples=64, count=None):
    for _ in itertools.repeat(None) if count is None else range(count):
        yield torch.randn(examples, 3, 32, 32), torch.randint(3, (examples,))


def peak() -> float:
    """The largest resident size so far, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure() -> None:
    """Prints how much the peak grows from 20 to 120 batches, a line for each call."""
    torch.set_num_threads(1)
    factors = ed.estimate_factors(network(), batches(count=2), progress=False)
    for name, call in CALLS.items():
        call(network(), batches(count=20), factors)
        before = peak()
        call(network(), batches(count=120), factors)
        print(name, peak() - before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_the_peak_is_the_same_for_six_times_the_batches():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", "import test_robust_memory; test_robust_memory.measure()"]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    growth = {name: float(number) for name, number in map(str.split, run.stdout.splitlines())}
    assert growth.keys() == CALLS.keys()
    assert max(growth.values()) < GROWTH, growth


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_is_let_go_when_the_next_but_one_is_asked_for(name):
    factors = ed.estimate_factors(network(), batches(2, 1), progress=False)
    inputs: list[weakref.ref] = []

    def watched():
        for x, y in batches(2, 6):
            inputs.append(weakref.ref(x))
            yield x, y
            del x, y
            assert sum(one() is not None for one in inputs) <= 1

    CALLS[name](network(), watched(), factors)
    assert len(inputs) == 6 and not any(one() is not None for one in inputs)


@pytest.mark.parametrize("name", ["estimate_factors", "second_moments", "diagonal", "gradients"])
def test_a_stream_without_end_is_read_as_far_as_it_is_needed(name):
    model, read = network(), []

    def endless():
        for index, batch in enumerate(batches(4)):
            assert index < 3, "10 examples are in three batches of 4"
            read.append(index)
            yield batch

    factors = ed.estimate_factors(model, batches(2, 1), progress=False)
    call = {"estimate_factors": lambda *a, **k: ed.estimate_factors(model, *a[1:], **k)}.get(
        name, getattr(factors, name, None)
    )
    call(model, endless(), max_examples=10, progress=False)
    assert read == [0, 1, 2]
