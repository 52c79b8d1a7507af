"""The second moment of per-example gradients: its numbers against float64, what PyTorch and users see."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_accurate
from cases import CONVOLUTIONS, DTYPES, LAYOUTS
from hypothesis import strategies as st
from test_covariance import geometry, integers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from eigendamage_ext import ops, reference

OP = "gradient_second_moment"
on_each_device = pytest.mark.usefixtures("default_device")


def output_like(x: Tensor, kernel: Any, outputs: int = 1, **kwargs: Any) -> Tensor:
    """Noise in the shape of a convolution's output, with `outputs` channels in every group."""
    channels = outputs * kwargs.get("groups", 1)
    geometry = {name: value for name, value in kwargs.items() if name != "groups"}
    if kwargs.get("padding") == "same":
        return torch.randn(len(x), channels, *x.shape[2:]).to(x.dtype)
    weight = torch.zeros(channels, 1, *(kernel if isinstance(kernel, tuple | list) else (kernel, kernel)))
    return torch.randn_like(F.conv2d(torch.zeros(len(x), 1, *x.shape[2:]), weight, **geometry)).to(x.dtype)


def check(x: Tensor, g: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Holds the result to the accuracy policy and the dtype promised."""
    ours = ops.gradient_second_moment(x, g, *args, **kwargs)
    assert ours.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    plain = reference.gradient_second_moment(x, g, *args, **kwargs)
    assert_accurate(ours, plain, reference.gradient_second_moment(x.double(), g.double(), *args, **kwargs))
    return ours


def check_exactly(x: Tensor, g: Tensor, *args: Any, **kwargs: Any) -> None:
    """For small integers every sum is exact in every dtype and in any order: equal to the last bit."""
    ours = ops.gradient_second_moment(x, g, *args, reduction="sum", **kwargs)
    expected = reference.gradient_second_moment(x.double(), g.double(), *args, reduction="sum", **kwargs)
    assert expected.max() < 2**24
    assert torch.equal(ours.double(), expected)


@on_each_device
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_geometry(name: str) -> None:
    shape, kernel, kwargs = CONVOLUTIONS[name]
    for outputs, dtype, memory_format in itertools.product(
        (1, 9), (torch.float32, torch.float64), (torch.contiguous_format, torch.channels_last)
    ):
        x = torch.randn(shape).to(dtype, memory_format=memory_format)
        check(x, output_like(x, kernel, outputs, **kwargs), kernel, **kwargs)


@on_each_device
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    x = integers(4, 12, 9, 10).to(dtype)
    for kwargs in ({"padding": 1}, {"padding": (0, 2), "stride": 2, "groups": 3}):
        g = integers(*output_like(x, 3, 6, **kwargs).shape).to(dtype)
        for other in ("contiguous", "channels_last", "sliced", "batch last"):
            check_exactly(LAYOUTS[layout](x), LAYOUTS[other](g), 3, **kwargs)
            check_exactly(LAYOUTS[other](x), LAYOUTS[layout](g), 3, **kwargs)
    rows = LAYOUTS[layout](x)
    check_exactly(rows, LAYOUTS[layout](integers(4, 12, 9, 17).to(dtype)))


@on_each_device
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("middle", [(), (1,), (7,), (300,), (3, 4), (2, 3, 2), (2, 1, 3, 2)], ids=str)
def test_rows(middle: tuple[int, ...], dtype: torch.dtype) -> None:
    check_exactly(integers(1, *middle, 1).to(dtype), integers(1, *middle, 1).to(dtype))
    for examples, inputs, outputs in ((3, 17, 33), (70, 40, 10), (130, 100, 90)):
        x = torch.randn(examples, *middle, inputs).to(dtype)
        check(x, torch.randn(examples, *middle, outputs).to(dtype))


@on_each_device
def test_rows_of_any_strides() -> None:
    x = integers(2, 3, 4, 2, 3, 4).permute(4, 0, 5, 3, 1, 2)[:, :, 1:3, :, :2, ::2]
    g = integers(5, 3, 2, 2, 2, 2).movedim(0, -1)
    check_exactly(x, g)
    check_exactly(integers(3, 1, 5).expand(3, 4, 5), integers(4, 2).expand(3, 4, 2))
    check_exactly(integers(1, 5).expand(3, 5), integers(2, 3).t())


@on_each_device
@pytest.mark.parametrize(
    ("x_shape", "g_shape", "kernel", "kwargs"),
    [
        ((2, 3, 40, 70), (2, 5, 40, 70), 3, {"padding": 1}),
        ((2, 20, 40, 70), (2, 40, 40, 70), 3, {"padding": 1}),
        ((300, 4, 5, 5), (300, 6, 5, 5), 3, {"padding": 1}),
        ((1000, 3, 3), (1000, 3, 2), None, {}),
        ((3000, 20), (3000, 10), None, {}),
        ((700, 2, 3, 3), (700, 4, 1, 1), 3, {}),
        ((150, 70, 1, 1), (150, 70, 1, 1), 3, {"padding": 1}),
    ],
    ids=str,
)
def test_many_positions_and_many_examples_stay_accurate(
    x_shape: tuple[int, ...], g_shape: tuple[int, ...], kernel: Any, kwargs: dict[str, Any]
) -> None:
    """A running sum in one register would drift where all terms are positive."""
    for noise in (torch.randn, torch.rand):
        check(noise(x_shape), noise(g_shape), kernel, **kwargs)


@on_each_device
def test_far_sides_of_the_padding_add_nothing() -> None:
    x = integers(2, 3, 2, 3)
    check_exactly(x, integers(2, 4, 8, 9), 3, padding=4)
    none = ops.gradient_second_moment(integers(2, 3, 1, 1), integers(2, 4, 1, 1), 3, padding=1)
    centre = none[:, :, 1, 1].clone()
    none[:, :, 1, 1] = 0
    assert centre.any() and not none.any()


def test_no_per_example_gradient_is_held() -> None:
    """64 of them would be 38 MB, the largest thing here; allocations are what the CPU profiler sees."""
    x, g = torch.randn(64, 128, 4, 4), torch.randn(64, 128, 4, 4)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        ops.gradient_second_moment(x, g.to(memory_format=torch.channels_last), 3, padding=1)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < 3 * 4 * x.numel()


@on_each_device
@pytest.mark.parametrize("scale", [1e-12, 1e-5, 1e8])
def test_scales(scale: float) -> None:
    x, g = torch.randn(3, 6, 7, 7) * scale, torch.randn(3, 5, 7, 7)
    check(x, g, 3, padding=1)
    check(g, x, 3, padding=1)
    check(x[:, 0, 0], g[:, 0, 0])


@on_each_device
def test_non_finite_input_is_seen_where_it_is_read() -> None:
    for value, of_g in itertools.product((torch.nan, torch.inf), (False, True)):
        x, g = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 4, 4)
        (g if of_g else x)[1, 2, 0, 0] = value
        result = ops.gradient_second_moment(x, g, 3).isfinite()
        expected = torch.ones(3, 4, 3, 3, dtype=torch.bool)
        if of_g:
            expected[2] = False
        else:
            expected[:, 2, 0, 0] = False
        assert torch.equal(result, expected)


@on_each_device
@hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],  # a device serves all examples
)
@hypothesis.given(
    case=st.composite(geometry)(),
    outputs=st.sampled_from([1, 2, 3, 9, 17, 40]),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_any_geometry(
    case: tuple[Tensor, tuple[int, int], dict[str, Any]], outputs: int, layout: str
) -> None:
    x, kernel, kwargs = case
    x = x.sign()
    g = integers(*output_like(x, kernel, outputs, **kwargs).shape).sign().to(x.dtype)
    check_exactly(x, LAYOUTS[layout](g) if len(g) else g, kernel, **kwargs)


CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = {
    "rows": ((6, 17), (6, 10), (), {}),
    "many rows": ((6, 170), (6, 75), (), {}),
    "sequence": ((6, 5, 7), (6, 5, 9), (), {}),
    "convolution": ((6, 8, 8, 7), (6, 10, 8, 7), (3,), {"padding": 1}),
    "few channels": ((6, 2, 8, 7), (6, 10, 6, 5), (3,), {}),
    "groups": ((6, 8, 8, 8), (6, 12, 3, 3), (3,), {"stride": 2, "groups": 2}),
    "depthwise": ((6, 8, 8, 8), (6, 8, 8, 8), (3,), {"padding": "same", "groups": 8}),
}


class Call:
    """``call(x, g)`` is the operator in one of its uses, ``call(x, g, reference)`` its twin."""

    def __init__(self, name: str) -> None:
        self.x_shape, self.g_shape, self.args, self.kwargs = CALLS[name]

    def __call__(self, x: Tensor, g: Tensor, module: Any = ops, **more: Any) -> Tensor:
        result: Tensor = module.gradient_second_moment(x, g, *self.args, **self.kwargs, **more)
        return result

    def inputs(self, examples: int = 6) -> tuple[Tensor, Tensor]:
        return torch.randn(examples, *self.x_shape[1:]), torch.randn(examples, *self.g_shape[1:])


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Call:
    return Call(request.param)


@on_each_device
def test_out_is_updated(call: Call) -> None:
    x, g = call.inputs()
    base = call(*call.inputs())
    for alpha, beta, reduction in itertools.product((1.0, 0.05, -2.0), (0.0, 0.95, 1.0), ("mean", "sum")):
        out = base.clone()
        settings = {"alpha": alpha, "beta": beta, "reduction": reduction}
        assert call(x, g, out=out, **settings) is out
        exact = call(x.double(), g.double(), reference, out=base.double(), **settings)
        assert_accurate(out, call(x, g, reference, out=base.clone(), **settings), exact)


@on_each_device
def test_beta_zero_never_reads_out(call: Call) -> None:
    x, g = call.inputs()
    fresh = call(x, g)
    assert torch.equal(call(x, g, out=torch.full_like(fresh, torch.nan)), fresh)


@on_each_device
def test_out_may_be_a_view(call: Call) -> None:
    x, g = call.inputs()
    fresh = call(x, g)
    frame = torch.full([size + 3 for size in fresh.shape], 7.0)
    inner = frame[tuple(slice(1, size + 1) for size in fresh.shape)]
    reversed_ = torch.zeros(fresh.shape[::-1]).permute(*range(fresh.dim())[::-1])
    scattered = torch.zeros([2 * size for size in fresh.shape])[(slice(None, None, 2),) * fresh.dim()]
    for out in (inner, reversed_, scattered):
        assert call(x, g, out=out) is out
        assert torch.equal(out, fresh)
        call(x, g, out=out, alpha=1.0, beta=1.0)
        torch.testing.assert_close(out, 2 * fresh)
    inner.fill_(7.0)
    assert (frame == 7).all()


@on_each_device
def test_batches_add_up(call: Call) -> None:
    x, g = call.inputs()
    out = call(x[:2], g[:2], reduction="sum")
    call(x[2:], g[2:], reduction="sum", out=out, beta=1.0)
    exact = call(x.double(), g.double(), reference, reduction="sum")
    assert_accurate(out, call(x, g, reference, reduction="sum"), exact)


@on_each_device
def test_empty_batch(call: Call) -> None:
    x, g = call.inputs(0)
    for reduction in ("mean", "sum"):
        assert not call(x, g, reduction=reduction).any()
    full = call(*call.inputs())
    torch.testing.assert_close(call(x, g, out=full.clone(), alpha=0.5, beta=0.5), 0.5 * full, rtol=0, atol=0)


@on_each_device
def test_input_is_detached_and_unchanged(call: Call) -> None:
    x, g = (part.requires_grad_() for part in call.inputs())
    before = x.detach().clone(), g.detach().clone()
    assert not call(x, g).requires_grad
    assert torch.equal(x, before[0]) and torch.equal(g, before[1]) and x.grad is None


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("examples", [3, 200])
def test_threads_change_nothing(name: str, examples: int) -> None:
    call = Call(name)
    x, g = call.inputs(examples)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = call(x, g)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert torch.equal(call(x, g), alone)
    finally:
        torch.set_num_threads(threads)


INSTRUCTION_SETS = """
import json, sys, torch
sys.path[:0] = sys.argv[1:3]
from eigendamage_ext import ops
from test_second_moment import check, output_like
torch.set_num_threads(1)
for shape, kernel, kwargs in json.loads(sys.argv[3]):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
            check(x, output_like(x, kernel, 9, **kwargs), kernel, **kwargs)
        check(torch.randn(70, 33).to(dtype), torch.randn(70, 5).to(dtype))
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


@pytest.mark.parametrize("level", ["generic", "v2", "v3", "v4", "amx"])
def test_instruction_set(level: str) -> None:
    tests = Path(__file__).parent
    cases = json.dumps([CONVOLUTIONS[name] for name in FOR_EACH_SET])
    result = subprocess.run(
        [sys.executable, "-c", INSTRUCTION_SETS, str(tests.parent), str(tests), cases],
        env=os.environ | {"EIGENDAMAGE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )
    if "must name an instruction set of this CPU" in result.stderr:
        pytest.skip(f"this CPU has no {level}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


REGISTERED = torch.ops.eigendamage_ext
SETTINGS = ((3, 2), (1, 2), (1, 0), (1, 1))  # kernel, stride, padding, dilation: 5×2 positions of a 5×5 image


@on_each_device
def test_opcheck() -> None:
    x, g = torch.randn(3, 4, 5, 5), torch.randn(3, 6, 5, 2)
    torch.library.opcheck(REGISTERED.gradient_second_moment.default, (x, g, *SETTINGS, 2, 3, 0.5))
    out = torch.ones(6, 2, 3, 2)
    torch.library.opcheck(REGISTERED.gradient_second_moment_.default, (x, g, *SETTINGS, 3, 0.5, 0.5, out))
    halves = (x.half(), g.half())
    torch.library.opcheck(REGISTERED.gradient_second_moment.default, (*halves, *SETTINGS, 2, 1, 1.0))


def use_both(x: Tensor, g: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    weight = ops.gradient_second_moment(x, g, 3, padding=1, groups=2)
    rows = ops.gradient_second_moment(x.flatten(2), g.flatten(2), out=out, alpha=0.1, beta=0.9)
    return weight, rows, ops.gradient_second_moment(x * 2, g)


@on_each_device
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_whole_graph(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(use_both, fullgraph=True, backend=backend)
    x, g, out = torch.randn(2, 4, 6, 5), torch.randn(2, 8, 6, 5), torch.rand(30, 30)
    g = g[:, :4]
    expected_out, compiled_out = out.clone(), out.clone()
    expected, found = use_both(x, g, expected_out), compiled(x, g, compiled_out)
    assert found[1] is compiled_out
    assert torch.equal(compiled_out, expected_out)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@on_each_device
def test_one_graph_serves_every_batch_size() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(use_both, fullgraph=True, backend=counter, dynamic=True)
    for batch, height, width in ((2, 7, 6), (3, 8, 6), (5, 9, 11)):
        x, g = torch.randn(batch, 4, height, width), torch.randn(batch, 4, height, width)
        side = height * width
        for a, b in zip(use_both(x, g, torch.eye(side)), compiled(x, g, torch.eye(side)), strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1


def test_fake_tensors_give_the_shapes() -> None:
    with FakeTensorMode():
        x, g = torch.empty(2, 4, 5, 5, dtype=torch.bfloat16), torch.empty(2, 6, 3, 3, dtype=torch.bfloat16)
        weight = ops.gradient_second_moment(x, g, 3, groups=2)
        assert weight.shape == (6, 2, 3, 3) and weight.dtype == torch.float32
        assert ops.gradient_second_moment(x.double(), x.double()).shape == (5, 5)


def test_out_is_marked_as_changed() -> None:
    x, weight, out = torch.randn(5, 3), torch.randn(3, 3, requires_grad=True), torch.eye(3)
    product = (weight * out).sum()
    ops.gradient_second_moment(x, x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_mode() -> None:
    with torch.inference_mode():
        x, out = torch.randn(5, 3), torch.empty(3, 3)
        assert ops.gradient_second_moment(x, x, out=out) is out
    torch.testing.assert_close(out, x.square().T @ x.square() / 5)


@contextlib.contextmanager
def refuses(error: type[Exception], message: str) -> Iterator[None]:
    with pytest.raises(error, match=f"^{OP}: {re.escape(message)}") as caught:
        yield
    assert caught.type is error
    assert re.fullmatch(r"\w+: .* must .*, got .*; .+", str(caught.value))


X, G = torch.randn(2, 4, 5, 6), torch.randn(2, 6, 3, 4)


@pytest.mark.parametrize(
    ("error", "message", "x", "g", "kwargs"),
    [
        (TypeError, "x must be a torch.Tensor, got ndarray", X.numpy(), G, {}),
        (TypeError, "g must be a torch.Tensor, got ndarray", X, G.numpy(), {}),
        (TypeError, "x must be float32, float64, bfloat16 or float16, got torch.int64", X.long(), G, {}),
        (TypeError, "g must be float32, float64, bfloat16 or float16, got torch.bool", X, G.bool(), {}),
        (ValueError, "g must be of the dtype of x, torch.float32, got torch.bfloat16", X, G.bfloat16(), {}),
        (ValueError, "g must be on the device of x, cpu, got meta", X, G.to("meta"), {}),
        (NotImplementedError, "x must be on a device this build has kernels for", X.to("meta"), G, {}),
        (ValueError, "x must be 4-D (N, C, H, W), got a 3-D tensor", X[0], G, {}),
        (ValueError, "g must have shape (2, C_out, 3, 4), got (2, 6, 3)", X, G[..., 0], {}),
        (ValueError, "g must have shape (2, C_out, 3, 4), got (1, 6, 3, 4)", X, G[:1], {}),
        (ValueError, "g must have shape (2, C_out, 5, 6), got (2, 6, 3, 4)", X, G, {"padding": 1}),
        (ValueError, "g must have a positive multiple of groups = 4 channels, got 6", X, G, {"groups": 4}),
        (ValueError, "g must have a positive multiple of groups = 1 channels, got 0", X, G[:, :0], {}),
        (ValueError, "groups must be a positive divisor of the 4 channels, got 3", X, G, {"groups": 3}),
        (ValueError, "stride must be at least 1, got 0", X, G, {"stride": 0}),
        (ValueError, "kernel_size must be an int or a pair, got (3, 3, 3)", X, G, {"kernel_size": (3, 3, 3)}),
        (ValueError, "reduction must be 'mean' or 'sum', got 'none'", X, G, {"reduction": "none"}),
        (TypeError, "alpha must be a number, got '1' (str)", X, G, {"alpha": "1"}),
        (ValueError, "beta must be 0 where out is not given, got 0.5", X, G, {"beta": 0.5}),
        (ValueError, "out must have shape (6, 4, 3, 3), got (6, 4, 9)", X, G, {"out": torch.zeros(6, 4, 9)}),
        (
            ValueError,
            "out must not overlap itself",
            X,
            G,
            {"out": torch.zeros(6, 1, 1, 1).expand(6, 4, 3, 3)},
        ),
        (
            TypeError,
            "out must be torch.float32 for x of torch.float32",
            X,
            G,
            {"out": torch.zeros(6, 4, 3, 3).double()},
        ),
    ],
    ids=str,
)
def test_refuses(error: type[Exception], message: str, x: Any, g: Any, kwargs: dict[str, Any]) -> None:
    with refuses(error, message):
        ops.gradient_second_moment(x, g, **({"kernel_size": 3} | kwargs))


@pytest.mark.parametrize(
    ("message", "x", "g", "kwargs"),
    [
        ("x must be (N, …, C_in) without kernel_size, got a 1-D tensor", X[0, 0, 0], G, {}),
        ("x must have channels and positions, got shape (2, 0)", X[:, 0, 0, :0], G, {}),
        ("g must have shape (2, 4, 5, C_out), got (2, 6, 3, 4)", X, G, {}),
        ("g must have a positive multiple of groups = 1 channels, got 0", X, X[..., :0], {}),
        ("stride must be 1 without kernel_size, got 2", X, X, {"stride": 2}),
        ("dilation must be 1 without kernel_size, got (2, 1)", X, X, {"dilation": (2, 1)}),
        ("groups must be 1 without kernel_size, got 2", X, X, {"groups": 2}),
        ("padding must be 0 without kernel_size, got 'same'", X, X, {"padding": "same"}),
        ("out must have shape (6, 6), got (6, 6, 1, 1)", X, X, {"out": torch.zeros(6, 6, 1, 1)}),
    ],
    ids=str,
)
def test_refuses_rows(message: str, x: Tensor, g: Tensor, kwargs: dict[str, Any]) -> None:
    with refuses(ValueError, message):
        ops.gradient_second_moment(x, g, **kwargs)


def test_refuses_out_that_overlaps_an_input() -> None:
    memory = torch.randn(100)
    x, g, out = memory[:20].view(4, 5), memory[20:32].view(4, 3), memory[32:47].view(3, 5)
    for name, overlapping in (("x", memory[10:25]), ("g", memory[31:46])):
        with refuses(ValueError, f"out must not overlap {name}, got views of the same memory"):
            ops.gradient_second_moment(x, g, out=overlapping.view(3, 5))
    assert ops.gradient_second_moment(x, g, out=out) is out
