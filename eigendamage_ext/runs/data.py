"""The data that a configuration names, as loaders."""

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext.data import ImageSet, TensorLoader, Transform, crop_flip, load_dataset, normalize
from eigendamage_ext.runs.factories import is_factory, made_by
from eigendamage_ext.runs.repeating import repeating
from eigendamage_ext.runs.settings import Pruned

Loader = Iterable[Any]
NAMED = ("cifar10", "cifar100", "tiny-imagenet", "mnist")


@dataclass(frozen=True)
class Loaders:
    """What a run reads.

    Attributes:
        train: To tune on: in another order every epoch, augmented if asked for.
        calibration: To estimate from: the same examples as they are.
        test: To measure accuracy on; None if there is none.
    """

    train: Loader
    calibration: Loader
    test: Loader | None


def load_data(settings: Pruned, caller: str, *, progress: bool) -> Loaders:
    """The loaders of `data`.

    Raises:
        ValueError, FileNotFoundError, ImportError: There is no such data, or it is damaged.
    """
    name, _, folder = settings.data.partition(":")
    if name not in NAMED and is_factory(settings.data):
        return _made(made_by(settings.data, f"{caller}: data"), settings, caller)
    if settings.data == "digits":
        return _images(load_dataset("digits"), settings)
    if Path(settings.data).is_dir():
        name, folder = "folder", settings.data
    if folder and (name in NAMED or name == "folder"):
        found = load_dataset(name, folder, size=settings.size, dtype=torch.uint8, progress=progress)
        return _images(found, settings)
    raise ValueError(
        f"{caller}: data must be a folder of images, {', '.join(f'{name}:DIR' for name in NAMED)}, digits or "
        f"package.module:factory, got {settings.data!r}; there is no such folder"
    )


def _images(found: ImageSet, settings: Pruned) -> Loaders:
    return _loaders(found.train, found.test, settings, settings.mean or found.mean, settings.std or found.std)


def _made(parts: Any, settings: Pruned, caller: str) -> Loaders:
    """What a factory returned."""
    if isinstance(parts, ImageSet):
        return _images(parts, settings)
    if not isinstance(parts, tuple | list) or len(parts) != 2:
        raise ValueError(
            f"{caller}: data must be (train, test), got {type(parts).__name__} from "
            f"{settings.data}; return None for a test that there is not"
        )
    train, test = parts
    if _is_pair(train) and (test is None or _is_pair(test)):
        return _loaders(train, test, settings, settings.mean, settings.std)
    for word in ("mean", "std", "size", "augment"):
        if getattr(settings, word):
            got = getattr(settings, word)
            raise ValueError(
                f"{caller}: {word} must be left out where data come from loaders, got {got}; let "
                f"{settings.data} do it"
            )
    # Two of one loader: tuning sets the epoch of its own, and leaves the other's at the first.
    tuned, calibration = (repeating(train, settings.seed) for _ in range(2))
    return Loaders(tuned, calibration, None if test is None else repeating(test, settings.seed))


def _is_pair(part: Any) -> bool:
    return isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(t, Tensor) for t in part)


def _loaders(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
    settings: Pruned,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Loaders:
    channels = train[0].shape[1] if train[0].dim() == 4 else 0
    if channels and (mean or std):
        mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
    augment = crop_flip() if settings.augment else None

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        return x if mean is None or std is None else normalize(x, mean, std)

    def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
        x = transform(x, generator)
        return x if augment is None else augment(x, generator)

    def loader(part: tuple[Tensor, Tensor], change: Transform, shuffle: bool) -> TensorLoader:
        return TensorLoader(
            *part, batch_size=settings.batch_size, shuffle=shuffle, seed=settings.seed, transform=change
        )

    held_out = None if test is None else loader(test, transform, False)
    return Loaders(loader(train, augmented, True), loader(train, transform, False), held_out)


def examples(loader: Loader | None, batch_size: int) -> int:
    """How many examples there are, about; 0 where nobody knows."""
    if isinstance(loader, TensorLoader):
        return len(loader.inputs)
    return batch_size * len(loader) if isinstance(loader, Sized) else 0
