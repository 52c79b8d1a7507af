"""The paper's experiments, tiny: killed anywhere they end alike, and figures are those of the networks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import eigendamage_ext as ed
from benchmarks import stages
from benchmarks.paper import __main__ as paper
from benchmarks.paper import cell, experiment, images, report, results, settings
from benchmarks.paper.asked import Asked
from benchmarks.paper.report import Row
from eigendamage_ext import _devices, _files
from eigendamage_ext.data import Split, TensorLoader, digits
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.pruning.methods import METHODS

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parents[1]
LEAST = "eigendamage.ekfac.least_loss"
ROUNDS = [f"2-rounds/eigendamage/ratio-0.4/round-{step}" for step in (1, 2)]
CUTS = ["dense", f"one-pass/{LEAST}/flops-0.6", "one-pass/l1/flops-0.6", *ROUNDS]
TINY = """
seeds = [3]
device = "cpu"
[data]
name = "digits"
train_images = 150
test_images = 60
[training]
epochs = 2
lr = 0.05
batch_size = 16
augment = false
[finetuning]
epochs = 1
lr = [0.2, 0.01]
batch_size = 16
augment = false
[networks.small]
kind = "ResNet"
depth = 8
widths = [8, 8, 12]
[[pruning]]
methods = ["eigendamage.ekfac.least_loss", "l1"]
flops = [0.6, 0.001]
[[pruning]]
methods = ["eigendamage"]
ratio = 0.4
steps = 2
max_ratio = 0.5
"""

TIMING = """
[timing]
batches = [1, 4]
repeats = 2
"""
CHARTS = ("small-one-pass.svg", "small-2-rounds.svg")


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paper") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(autouse=True)
def _every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def run(config: Path, out: Path, *more: str) -> int:
    return paper.main([*map(str, ("--config", config, "--out", out)), *more])


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run from beginning to end."""
    assert run(config, config.parent / "whole") == 0
    return config.parent / "whole" / "tiny"


