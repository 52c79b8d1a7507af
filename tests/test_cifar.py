"""The CIFAR-10 experiment, tiny: stopped anywhere it ends alike, and nothing depends on test images."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import eigendamage_ext as ed
from benchmarks import cifar, cifar_report, cifar_stages, stages
from benchmarks.cifar_settings import PRESETS, VARIANTS
from benchmarks.cifar_stages import Experiment
from eigendamage_ext import _devices, _files
from eigendamage_ext.data import TensorLoader

image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]
TINY = replace(PRESETS["small"], repeats=0)
CHOSEN = [
    "--networks",
    "resnet8",
    "--variants",
    VARIANTS[0],
    VARIANTS[-1],
    "--budgets",
    "0.6",
    "--seeds",
    "0",
]


class Killed(BaseException):
    pass


def archive(path: Path, *, held_out: int = 0, test: int = 0) -> Path:
    """Writes 80 training and 30 test images of ten classes; numbers other than 0 change labels of some."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 150, (10, 3))
    arrays = {}
    for split, count in (("train", 80), ("test", 30)):
        labels = np.arange(count) * 10 // count
        blobs = []
        for label in labels:
            pixels = generator.integers(0, 100, (32, 32, 3)) + colours[label]
            buffer = io.BytesIO()
            image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
            blobs.append(np.frombuffer(buffer.getvalue(), np.uint8))
        labels[:: 10 if split == "train" else 1] += held_out if split == "train" else test
        arrays |= {
            f"{split}_bytes": np.concatenate(blobs),
            f"{split}_offsets": np.cumsum([0, *map(len, blobs)]),
            f"{split}_labels": labels % 10,
        }
    path.mkdir()
    np.savez(path / "cifar10_jpeg.npz", **arrays)
    return path


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", TINY)
    monkeypatch.setattr(cifar_stages, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)


