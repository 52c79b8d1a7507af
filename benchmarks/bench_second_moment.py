"""Second moments of per-example gradients against plain PyTorch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate

from benchmarks import baselines
from benchmarks.cases import MOMENT, MOMENT_GRID, Case
from benchmarks.contest import Contest, Run, in_turn, relative_error
from eigendamage_ext import ops, reference


def prepare(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32, copies: int = 1) -> Contest:
    """Ours, held to the accuracy policy on two examples, and both baselines, held to the reference there."""
    channels, settings = case.shape[1], case.geometry | {"groups": case.groups}
    weight = torch.zeros(case.outputs or channels, channels // case.groups, case.kernel, case.kernel)
    output = F.conv2d(torch.empty(case.shape, device="meta"), weight.to("meta"), **settings).shape
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    inputs = [
        tuple(
            torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
            for shape in (case.shape, output)
        )
        for _ in range(copies)
    ]
    x, g = inputs[0]
    call, few = (case.kernel,), (x[:2], g[:2])
    exact = reference.gradient_second_moment(*(t.double() for t in few), *call, **settings)
    plain = reference.gradient_second_moment(*few, *call, **settings)
    assert_accurate(ops.gradient_second_moment(*few, *call, **settings), plain, exact)
    others: dict[str, Run] = {}
    for baseline in (baselines.moment_unfold, baselines.moment_loop):
        torch.testing.assert_close(baseline(*(t.double() for t in few), *call, **settings), exact)
        others[baseline.__name__] = in_turn(lambda pair, f=baseline: f(*pair, *call, **settings), inputs)
    ours = in_turn(lambda pair: ops.gradient_second_moment(*pair, *call, **settings), inputs)
    error = relative_error(baselines.moment_unfold(x.double(), g.double(), *call, **settings))
    assert error(ops.gradient_second_moment(x, g, *call, **settings)) < 1e-3
    return Contest(
        case.op,
        str(case),
        ours,
        others,
        flops=case.flops,
        read=case.read * dtype.itemsize / 4,
        written=case.written,
        dtype=dtype,
        error=error,
    )


@pytest.mark.parametrize("case", MOMENT + MOMENT_GRID, ids=str)
def test_second_moment(contest: Callable[[Contest], None], case: Case) -> None:
    contest(prepare(case))
