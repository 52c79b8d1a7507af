"""Pruning in rounds: schedules and budgets, each round by hand, and going on after a stop at any point."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import resnet
from safetensors.torch import load_file, save_file
from small_nets import same, snapshot
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext import _progress
from eigendamage_ext._files import ArtifactError
from eigendamage_ext.curvature.layers import is_factored
from eigendamage_ext.data import TensorLoader
from eigendamage_ext.models.vgg import VGG
from eigendamage_ext.pruning import iterative
from eigendamage_ext.pruning.iterative import SCHEDULES, share_kept
from eigendamage_ext.pruning.pruner import prune
from eigendamage_ext.training import Checkpoint, finetune

X = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 4
LOADER = [(X[:8], Y[:8]), (X[8:], Y[8:])]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet().float()


def vgg() -> nn.Module:
    torch.manual_seed(0)
    return VGG(depth=11, widths=(4, 4, 6, 6, 8), num_classes=4)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def pruner(model: nn.Module | None = None, loader: Any = LOADER, **arguments: Any) -> ed.Pruner:
    settings = {"target": {"flops": 0.3}, "steps": 3, "progress": False} | arguments
    return ed.Pruner(network() if model is None else model, loader, **settings)


def tune(model: nn.Module, **arguments: Any) -> None:
    finetune(model, LOADER, epochs=2, lr=0.01, progress=False, **arguments)


def equal(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    a, b = (model.state_dict() if isinstance(model, nn.Module) else model for model in (one, other))
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def count(model: nn.Module) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(X[:1])
    return {"params": sum(p.numel() for p in model.parameters()), "flops": counter.get_total_flops()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant-ratio", (Fraction(1, 2), Fraction(1, 4))),
        ("linear", (Fraction(17, 24), Fraction(10, 24))),
        ("cubic", (1 - Fraction(7, 8) * Fraction(19, 27), 1 - Fraction(7, 8) * Fraction(26, 27))),
    ],
)
def test_shares_of_three_rounds_to_an_eighth(schedule, expected):
    kept = Fraction(1, 8)
    found = [share_kept(kept, Fraction(done, 3), schedule) for done in range(4)]
    assert found[0] == 1 and found[3] == kept
    assert [float(share) for share in found[1:3]] == pytest.approx([float(share) for share in expected])


@pytest.mark.parametrize(
    ("make", "schedule", "measure"),
    [(network, schedule, "flops") for schedule in SCHEDULES]
    + [(network, "linear", "params"), (vgg, "constant-ratio", "flops")],
)
def test_every_round_costs_at_most_its_share_of_the_original(make, schedule, measure, monkeypatch):
    model = make()
    original = now = count(model)
    rounds = pruner(model, target={measure: 0.35}, schedule=schedule)
    targets = []
    monkeypatch.setattr(
        iterative, "prune", lambda *a, target, **k: targets.append(target) or prune(*a, target=target, **k)
    )
    for step in rounds:
        share = share_kept(Fraction(35, 100), Fraction(step.index, 3), schedule)
        allowance = math.floor(share * original[measure])
        assert math.floor(targets[-1].kept * now[measure]) == min(allowance, now[measure])
        assert rounds.history[-1]["target"] == step.result.plan.target == {measure: float(targets[-1].kept)}
        now = count(step.model)
        assert now == {key: rounds.history[-1][key] for key in now}
        assert now[measure] <= allowance
        assert step.result.plan.predicted_loss == rounds.history[-1]["predicted_loss"]
        for module in step.model.modules():
            assert not is_factored(module) or all(type(child) in (nn.Conv2d, nn.Linear) for child in module)
    assert step.index == 3 and [record["round"] for record in rounds.history] == [1, 2, 3]
    result = rounds.result
    assert result.model is step.model is rounds.model and result.plan is step.result.plan
    assert {"params": result.params_before, "flops": result.flops_before} == original
    assert {"params": result.params_after, "flops": result.flops_after} == now


def test_shares_of_units_kept_multiply():
    for steps, ratio, shares in (
        (7, 1 - 0.5**7, [0.5] * 7),
        (2, 0.75, [0.5, 0.5]),
    ):
        rounds = pruner(target={"ratio": ratio}, steps=steps, max_ratio=0.5)
        assert [rounds._target(index).value for index in range(1, steps + 1)] == shares
    linear = pruner(target={"ratio": 0.6}, schedule="linear")
    assert [linear._target(index).value for index in (1, 2, 3)] == pytest.approx([0.2, 0.25, 1 / 3])


def test_a_round_to_a_ratio_leaves_what_may_not_be_cut():
    """Half of an odd side cannot be cut: the round cuts what it can, where `plan` would refuse."""
    with pytest.raises(ValueError, match=r"nearest reachable value is \{\"ratio\": 0.4"):
        ed.prune(network(), LOADER, target={"ratio": 0.5}, max_ratio=0.5, progress=False)
    rounds = pruner(target={"ratio": 0.75}, steps=2, max_ratio=0.5)
    for step in rounds:
        rows = [row for row in step.result.plan.values() if row.form != "dense"]
        assert rows
        for row in rows:
            sides = ((row.input_rank, row.spec.in_per_group), (row.output_rank, row.spec.out_per_group))
            assert all(rank in (-(-width // 2), width) for rank, width in sides)
    assert any(row.spec.in_per_group % 2 for row in rows)


def test_rounds_are_what_prune_does_to_what_it_finds():
    model = network()
    before = snapshot(model)
    rounds = pruner(model, schedule="linear", fisher="exact", allocation="least_loss")
    torch.manual_seed(3)
    random = torch.random.get_rng_state()
    by_hand = model
    for step in rounds:
        target = {"flops": rounds.history[-1]["target"]["flops"]}
        by_hand = ed.prune(
            by_hand, LOADER, target=target, fisher="exact", allocation="least_loss", progress=False
        ).model
        assert equal(step.model, by_hand)
        assert torch.equal(torch.random.get_rng_state(), random)
        tune(step.model)
        tune(by_hand)
    torch.random.set_rng_state(before["rng"])
    assert same(before, snapshot(model))


class Stop(KeyboardInterrupt):
    """The stop of a test, that no other can be taken for."""


class Shuffled:
    """LOADER in an order drawn from PyTorch's own generator, as a DataLoader does."""

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(X))
        yield from ((X[rows], Y[rows]) for rows in order.split(5))


class Trap:
    """Counts what happens in a run and stops it at one point."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.passed = at, 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed - 1 == self.at:
            raise Stop

    def loader(self) -> Iterator[Any]:
        trap = self

        class Loader:
            def __iter__(self) -> Iterator[Any]:
                for batch in Shuffled():
                    trap()
                    yield batch

        return Loader()


TARGET = {"params": 0.5}


def run(folder: Path, trap: Trap) -> nn.Module:
    """All rounds with training between them, both resumable; the trap is everywhere."""
    rounds = pruner(small(), trap.loader(), checkpoint=folder / "rounds", target=TARGET)
    for step in rounds:
        trap()
        finetune(
            step.model, trap.loader(), epochs=2, lr=0.01, progress=False,
            checkpoint=Checkpoint(folder / f"training{step.index}"),
        )  # fmt: skip
        trap()
    return rounds.result.model


def test_stopped_at_any_point_it_ends_as_if_nothing_had_been(tmp_path, monkeypatch):
    traps: list[Trap] = []
    replace, fsync = os.replace, os.fsync

    def trapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            traps[-1]()
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "replace", trapped(replace))
    monkeypatch.setattr(os, "fsync", trapped(fsync))
    folder = tmp_path / "whole"
    folder.mkdir()
    traps.append(Trap())
    expected = run(folder, traps[-1])
    points = traps[-1].passed
    assert points > 40
    for at in range(1, points, 5):
        folder = tmp_path / str(at)
        folder.mkdir()
        traps.append(Trap(at))
        with pytest.raises(Stop):
            run(folder, traps[-1])
        traps.append(Trap())
        assert equal(run(folder, traps[-1]), expected)
        assert not list(folder.glob("*.tmp"))


def test_killed_it_ends_as_if_nothing_had_been(tmp_path):
    script = """
import os, signal, sys, torch
from pathlib import Path
from test_pruner import Trap, run
class Kill(Trap):
    def __call__(self):
        self.passed += 1
        if self.passed == 20:
            os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
run(Path(sys.argv[1]), Kill())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["rounds", "training1", "training2"]
    whole = tmp_path / "whole"
    whole.mkdir()
    assert equal(run(folder, Trap()), run(whole, Trap()))


