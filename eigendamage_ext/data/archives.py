"""Images in NumPy archives, as pixels or as JPEG."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._progress import track
from .decoding import check_pillow, decode
from .tensors import as_images, as_labels, evenly_spaced


def load_npz(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read ``images`` ``(N, H, W, C)`` uint8 and ``labels`` ``(N,)`` from a NumPy archive; no code is run.

    Returns:
        Images ``(N, C, H, W)`` and labels.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no NumPy archive, or its arrays are not as above.
    """
    images, labels = _read_npz(path, "load_npz", ("images", "labels"))
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"load_npz: 'images' in {path} must be uint8 of shape (N, H, W, C), "
            f"got {images.dtype} {images.shape}"
        )
    targets = as_labels(labels, len(images), "load_npz", f"'labels' in {path}")
    return as_images(images.transpose(0, 3, 1, 2), torch.float32), targets


def load_jpegs(
    path: str | Path,
    split: str,
    *,
    size: int | tuple[int, int] | None = None,
    max_images: int | None = None,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Decode JPEG images stored back to back in a NumPy archive.

    The archive holds ``{split}_bytes`` uint8 ``(B,)``, ``{split}_offsets`` ``(N + 1,)`` and
    ``{split}_labels`` ``(N,)``; image i is ``bytes[offsets[i]:offsets[i + 1]]``.

    Args:
        path: The archive.
        split: E.g. "train" or "test".
        size: Height and width, or one number for both: each image is scaled until it covers them, and its
            middle taken. None takes images of one size as they are.
        max_images: Decode this many at most, evenly spaced over the file (which may be sorted by class).
        progress: Show a progress bar.

    Returns:
        Images ``(n, 3, H, W)`` and labels ``(n,)``.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: Pillow is not installed.
        ValueError: The file is no NumPy archive, its arrays are not as above, or an image does not decode.
    """
    check_pillow("load_jpegs")
    keys = tuple(f"{split}_{part}" for part in ("bytes", "offsets", "labels"))
    blob, offsets, labels = _read_npz(path, "load_jpegs", keys)
    if blob.dtype != np.uint8 or blob.ndim != 1:
        raise ValueError(
            f"load_jpegs: '{keys[0]}' in {path} must be uint8 of shape (B,), got {blob.dtype} {blob.shape}"
        )
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2:
        raise ValueError(
            f"load_jpegs: '{keys[1]}' in {path} must be integers of shape (N + 1,), "
            f"got {offsets.dtype} {offsets.shape}"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] != 0 or offsets[-1] != len(blob) or (np.diff(offsets) <= 0).any():
        raise ValueError(
            f"load_jpegs: '{keys[1]}' in {path} must rise from 0 to the {len(blob)} bytes of '{keys[0]}', "
            f"got {offsets[0]} to {offsets[-1]} with smallest step {np.diff(offsets).min()}; "
            "the file is damaged"
        )
    count = len(offsets) - 1
    targets = as_labels(labels, count, "load_jpegs", f"'{keys[2]}' in {path}")
    chosen = evenly_spaced(count, max_images, "load_jpegs")
    images = (
        (f"image {i} of '{keys[0]}' in {path}", io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()))
        for i in chosen
    )
    shown = track(images, total=len(chosen), description=f"decode {split}", enabled=progress)
    pixels = decode("load_jpegs", shown, len(chosen), size=size, formats=("JPEG",))
    return as_images(pixels, torch.float32), targets[chosen]


def _read_npz(path: str | Path, function: str, keys: tuple[str, ...]) -> list[np.ndarray]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{function}: path must be an existing .npz file, got {path}; "
            "put the archive there (nothing is downloaded)"
        )
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array; save it with np.savez under the names above")
            with archive:
                missing = [key for key in keys if key not in archive]
                if missing:
                    raise ValueError(f"no {', '.join(missing)} but {', '.join(archive.files) or 'nothing'}")
                return [archive[key] for key in keys]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{function}: {path} must be a NumPy archive of plain arrays {', '.join(keys)}, got {error}"
        ) from error
