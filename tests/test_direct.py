"""Ordinary calls skip the dispatcher: they compute the same, and stand back where someone watches."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from eigendamage_ext import _C, ops

X = torch.randn(3, 4, 7, 6)
CALLS: dict[str, Callable[..., Tensor]] = {
    "covariance": lambda x=X, **settings: ops.covariance(x, feature_dim=1, **settings),
    "channel_covariance": lambda x=X, **settings: ops.channel_covariance(x, 3, padding=1, **settings),
    "patch_covariance": lambda x=X, **settings: ops.patch_covariance(x, 3, padding=1, **settings),
    "gradient_second_moment": lambda x=X, **settings: ops.gradient_second_moment(
        x, x, 3, padding=1, **settings
    ),
}


def by_dispatcher(call: Callable[[], Tensor]) -> Tensor:
    with Seen():
        return call()


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class SeenFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "name", lambda: "")() if hasattr(func, "_schema") else str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_OPS", None)


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_ordinary_calls_skip_the_dispatcher(
    op: str, dtype: torch.dtype, device: str, no_dispatcher: None
) -> None:
    x = X.to(device, dtype)
    found = CALLS[op](x)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    out = torch.empty_like(found)
    assert CALLS[op](x, out=out, alpha=1) is out and torch.equal(out, found)
    with torch.no_grad(), torch.autocast(device):
        assert torch.equal(CALLS[op](torch.nn.Parameter(x)), found)


@pytest.mark.parametrize("op", CALLS)
def test_modes_and_profilers_see_the_operator(op: str, device: str) -> None:
    call = functools.partial(CALLS[op], X.to(device))
    expected = call()
    with Seen() as seen:
        assert torch.equal(call(), expected)
    assert f"eigendamage_ext::{op}" in seen.names
    with SeenFunctions() as functions:
        assert torch.equal(call(), expected)
    assert any(op in name for name in functions.names)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        assert torch.equal(call(), expected)
    assert f"eigendamage_ext::{op}" in {event.name for event in profile.events()}


@pytest.mark.parametrize("op", CALLS)
def test_subclasses_are_left_to_the_dispatcher(op: str) -> None:
    class Named(Tensor):
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_C, op, lambda *_: None)
        expected = CALLS[op]()
    assert torch.equal(CALLS[op](X.as_subclass(Named)).as_subclass(Tensor), expected)


@pytest.mark.parametrize("kernel", [1, 3, (2, 3)])
@pytest.mark.parametrize("stride", [1, (2, 3)])
@pytest.mark.parametrize("padding", [0, (1, 2)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_geometry_is_the_same_both_ways(
    kernel: Any, stride: Any, padding: Any, dilation: Any, device: str
) -> None:
    x = X.to(device)
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    for groups, reduction, bias in itertools.product((1, 2), ("mean", "sum"), (False, True)):
        common = settings | {"groups": groups, "reduction": reduction}
        calls: list[Callable[[], Tensor]] = [
            lambda c=common: ops.channel_covariance(x, kernel, **c),
            lambda c=common, b=bias: ops.patch_covariance(x, kernel, bias=b, **c),
        ]
        for call in calls:
            assert torch.equal(call(), by_dispatcher(call))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[0],
        lambda x: x[0, :, 0],
        lambda x: x[0, :, 0, 0],
        lambda x: x.permute(3, 1, 0, 2),
        lambda x: x[:, :, ::2, ::2],
        lambda x: x[:1].expand(5, -1, -1, -1),
        lambda x: x[:0],
        lambda x: x.reshape(3, 2, 2, 7, 2, 3)[:, :, :, ::2, :, ::2],  # four strides between rows
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_rows_are_the_same_both_ways_and_right(view: Callable[[Tensor], Tensor], bias: bool) -> None:
    x = view(X)
    for dim in range(-x.dim(), x.dim()):
        if x.shape[dim] == 0:
            continue
        found = ops.covariance(x, feature_dim=dim, bias=bias, reduction="sum")
        assert torch.equal(
            found,
            by_dispatcher(
                lambda x=x, dim=dim: ops.covariance(x, feature_dim=dim, bias=bias, reduction="sum")
            ),
        )
        rows = x.movedim(dim, -1).flatten(0, -2) if x.dim() > 1 else x[None]
        if bias:
            rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        torch.testing.assert_close(found, rows.T @ rows)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[0, 0],
        lambda x: x[0],
        lambda x: x[:, :, 0].transpose(0, 2),
        lambda x: x[:, :1, :, 0],
        lambda x: x[0, :, ::2].mT,
        lambda x: x[:0, 0],
        lambda x: x[0, :1].expand(5, -1, -1),
    ],
)
def test_linear_layers_are_the_same_both_ways(
    view: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, g = view(X), view(torch.randn_like(X))[..., :2]
    calls: list[Callable[[], Tensor]] = [
        lambda: ops.gradient_second_moment(x, g),
        lambda: ops.gradient_second_moment(x, g, reduction="sum", alpha=0.5),
        lambda: ops.gradient_second_moment(x, g, out=torch.ones(x.shape[-1], 2).T, beta=0.5),
    ]
    expected = [by_dispatcher(call) for call in calls]
    monkeypatch.setattr(ops, "_OPS", None)
    for call, other in zip(calls, expected, strict=True):
        assert torch.equal(call(), other)


def test_odd_linear_layers_are_left_to_python() -> None:
    x, g = X[0], X[0, :, :, :2]
    arguments = (x, g, None, 1, 0, 1, 1, "mean", None, 1.0, 0.0)
    assert _C.gradient_second_moment(*arguments) is not None
    odd: list[tuple[int, Any]] = [
        (0, None),
        (0, x.double()),
        (0, x[0]),
        (0, x[:3]),
        (0, x[:, :, :0]),
        (0, X),
        (0, x.to("meta")),
        (1, None),
        (1, g[:, 1:]),
        (1, g[0]),
        (1, g[:, :, :0]),
        (3, 2),
        (3, True),
        (4, "same"),
        (5, (1, 1)),
        (6, 2),
        (7, "none"),
        (8, torch.zeros(2, 5)),
        (10, 0.5),
    ]
    for place, value in odd:
        changed = list(arguments)
        changed[place] = value
        assert _C.gradient_second_moment(*changed) is None, (place, value)


def test_what_is_out_of_the_ordinary_is_left_to_python() -> None:
    arguments = (X, 3, 1, 1, 1, 1, False, "mean", None, 1.0, 0.0)
    assert _C.patch_covariance(*arguments) is not None
    odd: list[tuple[int, Any]] = [
        (0, None),
        (0, X.long()),
        (0, X[0]),
        (0, X.to("meta")),
        (0, X.to_sparse()),
        (0, torch._neg_view(X)),
        (0, X[:, :, :0]),
        (1, 0),
        (1, 10),
        (1, True),
        (1, (3, 3.0)),
        (1, (3, 3, 3)),
        (2, 0),
        (2, 2**70),
        (3, -1),
        (3, "same"),
        (4, None),
        (5, 3),
        (6, 1),
        (7, "none"),
        (8, torch.zeros(36, 35)),
        (8, torch.zeros(36, 36).double()),
        (8, torch.zeros(36, 36, requires_grad=True)),
        (9, "1"),
        (10, 0.5),
    ]
    for place, value in odd:
        changed = list(arguments)
        changed[place] = value
        assert _C.patch_covariance(*changed) is None, (place, value)


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (2, 3, 4, 4), (0, 3, 3), (2, 0, 0)])
def test_stacks_are_decomposed_the_same_both_ways(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrices = torch.randn(shape).mT
    with Seen() as seen:
        expected = ops.eigh(matrices)
    assert "eigendamage_ext::eigh" in seen.names
    monkeypatch.setattr(ops, "_OPS", None)
    for stack in (matrices, torch.nn.Parameter(matrices)):
        for part, other in zip(ops.eigh(stack), expected, strict=True):
            assert torch.equal(part, other) and part.stride() == other.stride() and not part.requires_grad


def test_matrices_that_are_out_of_the_ordinary_are_left_to_python() -> None:
    assert _C.eigh_directly(torch.eye(3), 2, False) is not None
    assert _C.eigh_directly([torch.eye(3)], 3, False) is not None
    spoilt = torch.eye(3).repeat(2, 1, 1)
    spoilt[1, 2, 0] = torch.nan
    odd = [
        None,
        [],
        [torch.eye(4)],
        [torch.eye(2), torch.eye(2).double()],
        torch.eye(3).half(),
        torch.eye(3).long(),
        torch.zeros(3),
        torch.zeros(2, 3),
    ]
    for value in [*odd, torch.eye(3, device="meta"), torch._neg_view(torch.eye(3)), spoilt]:
        assert _C.eigh_directly(value, 3, False) is None
