"""The same seed gives the same numbers: on any number of threads, in any process, in batches of any size."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.methods import METHODS

X, Y = torch.randn(48, 3, 10, 10, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 5


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        ).eval()  # fmt: skip


def batches(size: int = 16):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, len(X), size)]


def digest(tensors) -> str:
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


def made() -> dict[str, str]:
    """Digests of all statistics, and of what every method makes of them."""
    model, loader = network(), batches()
    kinds = {
        kind: ed.estimate_factors(model, loader, kind=kind, progress=False) for kind in ("channel", "patch")
    }
    channel = kinds["channel"]
    found = {
        "factors": digest(part for f in kinds.values() for one in f.values() for part in (one.A, one.G)),
        "second moments": digest(channel.second_moments(model, loader, progress=False).values()),
        "diagonal": digest(channel.diagonal(model, loader, progress=False).values()),
        "gradients": digest(channel.gradients(model, loader, progress=False).values()),
    }
    for name, method in METHODS.items():
        factors = kinds["patch" if method.needs == "patch" else "channel"]
        plan = ed.plan(model, factors, target={"flops": 0.5}, method=name, example_inputs=X)
        found[f"{name} record"] = hashlib.sha256(json.dumps(plan.record()).encode()).hexdigest()
        found[f"{name} network"] = digest(plan.apply(model).model.state_dict().values())
    return found


@pytest.fixture(scope="module")
def alone():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield made()
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_neither_statistics_nor_plans(threads, alone):
    torch.set_num_threads(threads)
    found = made()
    torch.set_num_threads(1)
    may_differ = {"gradients", "taylor record"}  # and a plan's predicted loss with them
    assert {name for name in found if found[name] != alone[name]} <= may_differ


def test_another_process_finds_the_same(alone):
    root = Path(__file__).parents[1]
    code = (
        "import json, torch, test_robust_repeats as t; torch.set_num_threads(1); print(json.dumps(t.made()))"
    )
    paths = f"{root}{os.pathsep}{root / 'tests'}"
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == alone


@pytest.mark.parametrize("method", METHODS)
def test_how_examples_lie_in_batches_changes_no_plan(method):
    """Draws belong to examples, so only the order of sums changes."""
    kept = []
    for loader in (batches(16), batches(7)):
        model = network().double()
        doubles = [(x.double(), y) for x, y in loader]
        result = ed.prune(model, doubles, target={"flops": 0.5}, method=method, progress=False)
        kept.append(result.model.state_dict())
    first, second = kept
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-6, atol=1e-9)
