"""The short benchmark: what it runs is checked, and what it prints."""

import io

import pytest
import torch
from rich.console import Console

from eigendamage_ext import bench, ops, reference
from eigendamage_ext.cli import main

TINY = {"batch": 2, "scale": 16, "seconds": 0.0}


def printed(terminal, width=200):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    results = bench.run_bench(console, **TINY)
    return results, console.file.getvalue()


def test_every_kernel_is_measured_and_told_in_a_line():
    results, text = printed(terminal=False)
    lines = text.splitlines()
    assert f"kernels {ops.build_info()['simd']}" in lines[0] and len(lines) == 1 + len(results)
    for result, line in zip(results, lines[1:], strict=True):
        assert result.ours > 0 and result.plain > 0
        assert line.startswith(result.case.kernel) and result.case.shape in line
        assert f"{result.ratio:.1f} times faster" in line
    names = {result.case.kernel for result in results}
    assert names == set(ops.__all__) - {"EighError", "Failure", "build_info", "covariance"}


def test_a_terminal_gets_bars():
    results, text = printed(terminal=True)
    assert "█" * bench.BAR in text
    for result in results:
        assert result.case.shape in text and f" {result.ratio:.1f}" in text


def test_the_longest_bar_fits_80_columns():
    _, text = printed(terminal=True, width=80)
    assert "█" * bench.BAR in text and "…" not in text


@pytest.mark.parametrize("kernel", ["patch_covariance", "eigh"])
def test_a_wrong_answer_is_told_and_not_timed(kernel, monkeypatch):
    twin = getattr(reference, kernel)

    def wrong(*tensors, **settings):
        return twin(*(1.001 * tensor for tensor in tensors), **settings)

    monkeypatch.setattr(ops, kernel, wrong)
    with pytest.raises(ArithmeticError, match=f"bench: {kernel} of .* must agree with plain PyTorch"):
        bench.run_bench(Console(file=io.StringIO()), **TINY)


def test_nan_does_not_pass():
    nan = torch.tensor([float("nan")])
    case = bench.Case("k", "s", lambda: nan, lambda: nan, lambda: nan.double(), lambda result: (result,))
    with pytest.raises(ArithmeticError, match="error of nan"):
        bench.check(case)


def test_the_command_line(monkeypatch, capsys):
    ran = []

    def run_bench(console):
        ran.append(torch.get_num_threads())
        if len(ran) == 2:
            raise ArithmeticError("bench: wrong")
        if len(ran) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_bench", run_bench)
    before = torch.get_num_threads()
    try:
        assert main(["bench", "--threads", "2"]) == 0
    finally:
        torch.set_num_threads(before)
    assert main(["bench"]) == 1 and main(["bench"]) == 130
    assert ran == [2, before, before]
    error = capsys.readouterr().err
    assert "bench: wrong" in error and "interrupted" in error and "report" not in error
