"""The benchmarks' own arithmetic, and that what README.md shows is what was measured."""

import json
import subprocess
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import (
    bench_covariance,
    bench_eigh,
    bench_second_moment,
    chart,
    gates,
    memory,
    probes,
    report,
    tables,
)
from benchmarks.cases import MEMORY, MOMENT, MOMENT_GRID, Case, eigh_factors, eigh_stack
from benchmarks.contest import Contest, hold, record
from benchmarks.gates import Gate

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = Contest("op", "small", lambda: None, flops=4e9, read=3e9, written=1e9, threads=1)
PEAK, RATES = 100e9, probes.Bandwidth(read=30e9, write=20e9, copy=10e9)


@pytest.fixture(autouse=True)
def _rates(monkeypatch):
    monkeypatch.setattr(probes, "bandwidth", lambda threads: RATES)
    monkeypatch.setattr(probes, "multiply_adds", lambda *_: PEAK)


def test_readme_and_chart_are_in_step_with_the_newest_record():
    result = report.newest()
    text = report.README.read_text()
    assert report.with_section(text, report.readme_section(result)) == text, "run python -m benchmarks.report"
    assert report.CHART.read_text() == chart.draw(result), "run python -m benchmarks.report --render"
    for row in chart.rows(result["records"], most=report.ROWS):
        assert f"| {row.kernel} | {row.label} |" in text


def test_records_name_no_machine():
    for path in report.RESULTS.glob("cpu-*.json"):
        assert set(json.loads(path.read_text())["about"]) <= {
            *("date", "commit", "cpu", "cores", "simd", "torch", "compiler"),
            *("FMA GFLOP/s, 1 thread", "FMA GFLOP/s, 2 threads", "GB/s read", "GB/s written", "GB/s copied"),
        }, path


def test_a_record_relates_time_to_the_larger_floor():
    found = record(SMALL, 0.3, {"slow": 0.6, "fast": 0.15}, PEAK)
    assert found["times faster"] == {"slow": pytest.approx(2), "fast": pytest.approx(0.5)}
    assert found["ms"] == 300 and found["GFLOP/s"] == pytest.approx(4 / 0.3)
    assert found["share of FMA peak"] == pytest.approx(0.04 / 0.3)
    assert found["GB/s"] == pytest.approx(4 / 0.3)
    assert found["floor ms"] == pytest.approx(150) and found["share of floor"] == pytest.approx(0.5)
    bare = record(Contest("op", "bare", lambda: None), 0.3, {}, PEAK)
    assert "floor ms" not in bare and "GFLOP/s" not in bare and "GB/s" not in bare