class Loader(TensorLoader):
    """Notes the orders in which it is read."""

    def __iter__(self) -> Iterator[Any]:
        self.epochs = [*getattr(self, "epochs", []), self.epoch]
        return super().__iter__()


@pytest.mark.parametrize("method", ["l1", "kron-obs"])
def test_rounds_of_filters_go_on_from_a_file_too(method, tmp_path):
    pytest.importorskip("torch_pruning")
    models = []
    for stops in ((3,), (1, 2, 3)):
        path = tmp_path / str(len(stops))
        for stop in stops:
            rounds = pruner(method=method, target={"flops": 0.5}, checkpoint=path)
            assert len(rounds.history) == max(0, stop - 2) * (len(stops) > 1)
            for step in rounds:
                tune(step.model)
                if step.index == stop:
                    break
        models.append(rounds.result.model)
    assert equal(*models)
    assert not [module for module in models[0].modules() if is_factored(module)]
    assert rounds.result.flops_after <= rounds.result.flops_before / 2
    assert count(models[0])["flops"] == rounds.result.flops_after


def test_a_loader_that_shuffles_by_epochs_repeats_itself():
    orders = []
    for start in (0, 5):
        loader = Loader(X, Y, batch_size=5, shuffle=True)
        loader.set_epoch(start)
        rounds = pruner(small(), loader, target=TARGET, scores="ekfac")
        model = [step.model for step in rounds][-1]
        orders.append((loader.epochs, model))
    assert orders[0][0] == orders[1][0] == [0, 1, 1, 2, 2, 3]
    assert equal(orders[0][1], orders[1][1])


@pytest.mark.parametrize("loader", [DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True), Shuffled()])
def test_a_loader_that_draws_from_pytorch_repeats_itself(loader):
    models = []
    for seed in (1, 2):
        rounds = pruner(small(), loader, target=TARGET)
        torch.manual_seed(seed)
        models.append([step.model for step in rounds][-1])
    assert equal(*models)
    assert not equal(models[0], [step.model for step in pruner(small(), loader, target=TARGET, seed=1)][-1])


def test_a_state_goes_through_a_file_and_brings_model_flags_and_history_back(tmp_path):
    rounds = pruner(small(), target=TARGET)
    first = next(iter(rounds))
    tune(first.model)
    first.model[1].eval().weight.requires_grad_(False)
    state = rounds.state_dict()
    save_file(state["model"], tmp_path / "tensors")
    text = json.dumps({name: value for name, value in state.items() if name != "model"})
    tune(first.model)
    assert not equal(first.model, state["model"])

    other = pruner(small(), target=TARGET)
    other.load_state_dict(json.loads(text) | {"model": load_file(tmp_path / "tensors")})
    assert other.history == rounds.history
    assert equal(other.model, state["model"])
    for one, two in zip(first.model.modules(), other.model.modules(), strict=True):
        assert one.training == two.training
    for one, two in zip(first.model.parameters(), other.model.parameters(), strict=True):
        assert one.requires_grad == two.requires_grad
    with pytest.raises(ValueError, match=r"Pruner\.result: pruner must have made a round, got none"):
        _ = other.result
    with pytest.raises(ValueError, match=r"state must be what state_dict gives, got none of \['model'\]"):
        rounds.load_state_dict({name: value for name, value in state.items() if name != "model"})
    rounds.load_state_dict(state)
    expected, found = (list(pruner) for pruner in (rounds, other))
    assert [step.index for step in found] == [2, 3]
    assert equal(expected[-1].model, found[-1].model) and other.history == rounds.history


