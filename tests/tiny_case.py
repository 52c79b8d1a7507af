"""A tiny network and tiny data for the command line, as a user's module has them."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eigendamage_ext.data import TensorLoader


def net() -> nn.Module:
    """Grey 6×6 images to 4 classes; its weights follow from the seed that is set when it is made."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright quadrant, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = torch.rand(count, 1, 6, 6, generator=generator)
    for image, label in zip(x, y, strict=True):
        image[0, 3 * (label // 2) :, 3 * (label % 2) :] += 1
    return x, y


def data():
    return images(48, 0), images(32, 1)


def loaders():
    """In an order that a generator of its own draws."""
    data, order = TensorDataset(*images(48, 0)), torch.Generator().manual_seed(1)
    return DataLoader(data, batch_size=16, shuffle=True, generator=order), None


def ordered_loaders():
    """In an order that goes on from pass to pass."""
    return TensorLoader(*images(48, 0), batch_size=16, shuffle=True), None


def broken():
    raise KeyError("nothing\nhere")


def nothing():
    return None


NUMBER = 7
