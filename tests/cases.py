"""Shapes that the tests of the kernels share: every geometry, dtype and memory layout they promise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# name: (shape of x, kernel_size, keyword arguments of channel_covariance and patch_covariance)
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int, int], Any, dict[str, Any]]] = {
    "1x1": ((3, 8, 5, 6), 1, {}),
    "1x1 stride 2": ((3, 5, 7, 6), 1, {"stride": 2}),
    "1x1 padded": ((2, 3, 4, 4), 1, {"padding": 2}),
    "2x2 stride 2": ((3, 6, 8, 8), 2, {"stride": 2}),
    "2x2 same": ((2, 3, 5, 6), 2, {"padding": "same"}),
    "3x3": ((2, 5, 7, 9), 3, {}),
    "3x3 pad 1": ((2, 16, 9, 10), 3, {"padding": 1}),
    "3x3 pad 1, tiny image": ((3, 7, 1, 2), 3, {"padding": 1}),
    "3x3 pad 1, many channels": ((2, 70, 5, 4), 3, {"padding": 1}),
    "3x3 pad 1, many positions": ((3, 3, 33, 31), 3, {"padding": 1}),
    "3x3 pad 4": ((2, 3, 4, 3), 3, {"padding": 4}),
    "3x3 same": ((2, 4, 6, 5), 3, {"padding": "same"}),
    "3x3 valid": ((2, 4, 6, 5), 3, {"padding": "valid"}),
    "3x3 stride 2": ((3, 12, 8, 9), 3, {"stride": 2, "padding": 1}),
    "3x3 stride (2, 1)": ((2, 6, 9, 8), 3, {"stride": (2, 1), "padding": (1, 0)}),
    "3x3 stride 3": ((2, 4, 11, 10), 3, {"stride": 3}),
    "3x3 stride 4, gaps": ((2, 4, 12, 11), 3, {"stride": 4, "padding": 1}),
    "3x3 dilation 2": ((2, 6, 9, 8), 3, {"padding": 2, "dilation": 2}),
    "3x3 dilation (1, 3)": ((2, 5, 6, 11), 3, {"padding": (1, 3), "dilation": (1, 3)}),
    "3x3 dilation 2, stride 2": ((2, 5, 10, 11), 3, {"padding": 2, "dilation": 2, "stride": 2}),
    "3x3 dilation 2, stride 3": ((2, 4, 12, 13), 3, {"padding": 2, "dilation": 2, "stride": 3}),
    "3x3 dilation 5, core empty": ((2, 4, 7, 6), 3, {"padding": 5, "dilation": 5}),
    "3x3 groups 2": ((2, 12, 6, 7), 3, {"padding": 1, "groups": 2}),
    "3x3 groups 3, stride 2": ((2, 9, 8, 7), 3, {"padding": 1, "groups": 3, "stride": 2}),
    "3x3 depthwise": ((3, 10, 6, 5), 3, {"padding": 1, "groups": 10}),
    "5x5 depthwise, stride 2": ((2, 6, 9, 9), 5, {"padding": 2, "groups": 6, "stride": 2}),
    "1x3": ((2, 7, 5, 8), (1, 3), {"padding": (0, 1)}),
    "3x1": ((2, 7, 8, 5), (3, 1), {"padding": (1, 0)}),
    "2x5": ((2, 4, 7, 9), (2, 5), {"padding": (1, 2)}),
    "4x4 same": ((2, 3, 7, 8), 4, {"padding": "same"}),
    "4x2 same, dilation (1, 3)": ((2, 3, 9, 8), (4, 2), {"padding": "same", "dilation": (1, 3)}),
    "5x5": ((2, 6, 8, 9), 5, {"padding": 2}),
    "5x5 stride 2": ((2, 5, 11, 10), 5, {"padding": 2, "stride": 2}),
    "6x6 stride (2, 3)": ((2, 3, 11, 12), 6, {"padding": (2, 3), "stride": (2, 3)}),
    "7x7": ((1, 4, 9, 8), 7, {"padding": 3}),
    "7x7 stride 2, stem": ((2, 3, 17, 16), 7, {"padding": 3, "stride": 2}),
    "7x7 as large as the image": ((3, 2, 7, 7), 7, {}),
}

# name: a view of the same shape as x and, but for "expanded", of the same values
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: _into(
        torch.zeros([2 * n + 1 for n in x.shape], dtype=x.dtype)[1::2, 1::2, 1::2, 1::2], x
    ),
    "channels sliced": lambda x: _into(
        torch.zeros_like(torch.cat([x, x, x], dim=1))[:, x.shape[1] : 2 * x.shape[1]], x
    ),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1, :, :, :1].expand_as(x),
}


def _into(view: Tensor, x: Tensor) -> Tensor:
    return view.copy_(x)
