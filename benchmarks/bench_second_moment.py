"""Second moments of per-example gradients against plain PyTorch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate

from benchmarks import baselines
from benchmarks.cases import MOMENT, MOMENT_GRID, Case
from benchmarks.contest import Contest, Run
from eigendamage_ext import ops, reference


def prepare(case: Case) -> Contest:
    """Ours, held to the accuracy policy on two examples, and both baselines, held to the reference there."""
    x = torch.randn(case.shape)
    channels, settings = case.shape[1], case.geometry | {"groups": case.groups}
    weight = torch.zeros(case.outputs or channels, channels // case.groups, case.kernel, case.kernel)
    g = torch.randn_like(F.conv2d(x, weight, **settings))
    call, few = (case.kernel,), (x[:2], g[:2])
    exact = reference.gradient_second_moment(*(t.double() for t in few), *call, **settings)
    plain = reference.gradient_second_moment(*few, *call, **settings)
    assert_accurate(ops.gradient_second_moment(*few, *call, **settings), plain, exact)
    others: dict[str, Run] = {}
    for baseline in (baselines.moment_unfold, baselines.moment_loop):
        torch.testing.assert_close(baseline(*(t.double() for t in few), *call, **settings), exact)
        others[baseline.__name__] = lambda f=baseline: f(x, g, *call, **settings)

    def ours() -> torch.Tensor:
        return ops.gradient_second_moment(x, g, *call, **settings)

    torch.testing.assert_close(ours(), others["moment_unfold"](), rtol=1e-3, atol=1e-3)
    return Contest(case.op, str(case), ours, others, flops=case.flops, read=case.read, written=case.written)


@pytest.mark.parametrize("case", MOMENT + MOMENT_GRID, ids=str)
def test_second_moment(contest: Callable[[Contest], None], case: Case) -> None:
    contest(prepare(case))
