"""The operators as PyTorch sees them: schemas, compilation, what they refuse and what they say."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from eigendamage_ext import ops, reference

WINDOW = (
    (3, 2),
    (1, 2),
    (1, 0),
    (1, 1),
    (5, 2),
)  # kernel, stride, padding, dilation, positions for a 5×5 image
REGISTERED = torch.ops.eigendamage_ext
ROOT = Path(__file__).resolve().parents[1]
on_each_device = pytest.mark.usefixtures("default_device")


def arguments(name: str) -> tuple[Any, ...]:
    x = torch.randn(2, 4, 5, 5)
    calls: dict[str, tuple[Any, ...]] = {
        "covariance": (x, 1, True, 2, 50, 0.5),
        "covariance_": (x, 1, True, 50, 0.5, 0.5, torch.eye(5)),
        "channel_covariance": (x, *WINDOW, 2, 20, 0.5),
        "channel_covariance_": (x, *WINDOW, 20, 0.5, 0.5, torch.eye(2).repeat(2, 1, 1)),
        "patch_covariance": (x.bfloat16(), *WINDOW, False, 1, 20, 0.5),
        "patch_covariance_": (x.double(), *WINDOW, True, 20, 0.5, 0.5, torch.eye(25).double()),
        "eigh": ([torch.eye(3), torch.ones(2, 4, 4).double(), torch.zeros(0, 0)],),
    }
    return calls[name]


@on_each_device
@pytest.mark.parametrize(
    "name",
    [
        f"{op}{suffix}"
        for op in ("covariance", "channel_covariance", "patch_covariance")
        for suffix in ("", "_")
    ]
    + ["eigh"],
)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(REGISTERED, name).default, arguments(name))


def use_everything(x: Tensor, out: Tensor) -> tuple[Any, ...]:
    channel = ops.channel_covariance(x, 3, padding=1, groups=2)
    patch = ops.patch_covariance(x, (2, 3), padding="same", bias=True, out=out, alpha=0.1, beta=0.9)
    rows = ops.covariance(x * 2, feature_dim=1)
    values, vectors, info = ops.eigh([rows, patch], errors="info")
    return channel, patch, rows, *values, *vectors, info, ops.eigh(channel, errors="info")[0]


@on_each_device
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_whole_graph(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(use_everything, fullgraph=True, backend=backend)
    x, out = torch.randn(2, 4, 6, 5), torch.eye(25)
    expected_out, compiled_out = out.clone(), out.clone()
    expected, found = use_everything(x, expected_out), compiled(x, compiled_out)
    assert found[1] is compiled_out
    assert torch.equal(compiled_out, expected_out)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@on_each_device
def test_one_graph_serves_every_batch_size() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(use_everything, fullgraph=True, backend=counter, dynamic=True)
    for batch, height, width in ((2, 7, 6), (3, 8, 6), (5, 9, 11)):
        x = torch.randn(batch, 4, height, width)
        found = compiled(x, torch.eye(25))
        for a, b in zip(use_everything(x, torch.eye(25)), found, strict=True):
            assert torch.equal(a, b)
    assert counter.frame_count == 1


def test_fake_tensors_give_the_shapes() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 4, 5, 5, dtype=torch.bfloat16)
        assert ops.patch_covariance(x, 3, groups=2, bias=True).shape == (2, 19, 19)
        assert ops.channel_covariance(x.double(), 3).dtype == torch.float64
        assert ops.covariance(x, bias=True).dtype == torch.float32


@on_each_device
def test_out_is_marked_as_changed() -> None:
    x, weight = torch.randn(5, 3), torch.randn(3, 3, requires_grad=True)
    out = torch.eye(3)
    product = (weight * out).sum()
    ops.covariance(x, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@on_each_device
def test_inference_mode_and_parameters() -> None:
    with torch.inference_mode():
        x, out = torch.randn(5, 3), torch.empty(3, 3)
        assert ops.covariance(x, out=out) is out
        torch.testing.assert_close(out, x.T @ x / 5)
    parameter = torch.nn.Parameter(torch.randn(4, 3))
    torch.testing.assert_close(ops.covariance(parameter), reference.covariance(parameter))


@on_each_device
def test_lazily_negated_and_zero_tensors() -> None:
    x = torch.randn(2, 3, 5, 5)
    negated = torch._neg_view(x)
    assert torch.equal(
        ops.covariance(negated, feature_dim=1, bias=True)[3, :3],
        -ops.covariance(x, feature_dim=1, bias=True)[3, :3],
    )
    expected = reference.patch_covariance(-x, 3, bias=True)
    torch.testing.assert_close(ops.patch_covariance(negated, 3, bias=True), expected)
    assert not ops.channel_covariance(torch._efficientzerotensor(2, 3, 5, 5), 3).any()


def test_build_info() -> None:
    info = ops.build_info()
    assert set(info) == {
        *("version", "torch", "torch_compiled_against", "simd", "threads"),
        *("cuda", "cuda_architectures", "cuda_devices"),
    }
    assert info["simd"] in ("amx", "v4", "v3", "v2", "generic") and info["cuda"] in (True, False)
    assert info["torch"].startswith(info["torch_compiled_against"].partition("+")[0])
    assert info["threads"] == torch.get_num_threads()
    assert info["cuda"] == bool(info["cuda_architectures"])
    assert all(re.fullmatch(r"sm_\d+", name) for name in info["cuda_architectures"])
    assert info["cuda_devices"] == (torch.cuda.device_count() if info["cuda"] else 0)


TF32_SWITCHES = {
    "import torch": False,
    "torch.backends.cuda.matmul.allow_tf32 = True": True,
    "torch.set_float32_matmul_precision('high')": True,
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": True,
    "torch.backends.fp32_precision = 'tf32'": True,
    "torch.backends.fp32_precision = 'tf32'; torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
    "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
}


def test_tf32_follows_the_switches_of_torch() -> None:
    """Old and new in any mixture: torch's own question about the old one throws after some."""
    for switch, expected in TF32_SWITCHES.items():
        program = f"import torch; {switch}; from eigendamage_ext import _C; print(_C.may_round_to_tf32())"
        command = [sys.executable, "-W", "ignore", "-c", program]
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.stdout.strip() == str(expected), (switch, found.stderr)


