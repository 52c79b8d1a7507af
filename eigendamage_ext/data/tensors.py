"""What every reader returns: images and labels as tensors."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Split(NamedTuple):
    """Images and labels to train on, and others to test on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def check_dtype(dtype: torch.dtype, function: str) -> None:
    """Images are float32 in [0, 1], or the bytes they were made from, a quarter of the memory."""
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(
            f"{function}: dtype must be torch.float32 or torch.uint8, got {dtype}; use one of these"
        )


def as_images(pixels: np.ndarray, dtype: torch.dtype) -> Tensor:
    """uint8 ``(N, C, H, W)``, writable, as a tensor of that ``dtype`` (see `check_dtype`)."""
    images = torch.from_numpy(pixels)
    return images if dtype == torch.uint8 else images.float().div_(255)


def as_labels(labels: np.ndarray, count: int, function: str, what: str, classes: int | None = None) -> Tensor:
    """Labels as int64 ``(count,)``, checked.

    Args:
        labels: Integers ``(count,)``.
        count: How many images there are.
        function: Who asks, for the error.
        what: What they are, for the error.
        classes: Every label must lie below, where it is given, and from 0 on.
    """
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{function}: {what} must be integers of shape ({count},), got {labels.dtype} {labels.shape}"
        )
    if classes is not None and count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"{function}: {what} must lie in 0 … {classes - 1}, got {labels.min()} to {labels.max()}; "
            "the file is damaged or of another set"
        )
    return torch.from_numpy(labels.astype(np.int64))


def evenly_spaced(count: int, limit: int | None, function: str) -> list[int]:
    """At most ``limit`` of ``count`` rows, all over a file that may be sorted by class."""
    if limit is not None and limit < 1:
        raise ValueError(f"{function}: max_images must be at least 1, got {limit}; None takes all")
    wanted = min(count, limit or count)
    return [i * count // wanted for i in range(wanted)]
