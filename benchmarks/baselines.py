"""What one would write without this package: the same matrices in plain PyTorch, as fast as we know how.

Every function takes ``x (N, C, H, W)`` and integers and returns the mean: over N·T·K for the channel factor
``(C, C)``, over N·T for the patch factor ``(D, D)``, D = C·K, in the order (channel, row, column).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_im2col(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The original implementation's way: all patches as rows of channels, then ``aᵀa``."""
    patches = _windows(F.pad(x, [padding] * 4), kernel, stride, dilation)
    rows = patches.permute(0, 2, 3, 4, 5, 1).reshape(-1, x.shape[1])
    return rows.t() @ (rows / len(rows))


def channel_weighted(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Pixels weighted by how many windows cover them, as the weight gradient of a 1×1 convolution."""
    channels = x.shape[1]
    ones = x.new_ones(1, 1, *_positions(x, kernel, stride, padding, dilation))
    window = x.new_ones(1, 1, kernel, kernel)
    cover = F.conv_transpose2d(ones, window, stride=stride, dilation=dilation)
    bottom, right = (n + padding - m for n, m in zip(x.shape[2:], cover.shape[2:], strict=True))
    cover = F.pad(cover, [-padding, right, -padding, bottom])
    total = torch.nn.grad.conv2d_weight(x, (channels, channels, 1, 1), cover * x)
    return total[:, :, 0, 0] / (len(x) * ones.numel() * kernel**2)


def patch_unfold(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """`F.unfold`, then one matrix product."""
    columns = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    columns = columns.transpose(0, 1).reshape(columns.shape[1], -1)
    return columns @ columns.t() / columns.shape[1]


def patch_gemm(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """As `patch_unfold`, with the patches gathered by strides in the order the product wants."""
    patches = _windows(F.pad(x, [padding] * 4).transpose(0, 1), kernel, stride, dilation)
    columns = patches.permute(0, 4, 5, 1, 2, 3).reshape(x.shape[1] * kernel**2, -1)
    return columns @ columns.t() / columns.shape[1]


def patch_lags(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """Blocks that have their lag in common differ in border lines alone: all lags at once, less those lines.

    The lags come from one weight gradient of a convolution. For stride and dilation 1.
    """
    examples, channels, height, width = x.shape
    reach = kernel - 1
    wide = F.pad(x, [reach, reach, 0, reach])
    every_lag = torch.nn.grad.conv2d_weight(wide, (channels, channels, kernel, 2 * kernel - 1), x)
    rows, columns = range(height), range(width)
    high, long = _positions(x, kernel, stride, padding, dilation)

    def strip(of_rows: list[int], of_columns: list[int], down: int, right: int) -> Tensor:
        """Σ_q x[q] x[q + lag]ᵀ over the pixels q of some rows and columns."""
        first = x[:, :, of_rows][:, :, :, of_columns]
        second = wide[:, :, [r + down for r in of_rows]][:, :, :, [c + right + reach for c in of_columns]]
        return first.transpose(0, 1).flatten(1) @ second.transpose(0, 1).flatten(1).t()

    strips: dict[tuple[tuple[int, ...], ...], Tensor] = {}
    blocks = x.new_empty(kernel, kernel, kernel, kernel, channels, channels)
    offsets = [(i, j) for i in range(kernel) for j in range(kernel)]
    for number, (i, j) in enumerate(offsets):
        kept_rows = [r for r in rows if 0 <= r - i + padding < high]
        lost_rows = [r for r in rows if r not in kept_rows]
        lost_columns = [c for c in columns if not 0 <= c - j + padding < long]
        for k, m in offsets[number:]:
            down, right = k - i, m - j
            block = every_lag[:, :, down, right + reach].clone()
            for part in ((lost_rows, list(columns)), (kept_rows, lost_columns)):
                if part[0] and part[1]:
                    key = (*map(tuple, part), (down, right))
                    if key not in strips:
                        strips[key] = strip(*part, down, right)
                    block -= strips[key]
            blocks[i, j, k, m] = block
            blocks[k, m, i, j] = block.t()
    size = channels * kernel**2
    return blocks.permute(4, 0, 1, 5, 2, 3).reshape(size, size) / (examples * high * long)


def _windows(x: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """View ``(A, B, Ho, Wo, kh, kw)`` of ``x (A, B, H, W)``."""
    reach = dilation * (kernel - 1) + 1
    return x.unfold(2, reach, stride).unfold(3, reach, stride)[..., ::dilation, ::dilation]


def _positions(x: Tensor, kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    height, width = ((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in x.shape[2:])
    return height, width
