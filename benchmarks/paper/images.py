"""The images of an experiment, on its device: to train on, to choose by, to test on."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from eigendamage_ext.data import Split, digits, load_dataset, load_jpegs, normalize

Part = tuple[Tensor, Tensor]
Counts = tuple[int | None, int | None]


class Images(NamedTuple):
    """Normalised images ``(n, C, H, W)``, channels last, and labels ``(n,)``; in disjoint parts."""

    train: Part
    validation: Part
    test: Part


class DataSet(NamedTuple):
    """What is known of a set before it is read, and how it is read.

    Attributes:
        sizes: Images to train and to test with.
        read: Those of a folder, or at least so many of either; the seed splits what comes in one piece.
    """

    classes: int
    shape: tuple[int, int, int]
    sizes: tuple[int, int]
    read: Callable[[Path, Counts, int], Split]


def _whole(name: str, folder: Path, counts: Counts, seed: int) -> Split:
    limit = None if None in counts else max(n for n in counts if n)
    found = load_dataset(name, folder, max_images=limit, dtype=torch.uint8)
    return Split(found.train, found.test)


def _jpeg(folder: Path, counts: Counts, seed: int) -> Split:
    path = folder / "cifar10_jpeg.npz"
    return Split(
        *(load_jpegs(path, part, max_images=n) for part, n in zip(("train", "test"), counts, strict=True))
    )


DATA_SETS = {
    "cifar10": DataSet(10, (3, 32, 32), (50_000, 10_000), partial(_whole, "cifar10")),
    "cifar100": DataSet(100, (3, 32, 32), (50_000, 10_000), partial(_whole, "cifar100")),
    "tiny-imagenet": DataSet(200, (3, 64, 64), (100_000, 10_000), partial(_whole, "tiny-imagenet")),
    "cifar10-jpeg": DataSet(10, (3, 32, 32), (50_000, 10_000), _jpeg),
    "digits": DataSet(10, (1, 8, 8), (1347, 450), lambda folder, counts, seed: digits(seed)),
}


def evenly(part: Part, count: int | None) -> Part:
    """At most so many, evenly spaced; all if None."""
    images, labels = part
    if count is None or count >= len(images):
        return part
    rows = [i * len(images) // count for i in range(count)]
    return images[rows], labels[rows]


def load(
    name: str,
    folder: Path,
    *,
    counts: Counts,
    validation: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    seed: int,
    device: torch.device,
) -> Images:
    """Reads a data set, holds some training images out and normalises all.

    Args:
        name: One of `DATA_SETS`.
        folder: Where it lies.
        counts: Training and test images taken at most, evenly spaced; None for all.
        validation: Share of the training images held out, evenly spaced.
        mean, std: Of each channel; None for those of the images that are trained on.
        seed: Splits digits, which come in one piece.
        device: Where the images go.

    Raises:
        FileNotFoundError: The set is not there; the message says what must lie where.
        ValueError: It is damaged.
    """
    train, test = map(evenly, DATA_SETS[name].read(folder, counts, seed), counts)
    held_out = torch.arange(len(train[1])) % round(1 / validation) == 0
    seen = train[0][~held_out]
    channels = [_unit(seen[:, channel]) for channel in range(seen.shape[1])]
    mean = [float(x.mean()) for x in channels] if mean is None else mean
    std = [float(x.std()) for x in channels] if std is None else std

    def prepared(images: Tensor, labels: Tensor) -> Part:
        images = normalize(_unit(images.to(device)), mean, std)
        return images.contiguous(memory_format=torch.channels_last), labels.to(device)

    return Images(
        prepared(seen, train[1][~held_out]),
        prepared(train[0][held_out], train[1][held_out]),
        prepared(*test),
    )


def _unit(images: Tensor) -> Tensor:
    """In [0, 1]."""
    return images.float().div(255) if images.dtype == torch.uint8 else images