def test_another_pruning_is_refused(tmp_path):
    path = tmp_path / "rounds"
    rounds = pruner(small(), target=TARGET, checkpoint=path)
    next(iter(rounds))
    content = path.read_bytes()
    for changed, message in [
        ({"steps": 4}, "of the same settings, got steps 3 in place of 4; pass the same"),
        ({"schedule": "cubic"}, "schedule constant-ratio in place of cubic"),
        ({"target": {"flops": 0.5}}, r"target \{'params': 0.5\} in place of \{'flops': 0.5\}"),
        ({"max_ratio": 0.9, "seed": 3}, "max_ratio 0.95 in place of 0.9, seed 0 in place of 3"),
        (
            {"ignored_layers": (nn.Linear,)},
            r"ignored_layers \[\] in place of \['torch.nn.modules.linear.Linear'\]",
        ),
        ({"layers": ["3", "0"]}, r"layers None in place of \['0', '3'\]"),
        ({"autocast": torch.bfloat16}, "autocast None in place of torch.bfloat16"),
        ({"example_inputs": X}, "example_inputs None in place of [0-9a-f]{16}"),
    ]:
        with pytest.raises(ValueError, match=message):
            pruner(small(), **{"target": TARGET, "checkpoint": path} | changed)
    other = small()
    with torch.no_grad():
        other[3].bias[1] += 1e-6
    with pytest.raises(
        ValueError, match=r"rounds must be of the same original model, got 3\.bias [0-9a-f]+ in"
    ):
        pruner(other, target=TARGET, checkpoint=path)
    with pytest.raises(ValueError, match=r"got conv1.weight None in place of .* and \d+ more"):
        pruner(network(), target=TARGET, checkpoint=path)
    path.write_bytes(content[:-3])
    with pytest.raises(ArtifactError, match="truncated or corrupted"):
        pruner(small(), target=TARGET, checkpoint=path)
    path.write_bytes(content)
    going_on = pruner(small(), target=TARGET, checkpoint=path, progress=True, offload=True)
    assert not going_on.history


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
        ({"steps": True}, TypeError, "steps must be an integer, got True"),
        ({"schedule": "square"}, ValueError, "schedule must be one of constant-ratio, .*'square'"),
        ({"target": {"flops": 2}}, ValueError, r"\(0, 1\], got 2"),
        ({"inplace": True}, TypeError, "arguments must be some of method, .*, got inplace; leave it out"),
        ({"factors": None, "magic": 1}, TypeError, "got factors, magic; leave it out"),
        ({"method": "magic"}, ValueError, "method must be one of .*, got 'magic'"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"loader": iter(LOADER)}, TypeError, "readable in every round, got a list_iterator"),
        (
            {"target": {"ratio": 0.9}, "max_ratio": 0.5},
            ValueError,
            r"max_ratio=0.5 in any round, got 0.535\d+ in round 1 of 3",
        ),
        (
            {"target": {"ratio": 0.9}, "max_ratio": 0.5, "schedule": "linear"},
            ValueError,
            r"got 0.75 in round 3 of 3; take more steps",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        pruner(small(), **arguments)


def test_patterns_last_for_every_round():
    rounds = pruner(small(), target={"params": 0.9}, ignored_layers=(name for name in ["0", "6"]), steps=2)
    for step in rounds:
        assert [step.result.plan[name].note for name in ("0", "6")] == ["in ignored_layers"] * 2
    assert json.dumps(rounds.state_dict()["settings"]["ignored_layers"]) == '["0", "6"]'


def test_a_target_out_of_reach_names_the_round_and_loses_nothing():
    model = network()
    before = snapshot(model)
    rounds = pruner(model, target={"flops": 0.1}, max_ratio=0.5, steps=4)
    steps = iter(rounds)
    done = [next(steps), next(steps)]
    kept = [copy.deepcopy(step.model) for step in done]
    with pytest.raises(ValueError, match=r"Pruner: round 3 of 4: plan: target must be reachable, got"):
        next(steps)
    assert len(rounds.history) == 2
    assert all(equal(step.model, model) for step, model in zip(done, kept, strict=True))
    assert rounds.result.model is rounds.model is done[-1].model
    assert same(before, snapshot(model))


def test_a_model_of_another_shape_is_no_longer_trained_but_rebuilt():
    rounds = pruner(small(), target=TARGET)
    steps = iter(rounds)
    step = next(steps)
    step.model[6] = nn.Linear(8, 5)
    with pytest.raises(
        ValueError, match=r"keep the shapes and dtypes .* got another '6.bias' before round 2"
    ):
        next(steps)
    assert len(rounds.history) == 1


def test_rounds_are_told_without_bars(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    rounds = pruner(small(), target=TARGET, progress=True)
    monkeypatch.setattr(iterative, "prune", lambda *a, progress, **k: prune(*a, progress=False, **k))
    assert len(list(rounds)) == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["rounds: 1/3", "rounds: 2/3", "rounds: 3/3"]
    assert lines[0].endswith("s left")
