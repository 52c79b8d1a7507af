"""The demo, end to end at a tiny size, and the command line around it."""

import dataclasses
import importlib.util
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from eigendamage_ext import cli as command_line
from eigendamage_ext import demo, ops
from eigendamage_ext.demo import DemoSettings, print_table, run_demo
from eigendamage_ext.report import Key, Measurement, ReportData

pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parents[1]
TINY = DemoSettings(
    seeds=1,
    widths=(8, 12, 16),
    budgets=(0.7, 0.4),
    epochs=5,
    finetune_epochs=2,
    shares=(0.5,),
    timing_batch=8,
    repeats=1,
    train_examples=640,
)


def timeless(data: ReportData) -> list[Measurement]:
    return [dataclasses.replace(m, milliseconds={}) for m in data.measurements]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "report.html"


@pytest.fixture(scope="module")
def data(page: Path) -> ReportData:
    return run_demo(TINY, output=page, progress=False)


def test_every_budget_is_met_from_below(data: ReportData) -> None:
    dense, *pruned = data.measurements
    assert (dense.budget, dense.predicted_loss, dense.measured_loss) == (1.0, None, None)
    assert [m.budget for m in pruned] == [0.7, 0.4]
    for m in pruned:
        assert m.budget - 0.01 <= m.flops / dense.flops <= m.budget
        assert m.params < dense.params
        assert m.milliseconds[TINY.timing_batch] > 0


def test_the_network_learns_and_the_cut_costs(data: ReportData) -> None:
    dense, seventy, forty = data.measurements
    assert dense.accuracy > 0.4, "chance is 0.1"
    assert 0 < seventy.predicted_loss < forty.predicted_loss
    assert forty.measured_loss > 0
    assert seventy.accuracy > seventy.accuracy_cut and forty.accuracy > forty.accuracy_cut


def test_the_report_holds_layers_spectra_and_losses(data: ReportData) -> None:
    convolutions = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"]
    cut = Key("", 0.4)
    assert [layer.name for layer in data.layers[cut]][:5] == convolutions
    for key, layers in data.layers.items():
        saved = sum(before - after for before, after in (layer.flops for layer in layers))
        total = data.measurements[0].flops
        assert total - saved == next(m.flops for m in data.measurements if m.key == key)
    kept = {s.name: (sum(s.input_kept), sum(s.output_kept)) for s in data.spectra}
    assert data.chosen == cut
    assert kept == {layer.name: (layer.inputs[1], layer.outputs[1]) for layer in data.layers[cut]}
    alone = {pair.layer for pair in data.alone}
    assert alone >= set(convolutions), "every layer that has a form other than dense"
    assert all(pair.predicted > 0 and math.isfinite(pair.measured) for pair in data.alone)
    assert data.settings["seeds"] == "0" and "PyTorch" in data.settings["software"]


def test_the_page_is_written_whole(data: ReportData, page: Path) -> None:
    html = page.read_text()
    assert html.rstrip().endswith("</html>") and "layer3.0.conv2" in html
    assert list(page.parent.iterdir()) == [page]


def test_the_same_seed_gives_the_same_numbers(data: ReportData) -> None:
    again = run_demo(TINY, progress=False)
    assert timeless(again) == timeless(data)
    assert again.alone == data.alone and again.layers == data.layers


def test_the_caller_keeps_its_random_state(data: ReportData) -> None:
    smallest = dataclasses.replace(
        TINY, epochs=1, budgets=(0.7,), finetune_epochs=0, shares=(), train_examples=64
    )
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run_demo(smallest, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_the_table_shows_the_measurements(data: ReportData) -> None:
    times = [12.34, 8.76, 5.43]
    pairs = zip(data.measurements, times, strict=True)
    timed = [dataclasses.replace(m, milliseconds={8: t}) for m, t in pairs]
    stream = io.StringIO()
    print_table(dataclasses.replace(data, measurements=timed), Console(file=stream, width=110))
    text = stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) == 7:
            rows[cells[0]] = cells[1:]
    for m, label, time, speed in zip(
        timed, rows, ("12.3", "8.8", "5.4"), ("1.00×", "1.41×", "2.27×"), strict=True
    ):
        assert label == ("dense" if m.budget == 1 else f"{100 * m.budget:g} %")
        assert rows[label] == [
            "" if m.budget == 1 else f"{100 * m.accuracy_cut:.1f}",
            f"{100 * m.accuracy:.1f}",
            f"{m.params / 1e6:.3f}",
            f"{m.flops / 1e6:.2f}",
            time,
            speed,
        ]
    assert "At 40 % of the FLOPs" in text and "runs 2.27 times as fast" in " ".join(text.split())


