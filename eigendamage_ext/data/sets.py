"""Every image set under its name."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .cifar import load_cifar10, load_cifar100
from .digits import digits
from .folders import Size, class_names, load_folder, load_tiny_imagenet
from .idx import load_mnist
from .tensors import Split, evenly_spaced

CLASSES = {"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "digits": 10}  # of the others: what is found
SETS = (*CLASSES, "mnist", "folder")
CHUNK = 1024  # images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images to train and to test on, and what a network for them has to know.

    Attributes:
        train: Images ``(N, C, H, W)`` and labels ``(N,)``.
        test: The same.
        num_classes: Every label is less.
        mean: The mean of the training images in [0, 1], ``C`` numbers of four decimals, for `normalize`.
        std: Their standard deviation, likewise.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_dataset(
    name: str,
    folder: str | Path | None = None,
    *,
    size: Size = None,
    max_images: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> ImageSet:
    """Read an image set.

    Args:
        name: "cifar10", "cifar100", "tiny-imagenet", "mnist" (or another set of its files), "digits", or
            "folder": ``train`` and ``test`` (or ``val``), with a folder of images for each class in either.
        folder: Where it lies, as its reader wants it; "digits" come with scikit-learn.
        size: Of "tiny-imagenet" and "folder" alone: as in `load_folder`.
        max_images: Take this many at most, evenly spaced, of either part.
        dtype: float32 in [0, 1], or uint8, a quarter of the memory: `normalize` takes a batch of either.
            "digits" have 17 levels of grey and are float32 only.
        progress: Show a progress bar where images are decoded.

    Raises:
        FileNotFoundError: A file is absent; the message says what must lie where.
        ImportError: A library is not installed.
        ValueError: There is no such set, an argument does not go with it, or a file is damaged.
    """
    if name not in SETS:
        raise ValueError(f"load_dataset: name must be one of {', '.join(SETS)}, got {name!r}")
    if name == "digits" and dtype != torch.float32:
        raise ValueError(f"load_dataset: dtype must be torch.float32 for digits, got {dtype}; leave it out")
    if size is not None and name not in ("tiny-imagenet", "folder"):
        raise ValueError(f"load_dataset: size must be None for {name}, got {size}; its images have one size")
    if folder is None and name != "digits":
        raise ValueError(f"load_dataset: folder must say where {name} lies, got None; nothing is downloaded")
    place = Path(folder or "")
    if name == "cifar10":
        split = load_cifar10(place, dtype=dtype)
    elif name == "cifar100":
        split = load_cifar100(place, dtype=dtype)
    elif name == "mnist":
        split = load_mnist(place, dtype=dtype)
    elif name == "digits":
        split = digits()
    else:
        read = load_tiny_imagenet if name == "tiny-imagenet" else _load_folders
        split = read(place, size=size, max_images=max_images, dtype=dtype, progress=progress)
    if name == "folder":
        num_classes = len(class_names(place / "train"))
    else:
        num_classes = CLASSES.get(name) or 1 + int(torch.cat([split.train[1], split.test[1]]).max())
    train, test = (_some(part, max_images) for part in split)
    return ImageSet(train, test, num_classes, *_mean_std(train[0]))


def _load_folders(
    folder: Path, *, size: Size, max_images: int | None, dtype: torch.dtype, progress: bool
) -> Split:
    parts = [folder / "train", folder / ("test" if (folder / "test").is_dir() else "val")]
    classes = class_names(parts[0])
    return Split(
        *(
            load_folder(
                part, classes=classes, size=size, max_images=max_images, dtype=dtype, progress=progress
            )
            for part in parts
        )
    )


def _some(part: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    rows = evenly_spaced(len(part[1]), limit, "load_dataset")
    return part if len(rows) == len(part[1]) else (part[0][rows], part[1][rows])


def _mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale = 255 if images.dtype == torch.uint8 else 1
    sums = []
    for start in range(0, len(images), CHUNK):
        x = images[start : start + CHUNK].double() / scale
        sums.append(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
    mean, square = torch.stack(sums).sum(0) / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())
