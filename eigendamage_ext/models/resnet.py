"""CIFAR ResNets (He et al. 2016, arXiv 1512.03385): three stages of basic blocks, depth 6n + 2."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, zero channels on both sides, no parameters.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output; an odd difference puts the extra zero channel last.
        stride: Step between the pixels kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"PadShortcut: out_channels must be at least in_channels ({in_channels}), "
                f'got {out_channels}; use widths that do not shrink, or shortcut="B"'
            )
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """The stride and the zero channels before and after."""
        return f"stride={self.stride}, zero_channels=({self.before}, {self.after})"


def _shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BN, added to the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A 3×3 stem, three stages of basic blocks (strides 1, 2, 2), average pooling and a linear classifier.

    Args:
        depth: 6n + 2 with n blocks a stage: 8, 14, 20, 32, ...
        widths: Channels of the three stages; the stem has the first stage's.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        shortcut: Where a stage changes the shape, "A" strides and pads with zero channels (no
            parameters), "B" is a 1×1 convolution with BN.
    """

    def __init__(
        self,
        depth: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: str = "B",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"ResNet: depth must be 6n + 2 with n >= 1, got {depth}; use 8, 14, 20, 26, 32, ..."
            )
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(
                f"ResNet: widths must be three positive channel counts, got {tuple(widths)}; "
                "e.g. (16, 32, 64)"
            )
        if shortcut not in ("A", "B"):
            raise ValueError(
                f'ResNet: shortcut must be "A" (zero channels) or "B" (projection), got {shortcut!r}'
            )
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[0], 1, shortcut)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2, shortcut)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2, shortcut)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)`` of any size to logits ``(N, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    rest = (BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
