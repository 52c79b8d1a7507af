"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), in the binary and the Python format they are handed out in.

Binary: for each image a byte for its label (CIFAR-100: two, coarse and fine), then 3 × 32 × 32 bytes, channel
by channel and row by row. Python: pickled dictionaries with labels and ``data`` ``(N, 3072)``, in that order.
"""

from pathlib import Path

import numpy as np
import torch

from .files import Layout, find, read_bytes
from .pickles import read_pickle
from .tensors import Split, as_images, as_labels, check_dtype

IMAGE = (3, 32, 32)
PIXELS = 3 * 32 * 32
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def load_cifar10(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Split:
    """Read CIFAR-10: 50,000 images to train and 10,000 to test on, of 10 classes.

    Args:
        folder: ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or what holds one of them.
        dtype: float32 in [0, 1], or uint8 as stored, a quarter of the memory.

    Returns:
        Images ``(N, 3, 32, 32)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged. A pickle is never run.
    """
    check_dtype(dtype, "load_cifar10")
    names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    binary = Layout("cifar-10-batches-bin", tuple(f"{name}.bin" for name in names))
    layout, place = find("load_cifar10", folder, (binary, Layout("cifar-10-batches-py", names)), SOURCE)
    parts = []
    for path in (place / name for name in layout.files):
        if layout is binary:
            parts.append(_binary("load_cifar10", path, label=0, labels=1, classes=10))
        else:
            parts.append(_pickled("load_cifar10", path, label="labels", classes=10))
    return Split(_joined(parts[:-1], dtype), _joined(parts[-1:], dtype))


def load_cifar100(folder: str | Path, *, coarse: bool = False, dtype: torch.dtype = torch.float32) -> Split:
    """Read CIFAR-100: 50,000 images to train and 10,000 to test on, of 100 classes.

    Args:
        folder: ``cifar-100-binary`` or ``cifar-100-python``, or what holds one of them.
        coarse: Label by the 20 superclasses instead.
        dtype: float32 in [0, 1], or uint8 as stored, a quarter of the memory.

    Returns:
        Images ``(N, 3, 32, 32)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged. A pickle is never run.
    """
    check_dtype(dtype, "load_cifar100")
    binary = Layout("cifar-100-binary", ("train.bin", "test.bin"))
    pickled = Layout("cifar-100-python", ("train", "test"))
    layout, place = find("load_cifar100", folder, (binary, pickled), SOURCE)
    classes = 20 if coarse else 100
    parts = []
    for path in (place / name for name in layout.files):
        if layout is binary:
            parts.append(_binary("load_cifar100", path, label=int(not coarse), labels=2, classes=classes))
        else:
            key = "coarse_labels" if coarse else "fine_labels"
            parts.append(_pickled("load_cifar100", path, label=key, classes=classes))
    return Split(_joined(parts[:1], dtype), _joined(parts[1:], dtype))


Part = tuple[np.ndarray, torch.Tensor]


def _binary(function: str, path: Path, *, label: int, labels: int, classes: int) -> Part:
    content = np.frombuffer(read_bytes(function, path), np.uint8)
    if len(content) == 0 or len(content) % (labels + PIXELS):
        raise ValueError(
            f"{function}: {path} must have {labels + PIXELS} bytes for each image, got {len(content)}; "
            "the file is damaged"
        )
    rows = content.reshape(-1, labels + PIXELS)
    targets = as_labels(rows[:, label], len(rows), function, f"labels in {path}", classes)
    return rows[:, labels:], targets


def _pickled(function: str, path: Path, *, label: str, classes: int) -> Part:
    content = read_pickle(function, path)
    missing = [key for key in ("data", label) if key not in content]
    if missing:
        raise ValueError(
            f"{function}: {path} must hold 'data' and '{label}', got no {' and no '.join(missing)}; "
            "it is of another set"
        )
    pixels, targets = content["data"], content[label]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ValueError(f"{function}: 'data' in {path} must be uint8 of shape (N, {PIXELS}), got {got}")
    if isinstance(targets, list):
        if not all(type(n) is int and 0 <= n < classes for n in targets):
            raise ValueError(f"{function}: '{label}' in {path} must be whole numbers in 0 … {classes - 1}")
        targets = np.array(targets, np.int64)
    if not isinstance(targets, np.ndarray):
        raise ValueError(f"{function}: '{label}' in {path} must be a list, got {type(targets).__name__}")
    return pixels, as_labels(targets, len(pixels), function, f"'{label}' in {path}", classes)


def _joined(parts: list[Part], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *IMAGE)
    return as_images(pixels, dtype), torch.cat([targets for _, targets in parts])
