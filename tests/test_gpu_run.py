"""`benchmarks.gpu_run`: what it runs, what it says of stages that fail or take too long, and its record."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_run
from benchmarks.contest import Contest
from benchmarks.gpu.cases import entries
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.gates import GPU_GATES
from benchmarks.gpu.kernels import read
from benchmarks.gpu.timing import hold

ROW = {
    *("name", "shape", "dtype", "ours_us", "baseline", "baseline_us", "speedup"),
    *("fraction_of_floor", "error", "baseline_error", "extra_mb"),
}
CEILINGS = Ceilings(
    copy=4e12, products={"float32": 60e12, "tf32": 390e12, "bfloat16": 790e12, "float64": 60e12}, launch=2e-6
)


@pytest.fixture
def run(tmp_path):
    options = argparse.Namespace(budget=100, dry_run=True, cases="")
    return gpu_run.Run(tmp_path / "record.json", {"machine": {}, "stages": {}}, options)


def test_a_dry_run_writes_the_record(tmp_path, capsys):
    out = tmp_path / "record.json"
    arguments = [
        "--dry-run",
        "--out",
        str(out),
        "--cases",
        "eigh",
        "--only",
        "streams",
        "sanitizer",
        "kernels",
    ]
    assert gpu_run.main(arguments) == 0
    record = json.loads(out.read_text())
    assert {"schema", "commit", "date", "machine", "stages", "ceilings", "cases", "gates"} <= set(record)
    assert {name: stage["status"] for name, stage in record["stages"].items()} == dict.fromkeys(
        ("streams", "sanitizer", "kernels"), "passed"
    )
    assert record["cases"] and all(set(row) == ROW for row in record["cases"])
    for row in record["cases"]:
        assert row["speedup"] == pytest.approx(row["baseline_us"] / row["ours_us"]["median"], rel=1e-3)
        assert 0 < row["error"] < 1e-4 and row["ours_us"]["n"] >= 3
    assert "results are right" in (tmp_path / "record.sanitizer.log").read_text()
    assert "gates met" in capsys.readouterr().out

    assert gpu_run.main([*arguments, "--only", "build"]) == 0  # the other stages are kept
    assert set(json.loads(out.read_text())["stages"]) == {"streams", "sanitizer", "kernels", "build"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu_run.main(["--out", str(tmp_path / "record.json")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("gpu_run: torch must see a GPU, got none; ") and said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_command_that_overruns_is_cut_with_all_it_started(run):
    program = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '30'])"
    began = time.monotonic()
    code, text = run.command("build", [sys.executable, "-c", program], limit=2)
    assert code is None and text == "begun\n" and time.monotonic() - began < 10
    assert "cut after 2 s" in run.log("build").read_text()
    run.end = time.monotonic()
    assert run.command("build", [sys.executable, "-c", ""], limit=2) == (None, "")


def test_a_stage_that_breaks_is_recorded(run, monkeypatch):
    def broken(run, limit):
        raise KeyError("capability")

    monkeypatch.setitem(gpu_run.STAGES, "tests", (broken, 10))
    assert gpu_run.one_stage(run, "tests") == {"status": "failed", "note": "KeyError: 'capability'"}
    run.record["stages"]["build"] = {"status": "failed"}
    assert gpu_run.one_stage(run, "kernels")["status"] == "skipped"
    run.record["stages"].clear()
    run.end = time.monotonic()
    assert gpu_run.one_stage(run, "kernels")["status"] == "cut"


def test_tests_are_counted_also_where_they_are_cut(run, monkeypatch):
    text = (
        "tests/test_a.py::test_x[cuda-3x3 pad 1] PASSED [ 10%]\ntests/test_a.py::test_y FAILED [ 20%]\n"
        "tests/test_a.py::test_z SKIPPED (needs two GPUs) [ 30%]\ntests/test_a.py::test_w"
    )
    monkeypatch.setattr(run, "command", lambda *_, **__: (None, text))
    found = gpu_run.pytest(run, "tests", 10, "tests/test_a.py")
    assert (found["passed"], found["failed"], found["skipped"], found["error"]) == (1, 1, 1, 0)
    assert found["failures"] == ["tests/test_a.py::test_y"] and found["status"] == "cut"
    monkeypatch.setattr(run, "command", lambda *_, **__: (4, "ImportError: no such module\n"))
    found = gpu_run.pytest(run, "tests", 10, "tests/test_a.py")
    assert found["status"] == "failed" and found["failures"] == [
        "tests/test_a.py: ImportError: no such module"
    ]


RECORD = {
    "op": "eigh",
    "case": "b",
    "dtype": "float32",
    "ms": 1.0,
    "us": {"median": 1e3, "iqr": 1.0, "n": 3},
    "baselines ms": {"torch": 2.0},
    "times faster": {"torch": 2.0},
    "error": 1e-7,
    "baseline errors": {},
}


def test_a_benchmark_that_ends_its_process_is_left_behind(run, monkeypatch):
    """The first process dies in a, the second fails in c and has no time for d."""
    parts = [
        [{"ceilings": {}}, {"begun": "eigh: b"}, {"record": RECORD}, {"begun": "eigh: a"}],
        [{"begun": "eigh: c"}, {"failed": "eigh: c", "why": "AssertionError"}, {"left": ["eigh: d"]}],
    ]

    def command(stage, arguments, limit):
        with Path(arguments[arguments.index("--out") + 1]).open("a") as lines:
            lines.writelines(json.dumps(line) + "\n" for line in parts.pop(0))
        return 1, ""

    monkeypatch.setattr(run, "command", command)
    found = gpu_run.kernels(run, 60)
    assert parts == [] and found["status"] == "failed" and found["not reached"] == ["eigh: d"]
    assert found["failures"] == {"eigh: c": "AssertionError", "eigh: a": "cut, or it ended the process"}
    assert [row["shape"] for row in run.record["cases"]] == ["b"]


def test_a_process_that_is_started_again_goes_on(tmp_path):
    out = tmp_path / "lines"
    out.write_text(json.dumps({"ceilings": vars(CEILINGS)}) + "\n" + '{"begun": "eigh: 64 of 1 to 32"}\n')
    command = [sys.executable, "-m", "benchmarks.gpu.kernels", "--out", str(out)]
    command += "--device cpu --tiny --cases of".split()
    subprocess.run(command, cwd=gpu_run.ROOT, check=True, capture_output=True)
    begun = [line["begun"] for line in read(out) if "begun" in line]
    assert begun == [
        *("eigh: 64 of 1 to 32", "eigh: factors of ResNet-32", "eigh: 3 of 4 float32", "eigh: 3 of 4 float64")
    ]
    assert [line for line in read(out) if "ceilings" in line] == [{"ceilings": vars(CEILINGS)}]


def test_gates_name_benchmarks_that_exist():
    known = {entry.name for entry in entries("cuda")}
    assert len(known) == len(list(entries("cuda")))
    for gate in GPU_GATES:
        assert gate.cases and len(gate.limits) in (1, len(gate.cases)), gate.what
        assert set(gate.cases) <= known, gate.what


def test_the_floor_is_the_larger_of_bytes_and_operations():
    assert CEILINGS.arithmetic(torch.float32) == 130e12  # three products of TF32
    assert CEILINGS.floor(130e12, 1e12, torch.float32) == 1
    assert CEILINGS.floor(1e12, 8e12, torch.bfloat16) == 2


def test_contestants_are_checked_and_timed_in_turn():
    log = []

    def contestant(name, answer):
        return lambda: log.append(name) or torch.tensor(answer) * torch.ones(1 << 22).sum() / (1 << 22)

    contest = Contest(
        *("op", "case", contestant("ours", 1.0), {"slow": contestant("slow", 1.5)}),
        flops=130e9,
        error=lambda found: abs(float(found) - 1),
    )
    found = hold(contest, "cpu", 0.1, CEILINGS)
    assert found["error"] == 0 and found["baseline errors"] == {"slow": 0.5}
    assert found["share of floor"] == pytest.approx(1e-3 / (found["ms"] / 1e3))
    assert found["us"]["median"] == pytest.approx(1e3 * found["ms"])
    assert log[-2:] == ["ours", "slow"] and found["us"]["n"] >= 3
