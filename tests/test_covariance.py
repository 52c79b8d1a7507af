"""The three covariances against float64, over geometries, dtypes, layouts, threads and instruction sets."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from accuracy import assert_accurate
from cases import CONVOLUTIONS, DTYPES, LAYOUTS
from hypothesis import strategies as st
from torch import Tensor

from eigendamage_ext import ops, reference

on_each_device = pytest.mark.usefixtures("default_device")


def check(op: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Holds the result to the accuracy policy, the dtype promised and exact symmetry."""
    ours = getattr(ops, op)(x, *args, **kwargs)
    assert ours.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert torch.equal(ours, ours.mT)
    plain = getattr(reference, op)(x, *args, **kwargs)
    assert_accurate(ours, plain, getattr(reference, op)(x.double(), *args, **kwargs))
    return ours


def check_exactly(op: str, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """For small integers every sum is exact in every dtype and in any order: equal to the last bit."""
    ours = getattr(ops, op)(x, *args, reduction="sum", **kwargs)
    assert torch.equal(ours.double(), getattr(reference, op)(x.double(), *args, reduction="sum", **kwargs))


def integers(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape).float()


@on_each_device
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_geometry(name: str) -> None:
    shape, kernel, kwargs = CONVOLUTIONS[name]
    x = torch.randn(shape)
    for dtype in (torch.float32, torch.float64):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            cast = x.to(dtype, memory_format=memory_format)
            check("channel_covariance", cast, kernel, **kwargs)
            check("patch_covariance", cast, kernel, **kwargs)
            check("patch_covariance", cast, kernel, bias=True, **kwargs)


@on_each_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 12, 9, 10).to(dtype))
    for kwargs in ({"padding": 1}, {"padding": (0, 2), "stride": 2, "groups": 3}):
        check("channel_covariance", x, 3, **kwargs)
        check("patch_covariance", x, (3, 2), **kwargs)
        check("patch_covariance", x, (2, 3), bias=True, **kwargs)
    for feature_dim in range(4):
        check("covariance", x, feature_dim=feature_dim)
    check("covariance", x, feature_dim=1, groups=4, bias=True)

    x = LAYOUTS[layout](integers(4, 12, 9, 10).to(dtype))
    check_exactly("channel_covariance", x, (2, 3), padding=1, groups=2)
    check_exactly("patch_covariance", x, 3, padding=1, stride=2, bias=True)
    check_exactly("covariance", x, feature_dim=2)


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(7, 1), (1, 5), (600, 33), (64, 130), (3, 4, 17), (2, 3, 2, 3, 2, 6), (40,)], ids=str
)
def test_covariance_of_any_rank(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    for feature_dim in {0, len(shape) // 2, -1}:
        check("covariance", x, feature_dim=feature_dim)
        check("covariance", x, feature_dim=feature_dim, bias=True, reduction="sum")


@on_each_device
def test_covariance_of_rows_that_need_many_strides() -> None:
    x = integers(2, 3, 4, 2, 3, 4).permute(4, 0, 5, 3, 1, 2)[:, :, 1:3, :, :2, ::2]
    for feature_dim in range(6):
        check_exactly("covariance", x, feature_dim=feature_dim, bias=True)
    check_exactly("covariance", integers(3, 5).expand(4, 3, 5), feature_dim=1)
    check_exactly("covariance", integers(5).expand(4, 5))
    check_exactly("covariance", integers(1, 1).expand(4, 5), bias=True)


def test_rows_are_not_copied() -> None:
    """One that does needs memory for a second x; allocations are what the CPU profiler sees."""
    x = torch.randn(8, 16, 32, 32)
    views = [x, x.to(memory_format=torch.channels_last), x[:, :, ::2, 1:9], x.movedim(0, 3)]
    for view in views:
        with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
            ops.covariance(view, feature_dim=1)
        allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
        assert allocated < view.numel()


@on_each_device
def test_many_positions_stay_accurate() -> None:
    """A running sum in one register would drift here: all terms are positive."""
    x = torch.rand(2, 4, 160, 150)
    check("channel_covariance", x, 3, padding=1)
    check("patch_covariance", x, 2, bias=True)
    check("covariance", torch.rand(50_000, 5), bias=True)


@on_each_device
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15])
def test_scales(scale: float) -> None:
    x = torch.randn(3, 6, 7, 7) * scale
    check("channel_covariance", x, 3, padding=1)
    if scale > 1e-20:
        check("patch_covariance", x, 3, padding=1)
        check("covariance", x, feature_dim=1)


