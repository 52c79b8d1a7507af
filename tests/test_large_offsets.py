"""Offsets, strides and products of sizes beyond 2³¹, by geometry: few elements, far apart or far outside."""

import itertools
import mmap
import sys

import pytest
import torch

from eigendamage_ext import ops

FAR = 2**31 + 64
BIG = 2**31 + 2**20

NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on

needs_sparse_memory = pytest.mark.skipif(
    sys.platform != "linux" or sys.maxsize < 2**40, reason="address space for nothing is Linux's"
)
on_each_device = pytest.mark.usefixtures("default_device")


def far_apart(tensor, dim):
    """A tensor of the same values with more than 2³¹ elements from one index of `dim` to the next."""
    strides, step = [0] * tensor.dim(), 1
    for other in reversed(range(tensor.dim())):
        strides[other], step = (FAR, step) if other == dim else (step, step * tensor.shape[other])
    assert tensor.shape[dim] <= 2 and step < FAR
    elements = FAR * (tensor.shape[dim] - 1) + step
    if tensor.is_cuda:
        return tensor.new_empty(elements).as_strided(tensor.shape, strides).copy_(tensor)
    size = elements * tensor.element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=tensor.dtype)
    return memory.as_strided(tensor.shape, strides).copy_(tensor)


def integers(*shape, dtype=torch.float32):
    return torch.randint(-4, 5, shape).to(dtype)


@on_each_device
@needs_sparse_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", range(4))
def test_inputs_far_apart(dim, dtype):
    shape = [3, 5, 4, 6]
    shape[dim] = 2
    x = integers(*shape, dtype=dtype)
    far = far_apart(x, dim)
    assert torch.equal(ops.channel_covariance(far, 3, padding=1), ops.channel_covariance(x, 3, padding=1))
    for stride, padding in itertools.product((1, 2), (0, 1)):
        settings = {"stride": stride, "padding": padding, "bias": True}
        assert torch.equal(ops.patch_covariance(far, 2, **settings), ops.patch_covariance(x, 2, **settings))
    assert torch.equal(ops.covariance(far, feature_dim=1), ops.covariance(x, feature_dim=1))


@on_each_device
@needs_sparse_memory
@pytest.mark.parametrize("dim", range(3))
def test_outputs_far_apart(dim):
    x = integers(2, 4, 5, 5)
    start = torch.eye(2).repeat(2, 1, 1)
    settings = {"groups": 2, "reduction": "sum", "beta": 2.0}
    far = far_apart(start, dim)
    assert ops.channel_covariance(x, 3, out=far, **settings) is far
    assert torch.equal(far, ops.channel_covariance(x, 3, out=start.clone(), **settings))


@on_each_device
@needs_sparse_memory
@pytest.mark.parametrize("dim", range(3))
def test_matrices_far_apart(dim):
    rows = torch.randn(2, 2, 2)
    stack = rows @ rows.mT
    for found, expected in zip(ops.eigh(far_apart(stack, dim)), ops.eigh(stack), strict=True):
        assert torch.equal(found, expected)


def windows(pixels, kernel, stride, padding, dilation):
    """Output t and line of every offset that reads inside: by output, without a walk over all of them."""
    count = (pixels + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    found = {}
    for line, offset in itertools.product(range(pixels), range(kernel)):
        t, rest = divmod(line + padding - dilation * offset, stride)
        if rest == 0 and 0 <= t < count:
            found.setdefault(t, []).append((offset, line))
    return count, found


def patch_sum(x, kernel, stride, padding, dilation):
    """Σ_nt a_nt a_ntᵀ over the windows that read anything, and how many windows there are per image."""
    (high, down), (wide, across) = (windows(size, kernel, stride, padding, dilation) for size in x.shape[2:])
    x = x.cpu()
    total = torch.zeros(x.shape[1] * kernel**2, x.shape[1] * kernel**2, dtype=torch.float64, device="cpu")
    for rows, columns in itertools.product(down.values(), across.values()):
        patch = torch.zeros(len(x), x.shape[1], kernel, kernel, dtype=torch.float64, device="cpu")
        for (i, row), (j, column) in itertools.product(rows, columns):
            patch[:, :, i, j] = x[:, :, row, column]
        total += patch.flatten(1).mT @ patch.flatten(1)
    return total, high * wide


@on_each_device
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        (1, 1, 2**29, 1),  # 2⁶⁰ windows, of which 20 read a pixel
        (3, 1, 2**28, 1),
        (3, 1, BIG, BIG),  # offsets beyond 2³¹ apart
        (3, BIG, BIG, BIG),  # and windows
        (2, BIG - 1, BIG, BIG),
        (3, 2, BIG, BIG),
    ],
)
def test_windows_far_outside(kernel, stride, padding, dilation):
    x = integers(2, 3, 4, 5)
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    total, count = patch_sum(x, kernel, stride, padding, dilation)
    found = ops.patch_covariance(x, kernel, **settings, reduction="sum")
    assert torch.equal(found.cpu().double(), total)
    mean = ops.patch_covariance(x, kernel, **settings).cpu().double()
    torch.testing.assert_close(mean * (len(x) * count), total, rtol=1e-6, atol=0)
    blocks = total.reshape(3, kernel**2, 3, kernel**2)
    expected = blocks.diagonal(dim1=1, dim2=3).sum(-1)
    found = ops.channel_covariance(x, kernel, **settings, reduction="sum")
    assert torch.equal(found.cpu().double(), expected)
