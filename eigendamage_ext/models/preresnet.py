"""Pre-activation ResNets for CIFAR (He et al. 2016, arXiv 1603.05027): bottleneck blocks, depth 9n + 2."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """BN, ReLU and a convolution, three times over (1×1, 3×3, 1×1), added to the input or its projection.

    Args:
        in_channels: Channels of the input.
        inner_channels: Channels between the convolutions.
        out_channels: Channels of the output.
        stride: Step of the 3×3 convolution.
    """

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(inner_channels, inner_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to ``(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        total: Tensor = self.conv3(F.relu(self.bn3(y))) + self.shortcut(x)
        return total


class PreResNet(nn.Module):
    """A 3×3 stem, three stages of bottlenecks (strides 1, 2, 2), BN, ReLU, average pooling and a classifier.

    The first block of a stage is as wide inside as the stage before, the others as their own.

    Args:
        depth: 9n + 2 with n blocks a stage: 11, 20, 29, 38, ...
        widths: Channels of the three stages; the stem has the first stage's.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        depth: int = 29,
        widths: Sequence[int] = (64, 128, 256),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(
                f"PreResNet: depth must be 9n + 2 with n >= 1, got {depth}; use 11, 20, 29, 38, ..."
            )
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(
                f"PreResNet: widths must be three positive channel counts, got {tuple(widths)}; "
                "e.g. (64, 128, 256)"
            )
        blocks = (depth - 2) // 9
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.layer1 = _stage(blocks, widths[0], widths[0], 1)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2)
        self.bn = nn.BatchNorm2d(widths[2])
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)`` of any size to logits ``(N, num_classes)``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1))
        return logits


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = Bottleneck(in_channels, in_channels, out_channels, stride)
    return nn.Sequential(
        first, *(Bottleneck(out_channels, out_channels, out_channels, 1) for _ in range(blocks - 1))
    )
