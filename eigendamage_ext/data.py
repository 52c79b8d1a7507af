"""Image sets as plain tensors, and a small seeded loader. Nothing is downloaded.

Images are float32 ``(N, C, H, W)`` in [0, 1], labels int64 ``(N,)``.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._progress import track

Transform = Callable[[Tensor, torch.Generator], Tensor]


class Split(NamedTuple):
    """Images and labels to train on, and others to test on."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class TensorLoader:
    """Batches of tensors held in memory, as an iterable with a length.

    Args:
        inputs: ``(N, ...)``.
        targets: ``(N, ...)``, or None: batches are then inputs alone.
        batch_size: Examples of a batch; the last one may be smaller.
        shuffle: Draw a new order every epoch. Order and transform are functions of (seed, epoch) alone, on
            each kind of device another: they are drawn there, so that nothing waits for the CPU.
        seed: See ``shuffle``.
        transform: ``transform(batch_inputs, generator)``, e.g. `crop_flip`; both are on one device.

    Each iteration is the next epoch; ``set_epoch`` chooses it.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"TensorLoader: batch_size must be at least 1, got {batch_size}")
        if targets is not None and len(targets) != len(inputs):
            raise ValueError(
                f"TensorLoader: targets must have one entry per input ({len(inputs)}), got {len(targets)}"
            )
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.seed, self.transform = batch_size, shuffle, seed, transform
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[Any]:
        # torch's CPU generator reads the low 32 bits of its seed only.
        generator = torch.Generator(self.inputs.device).manual_seed((self.seed * 1_000_003 + epoch) % 2**32)
        order = None
        if self.shuffle:
            order = torch.randperm(len(self.inputs), generator=generator, device=generator.device)
        for start in range(0, len(self.inputs), self.batch_size):
            stop = start + self.batch_size
            rows = slice(start, stop) if order is None else order[start:stop]
            x = self.inputs[rows]
            if self.transform is not None:
                x = self.transform(x, generator)
            yield x if self.targets is None else (x, self.targets[rows])


def crop_flip(padding: int = 4, *, flip: bool = True) -> Transform:
    """The usual CIFAR augmentation: a random crop of the zero-padded image, mirrored half the time.

    Args:
        padding: Zeros on each side before the crop back to the image's size.
        flip: Mirror left and right with probability ½.

    Returns:
        A transform for `TensorLoader`, ``(N, C, H, W)`` to the same shape; each image draws for itself.
    """

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        corner = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=x.device)
        rows = corner[0] + torch.arange(height, device=x.device)
        columns = corner[1] + torch.arange(width, device=x.device)
        if flip:
            mirrored = torch.rand(n, generator=generator, device=x.device) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        image = torch.arange(n, device=x.device)[:, None, None]
        # Advanced indices on either side of a slice come first: (N, H, W, C).
        cropped = F.pad(x, (padding,) * 4)[image, :, rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2).contiguous()

    return transform


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images − mean) / std`` per channel.

    Args:
        images: ``(N, C, H, W)``.
        mean: ``C`` numbers.
        std: ``C`` positive numbers.
    """
    channels = images.shape[1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(
                f"normalize: {name} must have one number per channel ({channels}), got {len(values)}"
            )
    if min(std) <= 0:
        raise ValueError(f"normalize: std must be positive, got {tuple(std)}")
    shift, scale = (
        torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std)
    )
    return (images - shift) / scale


def digits(seed: int = 0, *, test_fraction: float = 0.25) -> Split:
    """scikit-learn's 1,797 handwritten digits, ``(N, 1, 8, 8)``, split with every class in proportion.

    Args:
        seed: Chooses the split.
        test_fraction: Share of every class in the test part.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"digits: test_fraction must lie between 0 and 1, got {test_fraction}")
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError(
            "digits: scikit-learn must be installed (it holds the images); "
            'pip install "eigendamage-ext[demo]"'
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator, device="cpu")]
        cut = round(len(members) * test_fraction)
        test.append(members[:cut])
        train.append(members[cut:])
    # Mixed, so that the head of either part holds every class.
    parts = [
        torch.cat(p)[torch.randperm(sum(map(len, p)), generator=generator, device="cpu")]
        for p in (train, test)
    ]
    return Split(*((images[part], labels[part]) for part in parts))


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
    targets = _labels(labels, len(images), "load_npz", f"'labels' in {path}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), targets


def load_jpegs(
    path: str | Path, split: str, *, max_images: int | None = None, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Decode JPEG images of one size, stored back to back in a NumPy archive.

    The archive holds ``{split}_bytes`` uint8 ``(B,)``, ``{split}_offsets`` ``(N + 1,)`` and
    ``{split}_labels`` ``(N,)``; image i is ``bytes[offsets[i]:offsets[i + 1]]``.

    Args:
        path: The archive.
        split: E.g. "train" or "test".
        max_images: Decode this many at most, evenly spaced over the file (which may be sorted by class).
        progress: Show a progress bar.

    Returns:
        Images ``(n, 3, H, W)`` and labels ``(n,)``.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: Pillow is not installed.
        ValueError: The file is no NumPy archive, its arrays are not as above, or an image does not decode.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            'load_jpegs: Pillow must be installed to decode JPEG; pip install "eigendamage-ext[demo]"'
        ) from error
    if max_images is not None and max_images < 1:
        raise ValueError(f"load_jpegs: max_images must be at least 1, got {max_images}; None decodes all")
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
    targets = _labels(labels, count, "load_jpegs", f"'{keys[2]}' in {path}")
    wanted = min(count, max_images or count)
    chosen = [i * count // wanted for i in range(wanted)]
    images: np.ndarray | None = None
    for row, i in enumerate(track(chosen, total=wanted, description=f"decode {split}", enabled=progress)):
        try:
            with Image.open(
                io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes()), formats=["JPEG"]
            ) as file:
                pixels = np.asarray(file.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"load_jpegs: image {i} of '{keys[0]}' in {path} must be a JPEG, got {error}"
            ) from error
        if images is None:
            images = np.empty((wanted, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise ValueError(
                f"load_jpegs: images in {path} must be of one size, got {pixels.shape[:2]} for image {i} "
                f"after {images.shape[1:3]}; resize them when the file is made"
            )
        images[row] = pixels
    assert images is not None
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), targets[chosen]


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


def _labels(labels: np.ndarray, count: int, function: str, what: str) -> Tensor:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise ValueError(
            f"{function}: {what} must be integers of shape ({count},), got {labels.dtype} {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))
