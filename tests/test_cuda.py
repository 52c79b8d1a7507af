"""What a device adds to the operators: streams, graphs, several devices, mixed precision, whole networks.

Their numbers are the business of the other files, which run on each device too.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from accuracy import assert_accurate
from torch import Tensor

import eigendamage_ext as ed
from eigendamage_ext import _C, ops, reference

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (6, 8, 12, 10)

# name: the operator on one tensor ``(N, 8, H, W)``
CALLS: dict[str, Callable[..., Tensor]] = {
    "covariance": lambda x, m=ops, **more: m.covariance(x, feature_dim=1, bias=True, **more),
    "channel_covariance": lambda x, m=ops, **more: m.channel_covariance(x, 3, padding=1, **more),
    "patch_covariance": lambda x, m=ops, **more: m.patch_covariance(x, 3, padding=1, bias=True, **more),
    "patch_covariance, strided": lambda x, m=ops, **more: m.patch_covariance(
        x, 3, stride=2, groups=2, **more
    ),
    "gradient_second_moment": lambda x, m=ops, **more: m.gradient_second_moment(x, x, 3, padding=1, **more),
    "gradient_second_moment, rows": lambda x, m=ops, **more: m.gradient_second_moment(
        x[:, :, 0], x[:, :, 1], **more
    ),
}
on_cuda = pytest.mark.cuda


@pytest.fixture(params=CALLS)
def call(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """``call(x, **settings)`` is one of the operators, ``call(x, reference, **settings)`` its twin."""
    found: Callable[..., Tensor] = CALLS[request.param]
    return found


def test_asking_what_was_built_does_not_initialise_cuda() -> None:
    program = (
        "import torch; from eigendamage_ext import ops; ops.build_info(); print(torch.cuda.is_initialized())"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@on_cuda
def test_this_build_has_code_for_this_gpu() -> None:
    capability = torch.cuda.get_device_capability()
    compiled = [int(name.removeprefix("sm_")) for name in ops.build_info()["cuda_architectures"]]
    assert min(compiled) <= 10 * capability[0] + capability[1]


@on_cuda
def test_the_handle_is_that_of_the_current_stream() -> None:
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        with torch.cuda.stream(stream):
            assert _C.current_stream(torch.cuda.current_device()) == stream.cuda_stream


@on_cuda
def test_work_is_ordered_with_that_of_the_current_stream(call: Callable[..., Tensor]) -> None:
    """An operator on any other stream would read zeros, or be read before it has written."""
    ones = torch.ones(SHAPE)
    expected = call(ones)
    call(ones.cuda())  # what is set up once is set up
    x, found = torch.zeros(SHAPE, device="cuda"), torch.zeros_like(expected, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms
        x.fill_(1)
        out = call(x)
        found.copy_(out)
        x.zero_()
    stream.synchronize()
    torch.testing.assert_close(found.cpu(), expected)
    assert torch.equal(out, found)


@on_cuda
def test_another_device_than_the_current_one(call: Callable[..., Tensor]) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(SHAPE)
    found = call(x.to("cuda:1"))
    assert found.device == torch.device("cuda:1") and torch.cuda.current_device() == 0
    torch.testing.assert_close(found.cpu(), call(x))
    expected = "on the device of x, cuda:1, got cuda:0"
    with pytest.raises(ValueError, match=expected):
        call(x.to("cuda:1"), out=found.to("cuda:0"))


@on_cuda
def test_a_graph_replays_on_new_data(call: Callable[..., Tensor]) -> None:
    x = torch.randn(SHAPE, device="cuda")
    running = torch.zeros_like(call(x))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call(x), call(x, out=running, alpha=0.5, beta=0.5)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fresh = call(x)
        call(x, out=running, alpha=0.5, beta=0.5)
    running.zero_()
    expected = torch.zeros_like(running)
    for _ in range(3):
        x.copy_(torch.randn(SHAPE))
        graph.replay()
        call(x, out=expected, alpha=0.5, beta=0.5)
        assert torch.equal(fresh, call(x)) and torch.equal(running, expected)


@on_cuda
def test_a_graph_replays_small_eigenproblems() -> None:
    x = torch.randn(5, 16, 16, device="cuda")
    x = x @ x.mT
    ops.eigh(x, errors="info")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.eigh(x, errors="info")
    x.mul_(2)
    graph.replay()
    for found, expected in zip(captured, ops.eigh(x, errors="info"), strict=True):
        assert torch.equal(found, expected)


def test_runs_repeat_to_the_last_bit(call: Callable[..., Tensor], device: str) -> None:
    x = torch.randn(64, 8, 33, 30, device=device)
    expected = call(x)
    for _ in range(3):
        assert torch.equal(call(x), expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(call(x), expected)
        assert torch.equal(call(x, out=torch.empty_like(expected)), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@on_cuda
def test_mixed_devices_are_refused() -> None:
    x, gpu = torch.randn(SHAPE), torch.randn(SHAPE, device="cuda")
    where = str(gpu.device)
    for name, call in CALLS.items():
        out = call(x)
        op = name.partition(",")[0]
        with pytest.raises(ValueError, match=f"^{op}: out must be on the device of x, {where}, got cpu; "):
            call(gpu, out=out)
        with pytest.raises(ValueError, match=f"^{op}: out must be on the device of x, cpu, got {where}; "):
            call(x, out=out.cuda())
    for first, second in ((x, gpu), (gpu, x)):
        message = f"g must be on the device of x, {first.device}, got {second.device}; "
        with pytest.raises(ValueError, match=message):
            ops.gradient_second_moment(first, second, 3, padding=1)
        with pytest.raises(ValueError, match=message):
            ops.gradient_second_moment(first[:, 0, 0], second[:, 0, 0])
        with pytest.raises(ValueError, match=r"matrices\[1\] must be on the device of the first"):
            ops.eigh([first[0, 0, :5, :5], second[0, 0, :5, :5]])


def test_autocast_changes_nothing(call: Callable[..., Tensor], device: str) -> None:
    x = torch.randn(SHAPE, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        expected = call(x.to(dtype))
        with torch.autocast(device, torch.bfloat16):
            assert torch.equal(call(x.to(dtype)), expected)


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@on_cuda
def test_products_round_to_tf32_only_where_torch_may(tf32: None) -> None:
    x = torch.randn(64, 64, 20, 20, device="cuda")
    for name, call in CALLS.items():
        exact = call(x.double(), reference)
        error = torch.linalg.norm(call(x).double() - exact) / torch.linalg.norm(exact)
        assert error <= 2e-3, name
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    for call in CALLS.values():
        assert_accurate(call(x), call(x, reference), call(x.double(), reference))


def test_inputs_larger_than_a_grid_has_blocks(device: str) -> None:
    """More rows than the 65535 blocks that two of a grid's dimensions may have."""
    x = torch.randn(70_000, 3, device=device)
    rows = x[:, :, None, None]
    assert_accurate(ops.covariance(x), reference.covariance(x), reference.covariance(x.double()))
    exact = reference.covariance(x.double())
    torch.testing.assert_close(ops.channel_covariance(rows, 1).double(), exact, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ops.patch_covariance(rows, 1).double(), exact, rtol=1e-5, atol=1e-7)
    moment = ops.gradient_second_moment(x, x)
    expected = x.double().square().T @ x.double().square() / len(x)
    torch.testing.assert_close(moment.double(), expected, rtol=1e-5, atol=1e-6)


@on_cuda
@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("fisher", ["empirical", "mc", "exact"])
def test_factors_are_those_of_the_cpu(kind: str, fisher: str) -> None:
    model, x, y = nets.resnet().eval(), nets.images(12, 8, 8), nets.labels("cross_entropy", 12)
    loader = [(x[:8], y[:8]), (x[8:], y[8:])]
    expected = ed.estimate_factors(model, loader, kind=kind, fisher=fisher, progress=False)
    found = ed.estimate_factors(model.cuda(), loader, kind=kind, fisher=fisher, progress=False)
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        assert layer.A.is_cuda and layer.G.is_cuda
        torch.testing.assert_close(layer.A.cpu(), expected[name].A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.G.cpu(), expected[name].G, rtol=1e-9, atol=1e-12)


@on_cuda
@pytest.mark.parametrize("scores", ["kfac", "ekfac"])
def test_a_network_pruned_on_a_gpu_is_that_of_the_cpu(scores: str) -> None:
    x, y = nets.images(24, 8, 8), nets.labels("cross_entropy", 24)
    loader = [(x, y)]
    settings: dict[str, Any] = {
        "target": {"flops": 0.6},
        "fisher": "exact",
        "scores": scores,
        "progress": False,
    }
    model = nets.resnet().eval()
    expected = ed.prune(model, loader, **settings)
    found = ed.prune(model.cuda(), loader, **settings)
    assert all(parameter.is_cuda for parameter in found.model.parameters())
    for name, row in found.plan.items():
        other = expected.plan[name]
        assert (row.form, row.input_rank, row.output_rank) == (
            other.form,
            other.input_rank,
            other.output_rank,
        )
    torch.testing.assert_close(found.model(x.cuda()).cpu(), expected.model(x), rtol=1e-6, atol=1e-8)


def test_factors_under_autocast_are_those_without(device: str) -> None:
    model, x = nets.resnet().float().to(device).eval(), nets.images(8, 8, 8).float()
    loader = [(x, nets.labels("cross_entropy", 8))]
    expected = ed.estimate_factors(model, loader, progress=False)
    with torch.autocast(device, torch.bfloat16):
        found = ed.estimate_factors(model, loader, progress=False)
    for name, layer in found.items():
        assert torch.equal(layer.A, expected[name].A) and torch.equal(layer.G, expected[name].G)


def test_a_half_network_gives_float32_factors(device: str) -> None:
    model = nets.resnet().to(device, torch.bfloat16).eval()
    loader = [(nets.images(8, 8, 8).bfloat16(), nets.labels("cross_entropy", 8))]
    exact = ed.estimate_factors(model.float(), loader=[(loader[0][0].float(), loader[0][1])], progress=False)
    found = ed.estimate_factors(model.bfloat16(), loader, progress=False)
    for name, layer in found.items():
        assert layer.A.dtype == layer.G.dtype == torch.float32
        error = torch.linalg.norm(layer.A - exact[name].A) / torch.linalg.norm(exact[name].A)
        assert error < 0.05, name
