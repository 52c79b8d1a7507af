"""VGG with BN for CIFAR (Simonyan & Zisserman 2015, arXiv 1409.1556): five stages of 3×3 convolutions."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Convolutions with BN and ReLU, halved between stages by max pooling; average pooling and a classifier.

    The two large hidden layers of the ImageNet network are left out, as is usual for small images.

    Args:
        depth: 11, 13, 16 or 19, as the original counts its layers.
        widths: Channels of the five stages.
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        depth: int = 19,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"VGG: depth must be {', '.join(map(str, CONVOLUTIONS))}, got {depth}; e.g. 19")
        if len(widths) != 5 or min(widths) < 1:
            raise ValueError(
                f"VGG: widths must be five positive channel counts, got {tuple(widths)}; "
                "e.g. (64, 128, 256, 512, 512)"
            )
        self.features = nn.Sequential()
        channels = in_channels
        for stage, (count, width) in enumerate(zip(CONVOLUTIONS[depth], widths, strict=True)):
            if stage:
                self.features.append(nn.MaxPool2d(2))
            for _ in range(count):
                self.features.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_channels, H, W)`` of at least 16×16 pixels to logits ``(N, num_classes)``."""
        x = self.features(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits
