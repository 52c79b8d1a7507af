"""A slice of what `make fuzz` runs, and that a failure can be repeated."""

import os
import random
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import torch


@pytest.mark.parametrize(("kind", "count"), [("eigh", 20), ("convolution", 40)])
def test_slice(kind: str, count: int) -> None:
    for number in range(count):
        fuzz.run(kind, number, seed=0)


def test_failure_names_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def fail(draw: random.Random, rng: torch.Generator) -> None:
        drawn.append(draw.random() + torch.rand((), generator=rng).item())
        raise ValueError("reason")

    monkeypatch.setitem(fuzz.KINDS, "eigh", (fail, 1))
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"^make fuzz ARGS='--seed 5 --only eigh:3'\nreason$"):
            fuzz.run("eigh", 3, seed=5)
    assert drawn[0] == drawn[1]


def test_command_runs_one_case() -> None:
    command = [sys.executable, fuzz.__file__, *"--seed 5 --only convolution:3".split()]
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root}
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert result.stdout == "seed 5\npassed\n"