def test_contestants_take_turns_on_the_threads_of_the_contest():
    log = []

    def pedantic(ours, setup, rounds, warmup_rounds):
        for _ in range(rounds + warmup_rounds):
            setup()
            ours()

    def run(name):
        return lambda: log.append((name, torch.get_num_threads()))

    stats = types.SimpleNamespace(stats=types.SimpleNamespace(median=1.0))
    benchmark = types.SimpleNamespace(pedantic=pedantic, stats=stats, extra_info={})
    before = torch.get_num_threads()
    hold(Contest("op", "case", run("ours"), {"a": run("a"), "b": run("b")}, threads=before + 1), benchmark)
    names, threads = zip(*log, strict=True)
    assert names[3:] == ("a", "b", "ours") * (len(log) // 3 - 1) and len(log) > 6
    assert set(threads) == {before + 1} and torch.get_num_threads() == before
    assert set(benchmark.extra_info["baselines ms"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("mean", "at_most", "limits", "figures", "met"),
    [
        (False, False, (2,), (2, 3), True),
        (False, False, (2,), (1.9, 30), False),
        (False, False, (2, 3), (2.5, 2.9), False),
        (False, False, (3, 2), (3, 2), True),
        (True, False, (4,), (2, 8), True),
        (True, False, (4,), (2, 7.9), False),
        (False, True, (5,), (5, 4), True),
        (False, True, (5,), (5, 5.1), False),
        (False, False, (2,), (float("nan"), 3), False),
        (False, False, (2,), (3,), None),
    ],
)
def test_a_gate_is_met_by_all_its_cases(mean, at_most, limits, figures, met):
    gate = Gate("w", "a", gates.field("f"), ("op: 0", "op: 1"), limits, mean=mean, at_most=at_most)
    records = [{"op": "op", "case": str(i), "f": figure} for i, figure in enumerate(figures)]
    (verdict,) = gates.judge(records, [gate])
    assert verdict.met is met
    assert ("MISSED" in tables.gates([verdict])) is (met is False)


def test_threads_are_efficient_when_two_take_half_the_time():
    records = [
        {"op": "eigh", "case": eigh_factors(threads), "ms": ms} for threads, ms in ((1, 6.0), (2, 4.0))
    ]
    (gate,) = (gate for gate in gates.GATES if gate.cases == (gates.EFFICIENCY,))
    (verdict,) = gates.judge(records, [gate])
    assert verdict.measured == "0.75" and verdict.met is False


def test_gates_name_cases_that_exist():
    known = {f"{case.op}: {case}" for case in bench_covariance.CASES + MOMENT + MOMENT_GRID}
    known |= {f"eigh: {eigh_factors(threads)}" for threads in (1, 2)} | {gates.EFFICIENCY}
    for dtype in ("float32", "float64"):
        known |= {f"eigh: {eigh_stack(n, dtype)[1]}" for n in bench_eigh.SIZES}
        known |= {f"eigh: one of {n} {dtype}" for n in bench_eigh.SIZES}
    for kind in ("channel", "patch"):
        known |= {f"factor_pass: {kind}", f"factor_pass: {kind}, other ways"}
    known |= {f"memory: {case}" for case in MEMORY}
    for gate in gates.GATES:
        assert gate.cases and len(gate.limits) in (1, len(gate.cases)), gate.what
        assert set(gate.cases) <= known, gate.what


def test_a_record_is_distilled_from_runs_of_which_the_last_counts():
    def run(**ratio):
        entries = [
            {
                "op": "eigh",
                "case": f"eigh {n}",
                "ms": 1 / 3,
                "times faster": {"torch": r},
                "baselines ms": {"torch": 1.0},
            }
            for n, r in ratio.items()
        ]
        return {"machine_info": {"node": "secret"}, "benchmarks": [{"extra_info": e} for e in entries]}

    about = {"date": "2026-01-02", "commit": "abc", "cpu": "C & D", "cores": 2, "simd": "v3", "torch": "2"}
    result = report.distil([run(a=3.0, b=4.0), run(b=5.0)], about)
    assert [r["times faster"]["torch"] for r in result["records"]] == [3, 5]
    assert result["records"][0]["ms"] == 0.3333 and "secret" not in json.dumps(result)
    section = report.readme_section(result)
    assert "| eigh | b | 0.333 |" in section and "5×" in section
    assert report.with_section(f"x{report.BEGIN}old{report.END}y", section) == f"x{section}y"
    with pytest.raises(ValueError, match="must hold"):
        report.with_section("no markers", section)
    picture = ElementTree.fromstring(chart.draw(result))
    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"eigh", "a", "b", "1×"} <= set(words) and any("C & D" in word for word in words)


def test_a_contest_of_a_small_case_checks_and_computes():
    for op in ("channel_covariance", "patch_covariance"):
        case = Case(op, (2, 4, 6, 5))
        contest = bench_covariance.prepare(case)
        for run in contest.baselines.values():
            torch.testing.assert_close(run(), contest.ours())
        assert contest.read == 4 * 240 and contest.written == 4 * (36 if op == "patch_covariance" else 4) ** 2
        assert (contest.op, contest.case) == (op, str(case))


def test_second_moments_count_what_they_multiply():
    case = Case("gradient_second_moment", (2, 3, 6, 5), stride=2)
    contest = bench_second_moment.prepare(case)
    for run in contest.baselines.values():
        torch.testing.assert_close(run(), contest.ours())
    inside = torch.nn.functional.unfold(torch.ones(1, 1, 6, 5), 3, padding=1, stride=2).sum()
    assert contest.flops == 2 * 2 * 3 * 3 * inside
    assert contest.read == 4 * (2 * 3 * 30 + 2 * 3 * 9) and contest.written == 4 * 81


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone starts a peak over")
def test_extra_memory_is_what_a_call_allocates():
    def allocate(size):
        return lambda: torch.ones(size << 18).sum()  # size MiB

    assert memory.extra_bytes(allocate(64)) == pytest.approx(64 << 20, rel=0.1)
    assert memory.extra_bytes(lambda: None) < 4 << 20


def test_probes_compile_and_are_plausible():
    program = (
        "from benchmarks.probes import *; print(multiply_adds(1, rounds=1000), bandwidth(2, 1 << 16).read)"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rate, read = map(float, found.stdout.split())
    assert 1e5 < rate < 1e13 and 1e5 < read < 1e13  # a busy machine is slow to start threads