@on_each_device
def test_non_finite_input_is_seen() -> None:
    for value in (torch.nan, torch.inf):
        x = torch.randn(2, 4, 6, 6)
        x[1, 2, 3, 3] = value
        for result in (
            ops.channel_covariance(x, 3, padding=1),
            ops.patch_covariance(x, 3, padding=1)[18:27, 18:27],
            ops.covariance(x, feature_dim=1),
        ):
            assert not result.diagonal().isfinite().all()
        spared = ops.channel_covariance(x, 1, stride=2)  # no window covers it
        assert spared.isfinite().all()


def geometry(draw: st.DrawFn) -> tuple[Tensor, tuple[int, int], dict[str, Any]]:
    """Any convolution whose window fits."""
    kernel, dilation = (draw(st.tuples(st.integers(1, top), st.integers(1, top))) for top in (7, 3))
    stride: tuple[int, int] = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding: Any = draw(
        st.one_of(st.tuples(st.integers(0, 6), st.integers(0, 6)), st.sampled_from(["same", "valid"]))
    )
    if padding == "same":
        stride = (1, 1)
    sides = []
    for axis in range(2):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        free = span - 1 if padding == "same" else 0 if padding == "valid" else 2 * padding[axis]
        least = max(1, span - free)
        sides.append(draw(st.integers(least, least + 9)))
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.sampled_from([1, 2, 3, 5, 17]))
    shape = (draw(st.integers(0, 3)), channels, *sides)
    x = integers(*shape).to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    if shape[0]:
        x = LAYOUTS[layout](x)
    return x, kernel, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@on_each_device
@hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],  # a device serves all examples
)
@hypothesis.given(case=st.composite(geometry)(), bias=st.booleans())
def test_any_geometry(case: tuple[Tensor, tuple[int, int], dict[str, Any]], bias: bool) -> None:
    x, kernel, kwargs = case
    check_exactly("channel_covariance", x, kernel, **kwargs)
    check_exactly("patch_covariance", x, kernel, bias=bias, **kwargs)


CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "covariance": ("covariance", (), {"feature_dim": 1}),
    "covariance with bias": ("covariance", (), {"feature_dim": 1, "bias": True}),
    "channel": ("channel_covariance", (3,), {"padding": 1}),
    "channel, groups": ("channel_covariance", (3,), {"padding": 1, "groups": 2}),
    "patch": ("patch_covariance", (3,), {"padding": 1}),
    "patch, strided, groups, bias": ("patch_covariance", (3,), {"stride": 2, "groups": 2, "bias": True}),
}


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Any:
    """``call(x, **more)`` is one of the three in one of its uses, ``call(x, oracle, **more)`` its twin."""
    op, args, kwargs = CALLS[request.param]
    return lambda x, module=ops, **more: getattr(module, op)(x, *args, **kwargs, **more)


SPECTRAL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "5×5": ((16, 64, 12, 12), {"kernel_size": 5, "padding": 2}),
    "3×3, groups, bias": ((24, 80, 15, 17), {"kernel_size": 3, "padding": 1, "groups": 2, "bias": True}),
    "one axis": ((16, 48, 9, 31), {"kernel_size": (1, 7), "padding": (0, 3), "bias": True}),
    "dilated, not padded": ((24, 64, 20, 18), {"kernel_size": 3, "dilation": 2}),
}


@on_each_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("content", ["normal", "activations", "smooth"])
def test_large_enough_to_be_summed_by_spectra(name: str, content: str, layout: str) -> None:
    shape, geometry = SPECTRAL[name]
    x = torch.randn(shape)
    if content == "activations":
        x = (x + 2).relu()  # all of a sum has one sign
    if content == "smooth":
        x = torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2)  # a few frequencies hold all
    check("patch_covariance", LAYOUTS[layout](x), **geometry)


@on_each_device
def test_out_is_updated(call: Any) -> None:
    x = torch.randn(3, 6, 8, 8)
    base = call(torch.randn(3, 6, 8, 8))
    for alpha, beta, reduction in itertools.product((1.0, 0.05, -2.0), (0.0, 0.95, 1.0), ("mean", "sum")):
        out = base.clone()
        settings = {"alpha": alpha, "beta": beta, "reduction": reduction}
        assert call(x, out=out, **settings) is out
        assert torch.equal(out, out.mT)
        exact = call(x.double(), reference, out=base.double(), **settings)
        assert_accurate(out, call(x, reference, out=base.clone(), **settings), exact)