def test_lines_of_progress_name_stages_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    run_demo(dataclasses.replace(TINY, budgets=(0.7,), shares=(), train_examples=128), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "seed 1 of 1: 70 % of the FLOPs" in err and "s left" in err


def test_ctrl_c_ends_with_130_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "finetune", interrupt)
    monkeypatch.setattr(demo, "DemoSettings", lambda **_: TINY)
    assert command_line.main(["demo", "--output", str(tmp_path / "report.html")]) == 130
    assert "no report was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_main_prints_the_table_and_names_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: ReportData
) -> None:
    def run(settings: DemoSettings, *, output: Path) -> ReportData:
        assert (settings.seeds, settings.device) == (5, "cpu")
        return data

    monkeypatch.setattr(demo, "run_demo", run)
    path = tmp_path / "page.html"
    assert command_line.main(["demo", "--seeds", "5", "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert str(path) in out and "look first at" in out and "dense" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "required: command"),
        (["demo", "--seeds", "0"], 2, "must be at least 1"),
        (["demo", "--seeds", "two"], 2, "invalid"),
        (["demo", "--output", "absent/report.html"], 1, "in an existing folder, got absent/report.html"),
        (["demo", "--output", "."], 1, "must be a file"),
        (["demo", "--device", "nonsense"], 1, "got 'nonsense'; use cpu"),
        (["demo", "--device", "meta"], 1, "got 'meta', for which there are no kernels; use cpu"),
    ],
)
def test_wrong_usage_is_told_in_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        got = command_line.main(arguments)
    except SystemExit as error:
        got = error.code
    assert got == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_gpu_must_be_there_and_the_kernels_compiled_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(demo, "run_demo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["demo", "--device", "cuda"]) == 1
    where = "demo: --device must be usable here, got 'cuda'"
    assert capsys.readouterr().err == f"{where} where PyTorch finds no GPU; use cpu\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops, "build_info", lambda: {"cuda": False})
    assert command_line.main(["demo", "--device", "cuda"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{where}, for which the kernels were not compiled; run `EIGENDAMAGE_CUDA=1 make")


def test_make_hands_the_device_on() -> None:
    command = ["make", "-n", "demo", "DEVICE=cuda:1", f"PYTHON={sys.executable}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-m eigendamage_ext demo --device cuda:1" in run.stdout
    run = subprocess.run([*command[:3], command[4]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-m eigendamage_ext demo" in run.stdout and "--device" not in run.stdout


@pytest.mark.cuda
def test_the_demo_runs_on_a_gpu() -> None:
    settings = dataclasses.replace(TINY, device="cuda")
    data = run_demo(settings, progress=False)
    dense, *pruned = data.measurements
    assert dense.accuracy > 0.4 and data.settings["device"] == torch.cuda.get_device_name()
    for m in pruned:
        assert m.budget - 0.01 <= m.flops / dense.flops <= m.budget and m.milliseconds[8] > 0
        assert m.accuracy > m.accuracy_cut and m.predicted_loss > 0


def test_a_missing_library_is_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    monkeypatch.delattr(demo, "run_demo")
    assert command_line.main(["demo", "--output", str(tmp_path / "report.html")]) == 1
    assert capsys.readouterr().err == "demo: scikit-learn must be installed; run `pip install scikit-learn`\n"