def run(data: Path, out: Path, *more: str) -> int:
    arguments = ["--data", data, "--out", out, "--preset", "small", "--device", "cpu", *CHOSEN, *more]
    return cifar.main([str(argument) for argument in arguments])


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("cifar") / "data")


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run from beginning to end."""
    out = data.parent / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "small", TINY)
        assert run(data, out) == 0
    return out


def test_a_run_makes_every_file_once(data: Path, whole: Path) -> None:
    cell = [f"{VARIANTS[i]}-0.6/{name}" for i in (0, -1) for name in (
        "cut.json", "cut.safetensors", "result.json", "tuned.history.json", "tuned.safetensors"
    )]  # fmt: skip
    cell += ["dense-1/result.json", "factors.safetensors", "trained.history.json", "trained.safetensors"]
    expected = {f"resnet8-seed0/{name}" for name in cell}
    top = ("images.safetensors", "settings.json", "results.jsonl", "table.md", "resnet8.svg")
    assert set(files(whole)) == expected | set(top)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    assert run(data, whole) == 0
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}


def test_records_are_what_the_files_hold(data: Path, whole: Path) -> None:
    records = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
    assert [cifar_report.variant(r) for r in records] == ["dense", VARIANTS[-1], VARIANTS[0]]
    experiment = Experiment(data, whole, TINY, device="cpu", deadline=None)
    images = experiment.images
    assert [len(part[1]) for part in images] == [72, 8, 30]
    assert torch.equal(images.validation[1], torch.arange(0, 80, 10) * 10 // 80)
    text = (whole / "table.md").read_text()
    for record in records:
        name = f"{cifar_report.variant(record)}-{record['budget']:g}"
        path = whole / "resnet8-seed0" / (name if record["method"] else "..") / "tuned.safetensors"
        path = path if record["method"] else whole / "resnet8-seed0" / "trained.safetensors"
        model = ed.load(path, into=TINY.networks["resnet8"].build())
        assert sum(p.numel() for p in model.parameters()) == record["params"]
        for key, part in (("accuracy_tuned", images.test), ("accuracy_validation", images.validation)):
            assert record[key] == ed.evaluate(model, TensorLoader(*part, batch_size=500))
        kept = record["flops"] / records[0]["flops"]
        assert record["flops_kept"] == kept <= record["budget"] < kept + 0.03
        (row,) = (
            line for line in text.splitlines() if f"| resnet8 | {cifar_report.variant(record)} |" in line
        )
        for cell in (f"{record['flops'] / 1e6:.1f}", f"{100 * record['accuracy_tuned']:.1f}"):
            assert f"| {cell} |" in row
    history = json.loads((whole / "resnet8-seed0" / "trained.history.json").read_text())
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3, 4]


def test_a_run_killed_after_one_two_or_three_writes_ends_alike(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, left, kills = os.replace, 1, 0

    def move_and_die(source: str, target: str) -> None:
        nonlocal left
        move(source, target)
        left -= 1
        if left == 0:
            raise Killed

    monkeypatch.setattr(_files.os, "replace", move_and_die)
    while not (tmp_path / "out" / "table.md").exists():
        left = 1 + kills % 3
        with pytest.raises(Killed):
            run(data, tmp_path / "out")
        kills += 1
        assert kills < 60
    left = -1
    assert kills >= 12 and run(data, tmp_path / "out") == 0
    assert files(tmp_path / "out") == files(whole)


def test_slices_of_no_time_advance_by_an_epoch_or_a_stage_and_end_alike(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 1
    while (code := run(data, tmp_path / "out", "--minutes", "0")) == stages.UNFINISHED:
        assert "stopped; the same command goes on from here" in capsys.readouterr().err
        calls += 1
        assert calls < 60
    # images, four epochs, the files of training, factors, dense, and of each cut: prune, its epoch
    assert code == 0 and 8 <= calls <= 14
    assert files(tmp_path / "out") == files(whole)


def test_sigkill_leaves_a_run_that_goes_on(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, dataclasses; from benchmarks import cifar, cifar_settings as s;"
        "s.PRESETS['small'] = dataclasses.replace(s.PRESETS['small'], repeats=0); cifar.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, "--data", data, "--out", out, "--preset", "small", *CHOSEN]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    while not (out / "resnet8-seed0" / "trained.safetensors").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "table.md").exists()
    (out / ".images.safetensors.0123.tmp").write_bytes(b"half a file")
    assert run(data, out) == 0
    assert files(out) == files(whole)


@pytest.mark.parametrize(("changed", "accuracy"), [("held_out", "accuracy_validation"), ("test", "accuracy")])
def test_nothing_depends_on_images_that_are_not_trained_on(
    whole: Path, tmp_path: Path, changed: str, accuracy: str
) -> None:
    data = archive(tmp_path / "data", **{changed: 3})
    assert run(data, tmp_path / "out") == 0
    found, expected = files(tmp_path / "out"), files(whole)
    assert found.keys() == expected.keys()
    changes = {name for name in found if found[name] != expected[name]}
    assert "images.safetensors" in changes
    for name in changes - {"images.safetensors", "results.jsonl", "table.md", "resnet8.svg"}:
        assert name.endswith(".json")
        one, other = json.loads(found[name]), json.loads(expected[name])
        assert all(one[key] == other[key] or key.startswith(accuracy) for key in one), name


def test_latency_is_told_beside_the_dense_network(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "small", replace(TINY, repeats=2, timing_batches=(1, 4)))
    seen = []

    def clock(networks, batch, repeats, *, autocast):
        seen.append((len(networks), len(batch), repeats, autocast))
        return [10.0 * len(batch), 4.0 * len(batch)][: len(networks)]

    monkeypatch.setattr(_devices, "milliseconds", clock)
    assert run(data, tmp_path / "out", "--variants", VARIANTS[0]) == 0
    assert seen == [(1, 1, 2, None), (1, 4, 2, None), (2, 1, 2, None), (2, 4, 2, None)]
    rows = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert rows[0].endswith("| ms, batch 1 | ms, batch 4 | speed, batch 1 | speed, batch 4 |")
    assert rows[2].endswith("| 10.00 | 40.00 | 1.00× | 1.00× |")
    assert rows[3].endswith("| 4.00 | 16.00 | 2.50× | 2.50× |")


def test_wrong_use_is_told_in_one_line(
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, code, message in (
        (["--networks", "vgg19"], 2, "--networks must be among resnet8, vgg11, got vgg19"),
        (["--data", tmp_path], 2, "must be a folder that holds cifar10_jpeg.npz, got"),
        (["--device", "nonsense"], 1, "cifar: --device must be usable here, got 'nonsense'; use cpu"),
    ):
        try:
            found = run(data, tmp_path / "out", *map(str, arguments))
        except SystemExit as error:
            found = error.code
        assert found == code and message in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setitem(PRESETS, "small", replace(TINY, lr=0.3))
    assert run(data, whole) == 1
    expected = r"--out must be of a run with the same settings, got lr 0\.05 in place of 0\.3; choose another"
    assert re.search(expected, capsys.readouterr().err)


def test_ctrl_c_ends_with_130_and_a_table_of_what_there_is(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ed, "finetune", interrupt)
        assert run(data, tmp_path / "out") == stages.INTERRUPTED
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
    assert run(data, tmp_path / "out") == 0 and files(tmp_path / "out") == files(whole)


def test_the_table_and_the_chart_show_every_seed() -> None:
    def record(seed: int, budget: float, accuracy: float, scores: str | None = None) -> dict[str, object]:
        words = {"method": scores and "eigendamage", "scores": scores, "allocation": scores and "threshold"}
        cost = {"flops": 4e9 * budget, "params": 2e6 * budget, "flops_kept": budget, "params_kept": budget}
        accuracies = dict.fromkeys(("accuracy", "accuracy_bn", "accuracy_tuned"), accuracy)
        return {
            "network": "net",
            "seed": seed,
            "budget": budget,
            **words,
            **cost,
            **accuracies,
            "ms": {},
            "dense_ms": {},
        }

    records = [record(seed, 1.0, 0.9 + 0.02 * seed) for seed in (0, 1)]
    records += [record(s, b, 0.8 + 0.06 * s, "kfac") for b in (0.5, 0.25) for s in (0, 1)]
    settings = {"train_images": None, "test_images": 7, "finetune_epochs": 1, "device": "cuda"}
    text = cifar_report.table(records, {**settings, "repeats": 3, "torch": "2"})
    assert "| net | dense | 4000.0 | 100.0 % | 2.000 | 100.0 % |  |  | 91.0 ± 1.4 |  | 2 |" in text
    cut = "83.0 ± 4.2 | 83.0 ± 4.2 | 83.0 ± 4.2 | 8.0 ± 2.8 | 2 |"
    assert f"| net | eigendamage.kfac.threshold | 1000.0 | 25.0 % | 0.500 | 25.0 % | {cut}" in text
    assert "all training images" in text and "bfloat16 autocast" in text
    picture = cifar_report.chart(records)
    root = ElementTree.fromstring(picture)
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"eigendamage kfac threshold", "FLOPs kept, %", "25", "50", "100"} <= words
    used = set(re.findall(r"var\((--\w+)\)", picture))
    assert used and used <= set(re.findall(r"(--\w+):", picture))
    shown = [e for e in root.iter() if e.tag.endswith("use") and "var(--accent)" in e.attrib.get("style", "")]
    assert len(shown) == 4
    assert cifar_report.chart(records[:2]) is None