@on_each_device
def test_beta_zero_never_reads_out(call: Any) -> None:
    x = torch.randn(3, 6, 8, 8)
    fresh = call(x)
    assert torch.equal(call(x, out=torch.full_like(fresh, torch.nan)), fresh)


@on_each_device
def test_out_may_be_a_view(call: Any) -> None:
    x = torch.randn(3, 6, 8, 8)
    fresh = call(x)
    side = fresh.shape[-1]
    batch = fresh.shape[:-2]
    frame = torch.full((*batch, side + 3, side + 5), 7.0)
    rows = frame[..., 1 : side + 1, 2 : side + 2]
    columns = torch.zeros_like(fresh).mT
    scattered = torch.zeros(*batch, 2 * side, 3 * side)[..., ::2, ::3]
    for out in (rows, columns, scattered):
        assert call(x, out=out) is out
        assert torch.equal(out, fresh)
        call(x, out=out, alpha=1.0, beta=1.0)
        torch.testing.assert_close(out, 2 * fresh)
    rows.fill_(7.0)
    assert (frame == 7).all()


@on_each_device
def test_batches_add_up(call: Any) -> None:
    x = torch.randn(5, 6, 8, 8)
    out = call(x[:2], reduction="sum")
    call(x[2:], reduction="sum", out=out, beta=1.0)
    assert_accurate(out, call(x, reference, reduction="sum"), call(x.double(), reference, reduction="sum"))


@on_each_device
def test_empty_batch(call: Any) -> None:
    x = torch.randn(0, 6, 8, 8)
    for reduction in ("mean", "sum"):
        assert not call(x, reduction=reduction).any()
    full = call(torch.randn(3, 6, 8, 8))
    out = full.clone()
    torch.testing.assert_close(call(x, out=out, alpha=0.5, beta=0.5), 0.5 * full, rtol=0, atol=0)


@on_each_device
def test_input_is_detached_and_unchanged(call: Any) -> None:
    x = torch.randn(3, 6, 8, 8, requires_grad=True)
    before = x.detach().clone()
    result = call(x)
    assert not result.requires_grad
    assert torch.equal(x, before) and x.grad is None


def test_threads_change_nothing(call: Any) -> None:
    x = torch.randn(9, 24, 20, 21)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call(x)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(call(x), alone)
    finally:
        torch.set_num_threads(threads)


INSTRUCTION_SETS = """
import json, sys, torch
sys.path[:0] = sys.argv[1:3]
from eigendamage_ext import ops
from test_covariance import check
torch.set_num_threads(1)
for shape, kernel, kwargs in json.loads(sys.argv[3]):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
            check("channel_covariance", x, kernel, **kwargs)
            check("patch_covariance", x, kernel, bias=True, **kwargs)
            check("covariance", x, feature_dim=1, bias=True)
print(ops.build_info()["simd"])
"""
FOR_EACH_SET = (
    "3x3 pad 1",
    "3x3 pad 1, many channels",
    "3x3 groups 3, stride 2",
    "3x3 depthwise",
    "5x5",
    "3x3 dilation 2",
)


def run_with_instruction_set(level: str) -> subprocess.CompletedProcess[str]:
    tests = Path(__file__).parent
    cases = json.dumps([CONVOLUTIONS[name] for name in FOR_EACH_SET])
    return subprocess.run(
        [sys.executable, "-c", INSTRUCTION_SETS, str(tests.parent), str(tests), cases],
        env=os.environ | {"EIGENDAMAGE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("level", ["generic", "v2", "v3", "v4", "amx"])
def test_instruction_set(level: str) -> None:
    result = run_with_instruction_set(level)
    if "must name an instruction set of this CPU" in result.stderr:
        pytest.skip(f"this CPU has no {level}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


def test_unknown_instruction_set_is_refused() -> None:
    result = run_with_instruction_set("v9")
    assert result.returncode != 0
    assert (
        "EIGENDAMAGE_SIMD must name an instruction set of this CPU" in result.stderr
        and "got v9" in result.stderr
    )
