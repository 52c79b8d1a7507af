"""Folders of image files: one for each class, and Tiny-ImageNet's."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._progress import track
from .decoding import check_pillow, decode
from .files import Layout, find, read_bytes
from .tensors import Split, as_images, check_dtype, evenly_spaced

FORMATS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".webp": "WEBP",
}
PLAIN_NAME = r"\w[\w.-]*"  # no way out of a folder
SOURCE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"

Size = int | tuple[int, int] | None


def class_names(folder: str | Path) -> list[str]:
    """The folders in a folder, sorted: the classes of `load_folder`. Hidden ones are none.

    Raises:
        FileNotFoundError: There is no such folder, or none in it.
    """
    folder = Path(folder)
    entries = list(folder.iterdir()) if folder.is_dir() else []
    names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        got = "has none" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"load_folder: folder must have a folder of images for each class, got {folder}, which {got}; "
            "put the images there (nothing is downloaded)"
        )
    return names


def load_folder(
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    size: Size = None,
    max_images: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Decode image files that lie, at any depth, in one folder for each class.

    Images are in order of class and path. Files of other formats than BMP, JPEG, PNG, PPM and WebP are passed
    over, and so are hidden ones.

    Args:
        folder: What holds the folders of the classes.
        classes: Their names in order of their labels; by default `class_names`. Another one is refused.
        size: Height and width, or one number for both: each image is scaled until it covers them, and its
            middle taken. None takes images of one size as they are.
        max_images: Decode this many at most, evenly spaced.
        dtype: float32 in [0, 1], or uint8, a quarter of the memory.
        progress: Show a progress bar.

    Returns:
        Images ``(N, 3, H, W)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: There is no such folder, or no image in one.
        ImportError: Pillow is not installed.
        ValueError: An image is damaged, or of another size than the first; or a class is unknown.
    """
    check_pillow("load_folder")
    check_dtype(dtype, "load_folder")
    found = class_names(folder)
    labels = {name: label for label, name in enumerate(found if classes is None else classes)}
    unknown = [name for name in found if name not in labels]
    if unknown:
        raise ValueError(
            f"load_folder: folders in {folder} must be named like the classes, got {', '.join(unknown[:5])}; "
            "the same classes must be there to train and to test"
        )
    images = [(path, labels[name]) for name in found for path in _images("load_folder", Path(folder, name))]
    return _load("load_folder", images, size, max_images, dtype, progress)


def load_tiny_imagenet(
    folder: str | Path,
    *,
    size: Size = None,
    max_images: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> Split:
    """Decode Tiny-ImageNet: 100,000 images to train on, and its 10,000 for validation to test on.

    The former take 4.9 GB as float32, 1.2 GB as uint8. Classes are numbered in the order of their names
    in wnids.txt, sorted. The set's own test images have no labels and stay unread.

    Args:
        folder: ``tiny-imagenet-200``, or what holds it.
        size: As in `load_folder`.
        max_images: Decode this many at most, evenly spaced, of either part.
        dtype: float32 in [0, 1], or uint8.
        progress: Show a progress bar.

    Returns:
        Images ``(N, 3, 64, 64)`` and labels ``(N,)``.

    Raises:
        FileNotFoundError: A file or folder is absent.
        ImportError: Pillow is not installed.
        ValueError: A file is damaged.
    """
    function = "load_tiny_imagenet"
    check_pillow(function)
    check_dtype(dtype, function)
    layout = Layout("tiny-imagenet-200", ("wnids.txt", "val/val_annotations.txt"))
    _, place = find(function, folder, (layout,), SOURCE)
    wnids, annotations = (_lines(function, place / name) for name in layout.files)
    labels = {name: label for label, name in enumerate(sorted(set(wnids)))}
    strange = [name for name in labels if not re.fullmatch(PLAIN_NAME, name)]
    if strange:
        raise ValueError(
            f"{function}: wnids.txt in {place} must list WordNet names, got {strange[0][:60]!r}; "
            "unpack the set again"
        )
    train = [(path, labels[name]) for name in labels for path in _images(function, place / "train" / name)]
    test = []
    for line in annotations:
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in labels or not re.fullmatch(PLAIN_NAME, name):
            raise ValueError(
                f"{function}: every line of val_annotations.txt in {place} must name an image and one of "
                f"wnids.txt, got {line[:60]!r}; unpack the set again"
            )
        test.append((place / "val" / "images" / name, labels[wnid]))
    return Split(*(_load(function, part, size, max_images, dtype, progress) for part in (train, test)))


def _lines(function: str, path: Path) -> list[str]:
    """Lines of a text that has some."""
    lines = read_bytes(function, path).decode(errors="replace").split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{function}: {path} must not be empty, got no line; unpack the set again")
    return lines


def _images(function: str, folder: Path) -> list[Path]:
    """Image files at any depth, sorted; at least one."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [
            Path(place, name) for name in files if name[0] != "." and Path(name).suffix.lower() in FORMATS
        ]
    if not found:
        raise FileNotFoundError(
            f"{function}: every class must have images, got none in {folder}; "
            f"put files ending in {', '.join(FORMATS)} there (nothing is downloaded)"
        )
    return sorted(found)


def _load(
    function: str,
    images: list[tuple[Path, int]],
    size: Size,
    max_images: int | None,
    dtype: torch.dtype,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    chosen = [images[i] for i in evenly_spaced(len(images), max_images, function)]
    named = ((str(path), path) for path, _ in chosen)
    shown = track(named, total=len(chosen), description="decode images", enabled=progress)
    pixels = decode(function, shown, len(chosen), size=size, formats=tuple(sorted(set(FORMATS.values()))))
    return as_images(pixels, dtype), torch.from_numpy(np.array([label for _, label in chosen], np.int64))
