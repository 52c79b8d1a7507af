"""The plain PyTorch twins against loops over the definitions."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from eigendamage_ext import reference

GEOMETRIES: list[tuple[int, int, dict[str, Any]]] = [
    # kernel height, kernel width, keyword arguments
    (1, 1, {}),
    (3, 3, {"padding": 1}),
    (2, 3, {"stride": (2, 1), "padding": (1, 2)}),
    (3, 2, {"dilation": (1, 2), "padding": (0, 1), "groups": 2}),
    (3, 3, {"dilation": 2, "padding": 2, "stride": 2, "groups": 4}),
    (2, 2, {"padding": "same"}),
    (4, 2, {"padding": "same", "dilation": (1, 3)}),
    (3, 3, {"padding": "valid"}),
]


def patches_by_loops(x: Tensor, kh: int, kw: int, kwargs: dict[str, Any]) -> Tensor:
    """``(N, T, C, K)``, by the output size and the pixels that `torch.nn.Conv2d` documents."""
    examples, channels, height, width = x.shape
    pair = {key: v if isinstance(v, tuple) else (v, v) for key, v in kwargs.items()}
    (sh, sw), (dh, dw) = pair.get("stride", (1, 1)), pair.get("dilation", (1, 1))
    if kwargs.get("padding") == "same":
        rows, columns = height, width
        top, left = dh * (kh - 1) // 2, dw * (kw - 1) // 2
    else:
        top, left = (0, 0) if kwargs.get("padding") == "valid" else pair.get("padding", (0, 0))
        rows = (height + 2 * top - dh * (kh - 1) - 1) // sh + 1
        columns = (width + 2 * left - dw * (kw - 1) - 1) // sw + 1
    patches = torch.zeros(examples, rows * columns, channels, kh * kw, dtype=x.dtype)
    for t, (r, c) in enumerate(itertools.product(range(rows), range(columns))):
        for k, (i, j) in enumerate(itertools.product(range(kh), range(kw))):
            h, w = sh * r + dh * i - top, sw * c + dw * j - left
            if 0 <= h < height and 0 <= w < width:
                patches[:, t, :, k] = x[:, :, h, w]
    return patches


def sum_of_outer_products(rows: Tensor, groups: int, bias: bool = False) -> Tensor:
    """``(R, F)`` to ``(F, F)`` or ``(g, F/g, F/g)``, one row at a time."""
    blocks = []
    for block in rows.chunk(groups, dim=1):
        total = 0
        for row in block:
            padded = torch.cat([row, row.new_ones(int(bias))])
            total = total + torch.outer(padded, padded)
        blocks.append(total)
    return torch.stack(blocks) if groups > 1 else blocks[0]


@pytest.mark.parametrize(("kh", "kw", "kwargs"), GEOMETRIES)
def test_patch_and_channel_covariance(kh: int, kw: int, kwargs: dict[str, Any]) -> None:
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    groups = kwargs.get("groups", 1)
    patches = patches_by_loops(x, kh, kw, kwargs)
    count = patches.shape[0] * patches.shape[1]

    for bias in (False, True):
        expected = sum_of_outer_products(patches.flatten(0, 1).flatten(1), groups, bias)
        ours = reference.patch_covariance(x, (kh, kw), bias=bias, reduction="sum", **kwargs)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(
            reference.patch_covariance(x, (kh, kw), bias=bias, **kwargs), expected / count
        )
    expected = sum_of_outer_products(patches.movedim(2, 3).flatten(0, 2), groups)
    torch.testing.assert_close(reference.channel_covariance(x, (kh, kw), reduction="sum", **kwargs), expected)
    ours = reference.channel_covariance(x, (kh, kw), **kwargs)
    torch.testing.assert_close(ours, expected / (count * kh * kw))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("kh", "kw", "kwargs"), GEOMETRIES)
def test_gradient_second_moment_of_a_convolution(kh: int, kw: int, kwargs: dict[str, Any]) -> None:
    """Against autograd: the gradient of one example at a time."""
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    weight = torch.zeros(8, 4 // kwargs.get("groups", 1), kh, kw, dtype=torch.float64, requires_grad=True)
    g = torch.randn_like(torch.nn.functional.conv2d(x, weight, **kwargs))
    expected = torch.zeros_like(weight)
    for example, gradient in zip(x, g, strict=True):
        output = torch.nn.functional.conv2d(example[None], weight, **kwargs)
        expected += torch.autograd.grad(output, weight, gradient[None])[0] ** 2
    ours = reference.gradient_second_moment(x, g, (kh, kw), reduction="sum", **kwargs)
    torch.testing.assert_close(ours, expected.detach())
    mean = reference.gradient_second_moment(x, g, (kh, kw), **kwargs)
    torch.testing.assert_close(mean, expected.detach() / 3)


@pytest.mark.parametrize("middle", [(), (5,), (2, 3), (2, 1, 3)])
def test_gradient_second_moment_of_rows(middle: tuple[int, ...]) -> None:
    x = torch.randn(3, *middle, 4, dtype=torch.float64)
    g = torch.randn(3, *middle, 2, dtype=torch.float64)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for rows, gradients in zip(x.reshape(3, -1, 4), g.reshape(3, -1, 2), strict=True):
        expected += sum(torch.outer(b, a) for a, b in zip(rows, gradients, strict=True)) ** 2
    torch.testing.assert_close(reference.gradient_second_moment(x, g, reduction="sum"), expected)
    torch.testing.assert_close(reference.gradient_second_moment(x, g), expected / 3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("feature_dim", [0, 1, -1])
def test_covariance(feature_dim: int, groups: int) -> None:
    x = torch.randn(4, 6, 2, dtype=torch.float64)
    rows = x.movedim(feature_dim, -1).reshape(-1, x.shape[feature_dim])
    for bias in (False, True):
        expected = sum_of_outer_products(rows, groups, bias)
        settings: dict[str, Any] = {"feature_dim": feature_dim, "groups": groups, "bias": bias}
        torch.testing.assert_close(reference.covariance(x, reduction="sum", **settings), expected)
        torch.testing.assert_close(reference.covariance(x, **settings), expected / len(rows))


def test_unfold_has_the_order_of_torch() -> None:
    x = torch.randn(2, 3, 5, 6)
    ours = reference.unfold(x, (2, 3), padding=1, stride=2)
    expected = torch.nn.functional.unfold(x, (2, 3), padding=1, stride=2)
    assert torch.equal(ours.flatten(1, 2), expected)


def test_update_and_halves() -> None:
    x = torch.randn(5, 3)
    base = torch.eye(3)
    out = base.clone()
    assert reference.covariance(x, out=out, alpha=0.25, beta=0.5) is out
    torch.testing.assert_close(out, 0.5 * base + 0.25 * x.T @ x / 5)
    assert reference.covariance(x, out=out.fill_(torch.nan)) is out
    torch.testing.assert_close(out, x.T @ x / 5)
    assert reference.covariance(x.bfloat16()).dtype == torch.float32


def test_empty_batch_is_zero() -> None:
    x = torch.randn(0, 4, 5, 5)
    for result in (
        reference.covariance(x, feature_dim=1, bias=True),
        reference.channel_covariance(x, 3),
        reference.patch_covariance(x, 3, bias=True, groups=2),
        reference.gradient_second_moment(x, torch.randn(0, 6, 3, 3), 3, groups=2),
        reference.gradient_second_moment(x, torch.randn(0, 4, 5, 6)),
    ):
        assert result.numel() and not result.any()
