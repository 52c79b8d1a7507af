"""What one would write without this package: the same matrices in plain PyTorch, as fast as we know how.

Every function takes ``x (N, C, H, W)`` and integers and returns the mean: over N·T·K for the channel factor
``(C, C)``, over N·T for the patch factor ``(D, D)``, or ``(g, D, D)`` for g > 1 groups, D = C/g·K, in the
order (channel, row, column).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOMENT_CHUNK = 8  # examples whose gradients are held at a time


def channel_im2col(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The original implementation's way: all patches as rows of channels, then ``aᵀa``."""
    patches = _windows(F.pad(x, [padding] * 4), kernel, stride, dilation)
    rows = patches.permute(0, 2, 3, 4, 5, 1).reshape(-1, x.shape[1])
    return rows.t() @ (rows / len(rows))


def channel_weighted(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Pixels weighted by how many windows cover them, as the weight gradient of a 1×1 convolution."""
    channels = x.shape[1]
    weighted = _cover(x, kernel, stride, padding, dilation) * x
    total = torch.nn.grad.conv2d_weight(x, (channels, channels, 1, 1), weighted)
    return total[:, :, 0, 0] / _terms(x, kernel, stride, padding, dilation)


def channel_weighted_last(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """As `channel_weighted`, brought to channels_last first: the format that oneDNN prefers."""
    x = x.contiguous(memory_format=torch.channels_last)
    return channel_weighted(x, kernel, stride, padding, dilation)


def channel_gram(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Pixels weighted likewise, as one matrix product over all of them."""
    weighted = _cover(x, kernel, stride, padding, dilation) * x
    total = x.movedim(1, 0).flatten(1) @ weighted.movedim(1, 0).flatten(1).t()
    return total / _terms(x, kernel, stride, padding, dilation)


def patch_unfold(x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1) -> Tensor:
    """`F.unfold`, then one matrix product for each group."""
    columns = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    return _grams(columns.transpose(0, 1).reshape(groups, columns.shape[1] // groups, -1))


def patch_gemm(x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1) -> Tensor:
    """As `patch_unfold`, with the patches gathered by strides in the order the product wants."""
    patches = _windows(F.pad(x, [padding] * 4).transpose(0, 1), kernel, stride, dilation)
    columns = patches.permute(0, 4, 5, 1, 2, 3)
    return _grams(columns.reshape(groups, x.shape[1] // groups * kernel**2, -1))


def patch_rows(x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1) -> Tensor:
    """As `patch_gemm` with patches as rows, channels last in them: whole pixels are copied where x has them.

    The product is brought to the order of the others afterwards.
    """
    channels, offsets = x.shape[1] // groups, kernel**2
    patches = _windows(F.pad(x, [padding] * 4), kernel, stride, dilation).unflatten(1, (groups, channels))
    rows = patches.permute(1, 0, 3, 4, 5, 6, 2).reshape(groups, -1, offsets * channels)
    blocks = (rows.mT @ rows / rows.shape[1]).reshape(groups, offsets, channels, offsets, channels)
    size = channels * offsets
    return blocks.permute(0, 2, 1, 4, 3).reshape(groups, size, size).squeeze(0)


def patch_lags(x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1) -> Tensor:
    """Blocks that have their lag in common differ in border lines alone: all lags at once, less those lines.

    The lags come from one weight gradient of a convolution. For stride 1.
    """
    examples, channels, height, width = x.shape
    channels //= groups
    reach = dilation * (kernel - 1)
    wide = F.pad(x, [reach, reach, 0, reach])
    weight = (groups * channels, channels, kernel, 2 * kernel - 1)
    every_lag = torch.nn.grad.conv2d_weight(wide, weight, x, dilation=dilation, groups=groups)
    every_lag = every_lag.unflatten(0, (groups, channels))
    rows, columns = range(height), range(width)
    high, long = _positions(x, kernel, stride, padding, dilation)

    def strip(of_rows: list[int], of_columns: list[int], down: int, right: int) -> Tensor:
        """Σ_q x[q] x[q + lag]ᵀ over the pixels q of some rows and columns."""
        first = x[:, :, of_rows][:, :, :, of_columns]
        second = wide[:, :, [r + down for r in of_rows]][:, :, :, [c + right + reach for c in of_columns]]
        first, second = (part.transpose(0, 1).reshape(groups, channels, -1) for part in (first, second))
        return first @ second.mT

    strips: dict[tuple[tuple[int, ...], ...], Tensor] = {}
    blocks = x.new_empty(kernel, kernel, kernel, kernel, groups, channels, channels)
    offsets = [(i, j) for i in range(kernel) for j in range(kernel)]
    for number, (i, j) in enumerate(offsets):
        kept_rows = [r for r in rows if 0 <= r - dilation * i + padding < high]
        lost_rows = [r for r in rows if r not in kept_rows]
        lost_columns = [c for c in columns if not 0 <= c - dilation * j + padding < long]
        for k, m in offsets[number:]:
            down, right = dilation * (k - i), dilation * (m - j)
            block = every_lag[..., k - i, m - j + kernel - 1].clone()
            for part in ((lost_rows, list(columns)), (kept_rows, lost_columns)):
                if part[0] and part[1]:
                    key = (*map(tuple, part), (down, right))
                    if key not in strips:
                        strips[key] = strip(*part, down, right)
                    block -= strips[key]
            blocks[i, j, k, m] = block
            blocks[k, m, i, j] = block.mT
    size = channels * kernel**2
    total = blocks.permute(4, 5, 0, 1, 6, 2, 3).reshape(groups, size, size)
    return total.squeeze(0) / (examples * high * long)


def patch_lags_last(
    x: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1
) -> Tensor:
    """As `patch_lags`, brought to channels_last first."""
    x = x.contiguous(memory_format=torch.channels_last)
    return patch_lags(x, kernel, stride, padding, dilation, groups)


def moment_unfold(
    x: Tensor, g: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1
) -> Tensor:
    """Gradients of a few examples at a time, each from its patches by one of a batch of products.

    As all below of ``x (N, C, H, W)`` and ``g (N, O, Ho, Wo)``: ``(O, C/g, kh, kw)``, the mean over N.
    """
    inputs, outputs = x.shape[1] // groups, g.shape[1] // groups
    total = x.new_zeros(groups, outputs, inputs * kernel**2)
    for few, gradients in zip(x.split(MOMENT_CHUNK), g.split(MOMENT_CHUNK), strict=True):
        columns = F.unfold(few, kernel, dilation=dilation, padding=padding, stride=stride)
        rows = gradients.flatten(2).unflatten(1, (groups, outputs))
        total += (rows @ columns.unflatten(1, (groups, -1)).mT).square_().sum(0)
    return total.reshape(g.shape[1], inputs, kernel, kernel) / len(x)


def moment_loop(
    x: Tensor, g: Tensor, kernel: int, stride: int, padding: int, dilation: int, groups: int = 1
) -> Tensor:
    """The weight gradient of one example after another."""
    shape = (g.shape[1], x.shape[1] // groups, kernel, kernel)
    total = x.new_zeros(shape)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for one, gradient in zip(x.split(1), g.split(1), strict=True):
        found = torch.nn.grad.conv2d_weight(one, shape, gradient, **settings)
        total.addcmul_(found, found)
    return total / len(x)


def _grams(columns: Tensor) -> Tensor:
    """``(g, D, R)`` to the mean ``(g, D, D)`` over R; without g where it is 1."""
    if len(columns) == 1:
        columns = columns[0]
    return columns @ columns.mT / columns.shape[-1]


def _windows(x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """View ``(A, B, Ho, Wo, kh, kw)`` of ``x (A, B, H, W)``."""
    reach = dilation * (kernel - 1) + 1
    return x.unfold(2, reach, stride).unfold(3, reach, stride)[..., ::dilation, ::dilation]


def _cover(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """``(1, 1, H, W)``: how many windows cover each pixel."""
    ones = x.new_ones(1, 1, *_positions(x, kernel, stride, padding, dilation))
    window = x.new_ones(1, 1, kernel, kernel)
    cover = F.conv_transpose2d(ones, window, stride=stride, dilation=dilation)
    bottom, right = (n + padding - m for n, m in zip(x.shape[2:], cover.shape[2:], strict=True))
    return F.pad(cover, [-padding, right, -padding, bottom])


def _terms(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """N·T·K."""
    height, width = _positions(x, kernel, stride, padding, dilation)
    return len(x) * height * width * kernel**2


def _positions(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    height, width = ((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in x.shape[2:])
    return height, width