IMAGES = torch.randn(2, 4, 5, 6)
OPS = ("covariance", "channel_covariance", "patch_covariance")


def call(op: str, x: Any = IMAGES, **kwargs: Any) -> Tensor:
    defaults = {} if op == "covariance" else {"kernel_size": 3}
    result: Tensor = getattr(ops, op)(x, **(defaults | kwargs))
    return result


@contextlib.contextmanager
def refuses(error: type[Exception], op: str, message: str) -> Iterator[None]:
    """The error is of exactly this type and says: operator, argument, rule, fact; remedy."""
    with pytest.raises(error, match=f"^{op}: {re.escape(message)}") as caught:
        yield
    assert caught.type is error
    assert re.fullmatch(r"\w+: .* must .*, got .*; .+", str(caught.value))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("op", OPS)
def test_refuses_what_is_no_float_tensor(op: str) -> None:
    with refuses(TypeError, op, "x must be a torch.Tensor, got ndarray; convert it with torch.as_tensor"):
        call(op, IMAGES.numpy())
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        with refuses(TypeError, op, f"x must be float32, float64, bfloat16 or float16, got {dtype}"):
            call(op, IMAGES.to(dtype))
    with refuses(
        TypeError, op, "x must be a dense tensor, got layout torch.sparse_coo; convert it with .to_dense()"
    ):
        call(op, IMAGES.to_sparse())
    quantised = torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.quint8)
    with refuses(TypeError, op, "x must be float32, float64, bfloat16 or float16, got torch.quint8"):
        call(op, quantised)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_refuses_nested_tensors() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])
    with refuses(TypeError, "covariance", "x must be a dense tensor, got a nested tensor"):
        ops.covariance(nested)


