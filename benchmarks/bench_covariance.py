"""Covariances against plain PyTorch."""

from collections.abc import Callable

import pytest
import torch
from accuracy import assert_accurate

from benchmarks import baselines
from benchmarks.cases import CHANNEL, GRID, PATCH, Case
from benchmarks.contest import Contest, Run, in_turn, relative_error
from eigendamage_ext import ops, reference


def baselines_of(case: Case) -> list[Callable[..., torch.Tensor]]:
    """Those that can compute the case."""
    if case.op == "channel_covariance":
        found = [baselines.channel_im2col, baselines.channel_weighted, baselines.channel_gram]
        return found + [baselines.channel_weighted_last] * (not case.channels_last)
    found = [baselines.patch_gemm, baselines.patch_unfold, baselines.patch_rows]
    if case.stride > 1:
        return found
    return [*found, baselines.patch_lags] + [baselines.patch_lags_last] * (not case.channels_last)


def prepare(case: Case, device: str = "cpu", dtype: torch.dtype = torch.float32, copies: int = 1) -> Contest:
    """Ours, held to the accuracy policy, and baselines that compute the same, held to the reference."""
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    inputs = [
        torch.randn(case.shape, device=device).to(dtype).contiguous(memory_format=memory_format)
        for _ in range(copies)
    ]
    x = inputs[0]
    kernel, geometry = case.kernel, case.geometry
    op, twin = getattr(ops, case.op), getattr(reference, case.op)
    settings = geometry | {"groups": case.groups}
    ours = in_turn(lambda x: op(x, kernel, **settings), inputs)
    exact = twin(x.double(), kernel, **settings)
    assert_accurate(op(x, kernel, **settings), twin(x, kernel, **settings), exact)
    others: dict[str, Run] = {}
    few = x[:2].double()
    expected = twin(few, kernel, **settings)
    for baseline in baselines_of(case):
        plain = geometry if case.op == "channel_covariance" else settings
        torch.testing.assert_close(baseline(few, kernel, **plain), expected)
        others[baseline.__name__] = in_turn(lambda x, f=baseline, plain=plain: f(x, kernel, **plain), inputs)
    return Contest(
        case.op,
        str(case),
        ours,
        others,
        flops=case.flops,
        read=case.read * dtype.itemsize / 4,
        written=case.written,
        dtype=dtype,
        error=relative_error(exact),
    )


CASES = CHANNEL + PATCH + [case for case in GRID if case not in PATCH]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_covariance(contest: Callable[[Contest], None], case: Case) -> None:
    contest(prepare(case))
