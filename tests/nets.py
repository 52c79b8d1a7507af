"""Tiny networks and batches, in float64, for the tests."""

import itertools
import math

import torch
from torch import Tensor, nn

from eigendamage_ext.models.resnet import ResNet


def mlp(*widths: int, bias: bool = True, activation: type[nn.Module] | None = nn.Tanh) -> nn.Sequential:
    """Linears with an activation between them; None gives a deep linear network."""
    net = nn.Sequential()
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        if index and activation:
            net.append(activation())
        net.append(nn.Linear(fan_in, fan_out, bias=bias))
    return net.double()


def convnet(classes: int = 4) -> nn.Sequential:
    """Convolutions of many kinds, a BN that is no identity, in-place ReLUs, for images ``(N, 3, 6, 7)``."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect", bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    ).double()
    norm = net[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    return net


def resnet(classes: int = 4) -> nn.Module:
    """The smallest residual network, for images ``(N, 3, 8, 8)``."""
    return ResNet(depth=8, widths=(4, 6, 8), num_classes=classes).double()


def images(examples: int, height: int = 6, width: int = 7) -> Tensor:
    """Random images ``(examples, 3, height, width)``."""
    return torch.randn(examples, 3, height, width, dtype=torch.float64)


def labels(loss: str, examples: int, classes: int = 4) -> Tensor:
    """Random labels for a loss."""
    if loss == "cross_entropy":
        return torch.randint(0, classes, (examples,))
    return torch.rand(examples, classes, dtype=torch.float64)


class Steep(torch.autograd.Function):
    """The identity with a gradient of NaN."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * math.nan


class Cliff(nn.Module):
    """A layer through which no gradient comes whole."""

    def forward(self, x: Tensor) -> Tensor:
        return Steep.apply(x)