@pytest.mark.parametrize("op", OPS)
def test_refuses_devices_without_kernels(op: str) -> None:
    with refuses(NotImplementedError, op, "x must be on a device this build has kernels for (cpu"):
        call(op, IMAGES.to("meta"))
    if not ops.build_info()["cuda"]:
        with (
            FakeTensorMode(),
            refuses(NotImplementedError, op, "x must be on a device this build has kernels for (cpu)"),
        ):
            call(op, torch.empty(2, 4, 5, 6, device="cuda"))


@pytest.mark.parametrize("op", OPS[1:])
def test_refuses_shapes(op: str) -> None:
    got = "x must be 4-D (N, C, H, W), got a 3-D tensor of shape (4, 5, 6); add the batch with x[None]"
    with refuses(ValueError, op, got):
        call(op, IMAGES[0])
    with refuses(ValueError, op, "x must be 4-D (N, C, H, W), got a 2-D tensor of shape (5, 6)"):
        call(op, IMAGES[0, 0])
    with refuses(ValueError, op, "x must have channels and pixels, got shape (2, 4, 0, 6)"):
        call(op, IMAGES[:, :, :0])


@pytest.mark.parametrize("op", OPS[1:])
@pytest.mark.parametrize(
    ("error", "message", "kwargs"),
    [
        (ValueError, "kernel_size must be at least 1, got 0", {"kernel_size": 0}),
        (ValueError, "kernel_size must be an int or a pair, got (3, 3, 3)", {"kernel_size": (3, 3, 3)}),
        (
            TypeError,
            "kernel_size must be an int, got 3.0 (float); convert it with int()",
            {"kernel_size": 3.0},
        ),
        (TypeError, "kernel_size must be an int, got '3' (str)", {"kernel_size": "3"}),
        (TypeError, "stride must be an int, got True (bool)", {"stride": True}),
        (TypeError, "stride must be an int, got 1.5 (float)", {"stride": (1, 1.5)}),
        (ValueError, "stride must be at least 1, got (1, 0)", {"stride": (1, 0)}),
        (ValueError, "dilation must be at least 1, got -1", {"dilation": -1}),
        (TypeError, "dilation must be an int, got None (NoneType)", {"dilation": None}),
        (ValueError, "padding must be at least 0, got (0, -2)", {"padding": (0, -2)}),
        (ValueError, "padding must be an int, a pair, 'same' or 'valid', got 'full'", {"padding": "full"}),
        (TypeError, "padding must be an int, got 0.5 (float)", {"padding": 0.5}),
        (ValueError, "stride must be 1 with padding 'same', got (2, 2)", {"padding": "same", "stride": 2}),
        (
            ValueError,
            "kernel_size must fit into the padded input, got a window of (7, 7) pixels",
            {"kernel_size": 7},
        ),
        (
            ValueError,
            "kernel_size must fit into the padded input, got a window of (5, 7) pixels",
            {"dilation": (2, 3)},
        ),
    ],
)
def test_refuses_geometry(op: str, error: type[Exception], message: str, kwargs: dict[str, Any]) -> None:
    with refuses(error, op, message):
        call(op, **kwargs)


@pytest.mark.parametrize("op", OPS)
def test_refuses_settings(op: str) -> None:
    x = IMAGES.movedim(1, -1) if op == "covariance" else IMAGES
    for groups in (3, 0, -1, 8):
        with refuses(ValueError, op, f"groups must be a positive divisor of the 4 channels, got {groups}"):
            call(op, x, groups=groups)
    with refuses(TypeError, op, "groups must be an int, got True (bool)"):
        call(op, x, groups=True)
    with refuses(ValueError, op, "reduction must be 'mean' or 'sum', got 'none'"):
        call(op, x, reduction="none")
    for name in ("alpha", "beta"):
        with refuses(TypeError, op, f"{name} must be a number, got '1' (str)"):
            call(op, x, **{name: "1"})
    with refuses(ValueError, op, "beta must be 0 where out is not given, got 0.5"):
        call(op, x, beta=0.5)
    if op != "channel_covariance":
        with refuses(TypeError, op, "bias must be True or False, got 1"):
            call(op, x, bias=1)


