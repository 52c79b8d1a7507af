"""IDX, the format of MNIST (LeCun et al. 1998).

Two zero bytes, the type of the numbers, how many dimensions; their lengths, of four bytes, the largest first;
the numbers, here of one byte each.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from .files import Layout, find
from .tensors import Split, as_images, as_labels, check_dtype

MAX_BYTES = 2**30  # of numbers, once decompressed: EMNIST has 547 million
UNSIGNED_BYTE = 8
SOURCE = "http://yann.lecun.com/exdb/mnist (Fashion-MNIST and KMNIST have the same files)"


def load_idx(
    images: str | Path, labels: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Read a file of grey images and that of their labels; one whose name ends in .gz is decompressed.

    Args:
        images: unsigned bytes ``(N, H, W)``.
        labels: unsigned bytes ``(N,)``.
        dtype: float32 in [0, 1], or uint8 as stored, a quarter of the memory.

    Returns:
        Images ``(N, 1, H, W)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged or holds something else.
    """
    check_dtype(dtype, "load_idx")
    pixels = _read(Path(images), 3)
    targets = as_labels(_read(Path(labels), 1), len(pixels), "load_idx", f"labels in {labels}")
    return as_images(pixels[:, None], dtype), targets


def load_mnist(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Split:
    """Read MNIST, or another set of four files with its names.

    Args:
        folder: What holds the files, all as they are or all as .gz, itself or in ``MNIST/raw``.
        dtype: float32 in [0, 1], or uint8 as stored, a quarter of the memory.

    Returns:
        Images ``(N, 1, 28, 28)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged or holds something else.
    """
    layouts = [
        Layout(
            "MNIST/raw",
            tuple(
                f"{part}-{what}{dot}idx{rank}-ubyte{suffix}"
                for part in ("train", "t10k")
                for what, rank in (("images", 3), ("labels", 1))
            ),
        )
        for dot in "-."
        for suffix in ("", ".gz")
    ]
    layout, place = find("load_mnist", folder, layouts, SOURCE)
    train, train_labels, test, test_labels = (place / name for name in layout.files)
    return Split(load_idx(train, train_labels, dtype=dtype), load_idx(test, test_labels, dtype=dtype))


def _read(path: Path, rank: int) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(
            f"load_idx: images and labels must be existing files, got {path}; "
            "put it there (nothing is downloaded)"
        )
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return _numbers(cast(BinaryIO, file), rank)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"load_idx: {path} must be an IDX file of unsigned bytes in {rank} dimensions, got {error}"
        ) from error


def _numbers(file: BinaryIO, rank: int) -> np.ndarray:
    header = file.read(4)
    if header != bytes((0, 0, UNSIGNED_BYTE, rank)):
        raise ValueError(f"one that starts with {header!r}")
    lengths = file.read(4 * rank)
    if len(lengths) < 4 * rank:
        raise ValueError("its end in the header")
    shape = tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, 4 * rank, 4))
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"shape {shape}; there must be between 1 and {MAX_BYTES} numbers")
    content = bytearray()
    while len(content) <= size and (block := file.read(min(2**24, size + 1 - len(content)))):
        content += block  # by blocks, because the header may promise more than there is
    if len(content) != size:
        raise ValueError(f"shape {shape} with {'more' if len(content) > size else len(content)} numbers")
    return np.frombuffer(content, np.uint8).reshape(shape)
