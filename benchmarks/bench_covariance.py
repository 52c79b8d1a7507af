"""Covariances against plain PyTorch."""

from collections.abc import Callable

import pytest
import torch

from benchmarks import baselines
from benchmarks.cases import CHANNEL, PATCH, Case
from benchmarks.contest import Contest, Run
from eigendamage_ext import ops, reference
from tests.accuracy import assert_accurate


def prepare(case: Case) -> Contest:
    """Ours, held to the accuracy policy, and baselines that compute the same, held to the reference."""
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    x = torch.randn(case.shape).contiguous(memory_format=memory_format)
    kernel, geometry = case.kernel, case.geometry
    op, twin = getattr(ops, case.op), getattr(reference, case.op)
    channel = case.op == "channel_covariance"
    names = ["channel_im2col", "channel_weighted"] if channel else ["patch_gemm", "patch_unfold"]
    if not channel and case.stride == case.dilation == 1:
        names.append("patch_lags")
    settings = geometry | {"groups": case.groups}

    def ours() -> torch.Tensor:
        return op(x, kernel, **settings)

    assert_accurate(ours(), twin(x, kernel, **settings), twin(x.double(), kernel, **settings))
    others: dict[str, Run] = {}
    if case.groups > 1:
        others["reference"] = lambda: twin(x, kernel, **settings)
        names = []
    few = x[:2].double()
    for name in names:
        baseline = getattr(baselines, name)
        torch.testing.assert_close(baseline(few, kernel, **geometry), twin(few, kernel, **geometry))
        others[name] = lambda f=baseline: f(x, kernel, **geometry)
    return Contest(case.op, str(case), ours, others, flops=case.flops, read=case.read, written=case.written)


CASES = CHANNEL + PATCH


@pytest.mark.parametrize("case", CASES, ids=str)
def test_covariance(contest: Callable[[Contest], None], case: Case) -> None:
    contest(prepare(case))