def test_refuses_features() -> None:
    for dim in (4, -5):
        with refuses(
            ValueError, "covariance", f"feature_dim must be in [-4, 3], got {dim} for x of shape (2, 4, 5, 6)"
        ):
            ops.covariance(IMAGES, feature_dim=dim)
    with refuses(TypeError, "covariance", "feature_dim must be an int, got 1.0 (float)"):
        ops.covariance(IMAGES, feature_dim=1.0)  # type: ignore[arg-type]
    with refuses(ValueError, "covariance", "x must have at least one dimension, got a scalar"):
        ops.covariance(torch.tensor(1.0))
    with refuses(ValueError, "covariance", "x must have features, got shape (3, 0)"):
        ops.covariance(torch.zeros(3, 0))


@pytest.mark.parametrize("op", OPS)
def test_refuses_out(op: str) -> None:
    x = IMAGES.movedim(1, -1) if op == "covariance" else IMAGES
    side = call(op, x).shape[0]
    good = torch.zeros(side, side)
    with refuses(ValueError, op, f"out must have shape ({side}, {side}), got ({side + 1}, {side})"):
        call(op, x, out=torch.zeros(side + 1, side))
    with refuses(ValueError, op, f"out must have shape (2, {call(op, x, groups=2).shape[1]}"):
        call(op, x, groups=2, out=good)
    with refuses(TypeError, op, "out must be torch.float32 for x of torch.float32, got torch.float64"):
        call(op, x, out=good.double())
    with refuses(TypeError, op, "out must be torch.float32 for x of torch.bfloat16, got torch.bfloat16"):
        call(op, x.bfloat16(), out=good.bfloat16())
    with refuses(TypeError, op, "out must be torch.float64 for x of torch.float64, got torch.float32"):
        call(op, x.double(), out=good)
    with refuses(ValueError, op, "out must be on the device of x, cpu, got meta"):
        call(op, x, out=good.to("meta"))
    with refuses(TypeError, op, "out must be a dense torch.Tensor, got ndarray"):
        call(op, x, out=good.numpy())
    with refuses(TypeError, op, "out must be a dense torch.Tensor, got layout torch.sparse_coo"):
        call(op, x, out=good.to_sparse())
    with refuses(ValueError, op, "out must not require grad, got a tensor that does"):
        call(op, x, out=good.clone().requires_grad_())
    with refuses(ValueError, op, "out must not overlap itself"):
        call(op, x, out=torch.zeros(side).expand(side, side))
    with refuses(ValueError, op, "out must not overlap itself"):
        call(op, x, out=torch.zeros(2 * side).as_strided((side, side), (1, 1)))
    memory = torch.randn(x.numel() + side * side)
    inside = memory[: x.numel()].view(x.shape)
    with refuses(ValueError, op, "out must not overlap x, got views of the same memory"):
        call(op, inside, out=memory[side : side + side * side].view(side, side))
    beside = memory[x.numel() :].view(side, side)
    assert call(op, inside, out=beside) is beside
    torch.testing.assert_close(beside, call(op, inside.clone()))


def test_refuses_sizes_beyond_64_bits() -> None:
    one = torch.zeros(1)
    with refuses(ValueError, "patch_covariance", "the result must have fewer than 2^63 bytes"):
        ops.patch_covariance(one.expand(1, 1, 2**20, 2**20), 2**16)
    with refuses(ValueError, "channel_covariance", "x must have fewer than 2^63 terms to sum"):
        ops.channel_covariance(one.expand(2**30, 1, 2**10, 2**10), 2**8, padding=2**9)