def test_every_stage_leaves_its_file_and_a_line(config: Path, whole: Path) -> None:
    tuned = [f"tuned-{rate}.{end}" for rate in ("0.2", "0.01") for end in ("json", "safetensors")]
    cut = ["cut.json", "cut.safetensors", *tuned, "result.json"]
    cell = ["trained.json", "trained.safetensors", "factors-ekfac.safetensors"]
    cell += [f"{folder}/{name}" for folder in CUTS for name in cut]
    cell += [f"2-rounds/eigendamage/ratio-0.4/round-{step}/state.json" for step in (1, 2)]
    for method in (LEAST, "l1"):
        cell += [f"one-pass/{method}/flops-0.001/{n}" for n in ("cut.json", "tuned-0.2.json", "result.json")]
    top = {"settings.json", "events.jsonl", "table.md", *CHARTS}
    assert set(files(whole)) == top | {f"small-seed3/{name}" for name in cell}
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    assert len(events) == 2 + 3 * (len(CUTS) + 2)
    for event in events:
        path = whole / event["file"]
        assert path.suffix != ".json" or event.items() >= json.loads(path.read_text()).items()
    before = {path: path.stat().st_mtime_ns for path in whole.glob("small-seed3/**/*") if path.is_file()}
    assert run(config, whole.parent) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def parts(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The images of `TINY`, normalised by those that are trained on."""
    (x, y), (test_x, test_y) = digits(seed)
    rows, test_rows = torch.arange(150) * len(x) // 150, torch.arange(60) * len(test_x) // 60
    held_out = torch.arange(150) % 10 == 0
    mean, std = x[rows][~held_out].mean(), x[rows][~held_out].std()
    x, y, test_x = (x[rows] - mean) / std, y[rows], (test_x[test_rows] - mean) / std
    return {
        "train": (x[~held_out], y[~held_out]),
        "validation": (x[held_out], y[held_out]),
        "test": (test_x, test_y[test_rows]),
    }


def test_images_are_held_out_and_normalised(config: Path) -> None:
    read = settings.read(config)
    found = experiment.Experiment(read, Path(), Path(), device="cpu", deadline=None).images(3)
    for name, (x, y) in parts(3).items():
        torch.testing.assert_close(getattr(found, name)[0], x)
        assert torch.equal(getattr(found, name)[1], y)


def test_results_are_what_the_networks_score(whole: Path) -> None:
    of = parts(3)

    def accuracy(path: Path, part: str) -> float:
        x, y = of[part]
        model = ed.load(path, into=ResNet(8, (8, 8, 12), in_channels=1)).eval()
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())

    dense = json.loads((whole / "small-seed3" / "dense" / "result.json").read_text())
    assert dense["accuracy"] == pytest.approx(accuracy(whole / "small-seed3/trained.safetensors", "test"))
    for folder in CUTS:
        found = json.loads((whole / "small-seed3" / folder / "result.json").read_text())
        path = whole / "small-seed3" / folder
        assert found["accuracy_bn"] == pytest.approx(accuracy(path / "cut.safetensors", "test"))
        tried = {
            rate: [accuracy(path / f"tuned-{rate:g}.safetensors", part) for part in ("validation", "test")]
            for rate in (0.2, 0.01)
        }
        best = max(tried, key=lambda rate: tried[rate][0])
        assert found["lr"] == best
        chosen = [found["accuracy_validation"], found["accuracy_tuned"]]
        assert chosen == pytest.approx(tried[best])
        model = ed.load(path / "cut.safetensors", into=ResNet(8, (8, 8, 12), in_channels=1))
        params = sum(p.numel() for p in model.parameters())
        assert (found["params"], found["params_kept"]) == (params, params / dense["params"])
        assert found["flops_kept"] == found["flops"] / dense["flops"] <= (0.6 if "one" in folder else 1)


def test_what_cannot_be_reached_is_told_with_the_nearest_budget(whole: Path) -> None:
    folder = whole / "small-seed3" / "one-pass" / LEAST
    found = json.loads((folder / "flops-0.001" / "result.json").read_text())
    assert 0.001 < found["nearest"] < 0.2 and "accuracy" not in found
    factors = ed.Factors.load(whole / "small-seed3" / "factors-ekfac.safetensors")
    model = ed.load(whole / "small-seed3/trained.safetensors", into=ResNet(8, (8, 8, 12), in_channels=1))
    how = {"scores": "ekfac", "allocation": "least_loss"}
    plan = ed.plan(model, factors, target={"flops": found["nearest"]}, **how)
    assert plan.flops_after <= found["nearest"] * plan.flops_before
    text = (whole / "table.md").read_text()
    assert f"| {LEAST} | flops 0.001 | not reachable; nearest {found['nearest']:g} |" in text


def test_rounds_are_those_of_one_pruner(config: Path, whole: Path) -> None:
    read = settings.read(config)
    train, *_ = experiment.Experiment(read, Path(), whole, device="cpu", deadline=None).images(3)
    model = ed.load(
        whole / "small-seed3/trained.safetensors", into=ResNet(8, (8, 8, 12), in_channels=1)
    ).eval()
    model = model.to(memory_format=torch.channels_last)
    loader = TensorLoader(*train, batch_size=128)
    order = torch.randperm(135, generator=torch.Generator().manual_seed(0))
    pruner = ed.Pruner(model, loader, target={"ratio": 1 - 0.6**2}, steps=2, max_ratio=0.5, seed=3)
    for step, folder in zip(pruner, ROUNDS, strict=True):
        ed.recalibrate_bn(step.model, TensorLoader(train[0][order], batch_size=128))
        shuffled = TensorLoader(*train, batch_size=16, shuffle=True, seed=3)
        found = json.loads((whole / "small-seed3" / folder / "result.json").read_text())
        ed.finetune(step.model, shuffled, epochs=1, lr=found["lr"], schedule="step", seed=3)
        path = whole / "small-seed3" / folder / f"tuned-{found['lr']:g}.safetensors"
        tuned = ed.load(path, into=ResNet(8, (8, 8, 12), in_channels=1))
        for name, value in step.model.state_dict().items():
            assert torch.equal(value, tuned.state_dict()[name]), name


def test_a_run_killed_again_and_again_ends_alike(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, left, kills = os.replace, 1, 0

    def move_and_die(source: str, target: str) -> None:
        nonlocal left
        move(source, target)
        left -= 1
        if left == 0:
            raise Killed

    assert run(config, tmp_path, "--minutes", "0") == stages.UNFINISHED
    assert len((tmp_path / "tiny" / "events.jsonl").read_text().splitlines()) == 0
    assert (tmp_path / "tiny" / "small-seed3" / "trained.checkpoint").exists()
    monkeypatch.setattr(_files.os, "replace", move_and_die)
    while True:
        left = 2 + kills % 4  # every run begins with the events
        try:
            assert run(config, tmp_path) == 0
            break
        except Killed:
            kills += 1
            assert kills < 60
    assert kills >= 12 and files(tmp_path / "tiny") == files(whole)


def test_sigkill_and_a_torn_line_leave_a_run_that_goes_on(config: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    command = [sys.executable, "-m", "benchmarks.paper", "--config", config, "--out", tmp_path]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    while not (out / "small-seed3" / "dense" / "cut.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "table.md").exists()
    with (out / "events.jsonl").open("a") as file:
        file.write('{"stage": "small seed')
    (out / ".cut.json.0123.tmp").write_bytes(b"half a file")
    assert run(config, tmp_path) == 0
    assert files(out) == files(whole)


@pytest.mark.parametrize(("part", "accuracy"), [("held out", "accuracy_validation"), ("test", "accuracy")])
def test_nothing_depends_on_images_that_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, accuracy: str
) -> None:
    def changed(seed: int) -> Split:
        (x, y), (test_x, test_y) = digits(seed)
        seen = torch.arange(150) * len(y) // 150
        if part == "test":
            return Split((x, y), (test_x, 9 - test_y))
        return Split((x, y.index_copy(0, seen[::10], 9 - y[seen[::10]])), (test_x, test_y))

    path = tmp_path / "tiny.toml"
    text = TINY.partition("[[pruning]]")[0].replace("lr = [0.2, 0.01]", "lr = 0.2")
    path.write_text(text + '[[pruning]]\nmethods = "kron-obd"\nflops = 0.6\n')
    assert run(path, tmp_path / "one") == 0
    monkeypatch.setattr(images, "digits", changed)
    assert run(path, tmp_path / "other") == 0
    one, other = files(tmp_path / "one"), files(tmp_path / "other")
    changes = {name for name in one if one[name] != other[name]}
    assert changes and one.keys() == other.keys()
    for name in changes - {f"tiny/{n}" for n in ("events.jsonl", "table.md", CHARTS[0])}:
        assert name.endswith(".json"), name
        found, expected = json.loads(other[name]), json.loads(one[name])
        assert all(found[key] == expected[key] or key.startswith(accuracy) for key in expected), name


def test_latency_is_told_beside_the_network_as_it_was_trained(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def clock(networks, batch, repeats, *, autocast):
        seen.add((len(networks), len(batch), repeats, autocast))
        return [10.0 * len(batch), 4.0 * len(batch)]

    monkeypatch.setattr(_devices, "milliseconds", clock)
    shutil.copytree(whole, tmp_path / "tiny")
    (tmp_path / "tiny" / "settings.json").unlink()
    path = tmp_path / "tiny.toml"
    path.write_text(TINY + TIMING)
    assert run(path, tmp_path) == 0
    assert seen == {(2, 1, 2, None), (2, 4, 2, None)}
    rows = (tmp_path / "tiny" / "table.md").read_text().splitlines()
    assert rows[2].endswith("| ms, batch 1 | ms, batch 4 | speed, batch 1 | speed, batch 4 |")
    assert rows[4].endswith("| 4.00 | 16.00 | 2.50× | 2.50× |")


def test_ctrl_c_ends_with_130_and_a_table_of_what_there_is(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ed, "plan", interrupt)
        assert run(config, tmp_path) == stages.INTERRUPTED
    assert "| dense |" not in (tmp_path / "tiny" / "table.md").read_text()
    assert len((tmp_path / "tiny" / "events.jsonl").read_text().splitlines()) == 5


def test_new_methods_join_a_folder_and_other_settings_do_not(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("0.001]", "0.7]"))
    assert run(path, whole.parent, "--networks", "other") == 1
    assert "--networks must be among small, got other" in capsys.readouterr().err
    path.write_text(TINY.replace("lr = 0.05", "lr = 0.06"))
    assert run(path, whole.parent) == 1
    assert re.search(
        r"same settings, got network small .*0\.05.* in place of .*0\.06", capsys.readouterr().err
    )
    read = settings.read(config)
    more = settings.read(path.with_name(path.write_text(TINY.replace("0.001]", "0.7]")) and path.name))
    assert read.record("cpu") == more.record("cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"\[training\] must have known keys, got 'epoch'; .* 'epochs'$"),
        ("[finetuning]", "[finetunning]", r"got 'finetunning'; the nearest right one is 'finetuning'"),
        ("depth = 8", "dephts = 8", r"\[networks\.small\] must have known keys, got 'dephts'; .* 'depth'$"),
        ("depth = 8", "depth = 9", r"ResNet: depth must be 6n \+ 2"),
        ("depth = 8\n", "", r"\[networks\.small\] must have 'depth', got kind, widths"),
        ("epochs = 2", "epochs = 2.5", r"'epochs' in \[training\] must be of type int, got 2\.5"),
        ('"ResNet"', '"ResNext"', r"kind of a network must be one of ResNet, PreResNet, VGG, got 'ResNext'"),
        ('["eigendamage"]', '["eigendamag"]', r"methods in \[\[pruning\]\] must be one of all, eigendamage"),
        (
            "ekfac.least_loss",
            "ekfac",
            r"must be METHOD or METHOD\.SCORES\.ALLOCATION, got 'eigendamage\.ekfac'",
        ),
        ("ekfac.least_loss", "ekfac.least", r"must be one of threshold, least_loss, got 'least'"),
        ("ratio = 0.4", "", r"\[\[pruning\]\] must have budgets: ratio, flops or params, got none"),
        ("seeds = [3]", "seeds = ", r"--config must name a TOML file, got .*tiny\.toml"),
        (
            'name = "digits"',
            'name = "digit"',
            r"name in \[data\] must be one of cifar10, .*, digits, got 'digit'",
        ),
        ("seeds = [3]", 'autocast = "half"', r"autocast must be one of none, bfloat16, got 'half'"),
        (
            "[[pruning]]",
            "[[pruning]]\nflops = 0.5\nmax_ratio = 0.5\n[[pruning]]",
            r"must have the same schedule",
        ),
        (
            'kind = "ResNet"',
            'kind = "ResNet"\nweights = "w.safetensors"',
            r"weights must be a file in the data folder",
        ),
        ("seeds = [3]", 'device = "tpu"', r"device must be usable here, got 'tpu'; use cpu"),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    text = TINY.replace('device = "cpu"\n', "") if "device" in new else TINY
    assert old in text
    (tmp_path / "tiny.toml").write_text(text.replace(old, new))
    assert run(tmp_path / "tiny.toml", tmp_path) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("paper: ") and re.search(message, told), told


def test_the_table_and_the_chart_show_every_seed() -> None:
    def row(method: str, value: float, *accuracies: float, nearest: tuple[float, ...] = ()) -> Row:
        done = [
            {
                "network": "net",
                "seed": seed,
                "flops_kept": value - 0.01 * seed,
                "params_kept": value / 2,
                "accuracy": accuracy - 0.3,
                "accuracy_bn": accuracy - 0.2,
                "accuracy_tuned": accuracy,
            }
            for seed, accuracy in enumerate(accuracies)
        ]
        manner = "dense" if method == "dense" else "one-pass"
        return Row("net", manner, method, f"flops {value:g}", done, nearest)

    rows = [row("dense", 1.0, 0.9, 0.95), row("l1", 0.5, 0.7, 0.8), row("l1", 0.3, 0.6, nearest=(0.4,))]
    rows += [row("l1", 0.1, nearest=(0.41, 0.4)), row("eigendamage", 0.5, 0.75, 0.8)]
    about = settings.Settings(
        settings.Data("digits"),
        {"net": settings.Network("ResNet", 8, (8, 8, 8))},
        (settings.Pruning(flops=(0.5,)),),
    )
    text = report.table(rows, about)
    # dense 60 and 65 % as trained: 10 and 15 points less after tuning at half
    assert fmean([-10, -15]) == -12.5 and stdev([-10, -15]) == pytest.approx(3.5, abs=0.05)
    assert (
        "| l1 | flops 0.5 | 49.5 % | 25.0 % | 45.0 ± 7.1 | 55.0 ± 7.1 | 75.0 ± 7.1 | −12.5 ± 3.5 | 2 |"
        in text
    )
    assert "| l1 | flops 0.3 | 30.0 % | 15.0 % | 30.0 | 40.0 | 60.0 | 0.0 | 1 of 2 |" in text
    assert "| l1 | flops 0.1 | not reachable; nearest 0.4, 0.41 |" in text
    picture = report.chart("net", "one-pass", rows)
    words = {e.text for e in ElementTree.fromstring(picture).iter() if e.tag.endswith("text")}
    assert {"l1", "eigendamage", "net: fine-tuned", "FLOPs kept, %", "test accuracy, %"} <= words
    assert report.chart("net", "one-pass", rows[:1]) is None


def test_the_configurations_state_what_the_paper_did(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted((ROOT / "configs").rglob("*.toml"))
    read: dict[str, settings.Settings] = {path.stem: settings.read(path) for path in paths}
    for name, epochs in (("cifar10", 200), ("cifar100", 200), ("tiny-imagenet", 300)):
        found: Any = read[name]
        assert (found.data.name, found.seeds, found.factors.fisher) == (name, (0, 1, 2), "mc")
        for network, batch in (("vgg19", 128), ("resnet32", 64), ("preresnet29", 64)):
            how, tuning = found.networks[network].training, found.networks[network].finetuning
            assert (how.epochs, how.lr, how.weight_decay, how.batch_size) == (epochs, 0.1, 2e-4, 128)
            assert (tuning.epochs, tuning.lr, tuning.weight_decay) == (150, (1e-3,), 1e-4)
            assert tuning.batch_size == batch and how.augment and tuning.augment
            assert how.schedule == "step"
        one, rounds = found.pruning
        assert (one.steps, one.ratio, one.max_ratio) == (1, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9), 0.95)
        assert (rounds.steps, rounds.ratio, rounds.max_ratio) == (7, (0.5,), 0.5)
        assert one.variants == rounds.variants == list(METHODS)


def test_the_results_are_in_step_with_the_record() -> None:
    record = results.read_json(results.RECORD)
    assert results.RECORD.read_text() == results.text(record)
    document = results.PAGE.read_text()
    assert results.page(document, record) == document, "run python -m benchmarks.paper.results --render"
    assert results.FIGURE.read_text().endswith(results.stamp(record)), "run it"
    assert set(record["about"]) == {"date", "commit", "cpu", "threads", "simd", "torch"}
    for name in (*results.TITLES, results.ROUNDS):
        found = {(row["method"], row["budget"]) for row in record["experiments"][name]}
        wanted = {
            (asked.variant, asked.budget)
            for asked in Asked.all(settings.read(ROOT / f"configs/small/{name}.toml"))
        }
        assert found == wanted, name


def test_a_results_table_holds_what_was_found() -> None:
    def row(manner: str, method: str, budget: str, *tuned: float, nearest: tuple[float, ...] = ()) -> Row:
        done = [
            {
                "flops_kept": 0.5,
                "params_kept": 0.25,
                "accuracy": t - 0.25,
                "accuracy_bn": t - 0.125,
                "accuracy_tuned": t,
            }
            for t in tuned
        ]
        return Row("net", manner, method, budget, done, nearest)

    found = [row("dense", "dense", "", 0.75, 0.8125)]
    found += [
        row("one-pass", "l1", "flops 0.5", 0.5, 0.625),
        row("one-pass", LEAST, "flops 0.5", 0.625, 0.75),
    ]
    found += [
        row("one-pass", "l1", "flops 0.3", nearest=(0.4, 0.5)),
        row("one-pass", LEAST, "flops 0.3", 0.5),
    ]
    lines = results.one_pass(dict.fromkeys(results.TITLES, found)).splitlines()
    assert lines[0] == "| cut by | 0.5 | 0.3 |"
    title = next(iter(results.TITLES.values()))
    assert lines[2] == f"| **{title}**, 2 seeds, dense 53.1 ± 4.4 → 78.1 ± 4.4 |  |  |"
    assert lines[3] == "| l1 | 31.2 (43.8) → 56.2 ± 8.8 | not below 0.45 |"
    ours = "43.8 (56.2) → **68.8 ± 8.8** | 25.0 (37.5) → **50.0**"
    assert lines[4] == f"| eigendamage, ekfac, least loss | {ours} |"
    many = [row("2-rounds", "l1", f"flops 0.5, round {step}", 0.5 + step / 8) for step in (1, 2)]
    lines = results.rounds([*found[:2], *many]).splitlines()
    assert lines[2] == "| l1 | 50.0 % | 25.0 % | 56.2 ± 8.8 | 50.0 % | 25.0 % | 75.0 |"
