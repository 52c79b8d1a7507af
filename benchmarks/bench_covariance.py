"""Covariances against plain PyTorch: checked first, then timed in turn in one run.

    python -m benchmarks.bench_covariance [--threads T] [--rounds R] [--only WORDS]
    python -m pytest benchmarks --benchmark-only

The first prints a table, the second hands the same runs to pytest-benchmark.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import baselines
from benchmarks.cases import CHANNEL, PATCH, Case
from eigendamage_ext import ops, reference
from tests.accuracy import assert_accurate

Run = Callable[[], Any]

ROUNDS = 9


def runs(case: Case) -> dict[str, Run]:
    """``ours`` and the baselines that can compute the same, each checked in float64."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    x = torch.randn(case.shape).contiguous(memory_format=memory_format)
    kernel, geometry = case.kernel, case.geometry
    op, twin = getattr(ops, case.op), getattr(reference, case.op)
    channel = case.op == "channel_covariance"
    names = ["channel_im2col", "channel_weighted"] if channel else ["patch_gemm", "patch_unfold"]
    if not channel and case.stride == case.dilation == 1:
        names.append("patch_lags")
    settings = geometry | {"groups": case.groups}
    found: dict[str, Run] = {"ours": lambda: op(x, kernel, **settings)}
    assert_accurate(found["ours"](), twin(x, kernel, **settings), twin(x.double(), kernel, **settings))
    if case.groups > 1:
        found["reference"] = lambda: twin(x, kernel, **settings)
        return found
    few = x[:2].double()
    for name in names:
        baseline = getattr(baselines, name)
        torch.testing.assert_close(baseline(few, kernel, **geometry), twin(few, kernel, **geometry))
        found[name] = lambda f=baseline: f(x, kernel, **geometry)
    return found


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(found: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each: every round times all of them, so that what else the machine does hits all."""
    for run in found.values():
        run()
    taken = [{name: seconds(run) for name, run in found.items()} for _ in range(rounds)]
    return {name: statistics.median(times[name] for times in taken) for name in found}


def matrix_product_rate() -> float:
    """FLOP/s of a float32 matrix product: what the machine gives just now."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / in_turn({"product": lambda: a @ a}, 5)["product"]


@pytest.mark.parametrize("case", CHANNEL + PATCH, ids=str)
def test_covariance(benchmark: Any, case: Case) -> None:
    """The timer sees ours; before each of its rounds the baselines are timed, and the ratios are noted."""
    found = runs(case)
    ours = found.pop("ours")
    times: dict[str, list[float]] = {name: [] for name in found}

    def time_baselines() -> None:
        for name, run in found.items():
            times[name].append(seconds(run))

    benchmark.pedantic(ours, setup=time_baselines, rounds=ROUNDS, warmup_rounds=1)
    median = benchmark.stats.stats.median
    benchmark.extra_info["GFLOP/s"] = round(case.flops / median / 1e9, 1)
    for name, taken in times.items():
        benchmark.extra_info[f"times faster than {name}"] = round(statistics.median(taken) / median, 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_covariance", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", default="", help="cases with these words in their name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    info = ops.build_info()
    setting = f"torch {info['torch']}, {info['simd']}, {info['threads']} threads"
    print(f"{setting}; medians of {arguments.rounds} rounds")
    print(f"{'':44}{'ms':>9}{'GFLOP/s':>9}   times faster than")
    for case in CHANNEL + PATCH:
        if all(word in str(case).split() for word in arguments.only.split()):
            times = in_turn(runs(case), arguments.rounds)
            ours = times.pop("ours")
            ratios = ", ".join(f"{name} {taken / ours:.1f}" for name, taken in times.items())
            print(f"{case!s:44}{ours * 1e3:9.2f}{case.flops / ours / 1e9:9.0f}   {ratios}", flush=True)
    print(f"{'a 1024x1024 float32 matrix product':53}{matrix_product_rate() / 1e9:9.0f}")


if __name__ == "__main__":
    main()
