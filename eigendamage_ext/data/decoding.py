"""Image files as one array of pixels, by Pillow."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAX_PIXELS = 2**26  # of one image as stored: a small file can stand for a very large one
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # of 8 bits; Pillow cuts deeper ones off


def check_pillow(function: str) -> None:
    """Raises ImportError where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{function}: Pillow must be installed to decode images; pip install "eigendamage-ext[demo]"'
        ) from error


def decode(
    function: str,
    images: Iterable[tuple[str, Path | BinaryIO]],
    count: int,
    *,
    size: int | tuple[int, int] | None,
    formats: tuple[str, ...],
) -> np.ndarray:
    """Images in colour, their transparency and orientation tags ignored.

    Args:
        function: Who asks, for errors.
        images: What each is called in errors, and where it is.
        count: How many there are, at least 1.
        size: Height and width, or one number for both: each image is scaled until it covers them (bilinear,
            antialiased), and its middle taken. None takes images of one size as they are.
        formats: Pillow's names of the formats to accept.

    Returns:
        uint8 ``(count, 3, H, W)``, of which the channels lie together.

    Raises:
        ValueError: An image is damaged, of another format, larger than `MAX_PIXELS`, of more than 8 bits, or
            of another size than the first.
    """
    from PIL import Image, ImageOps

    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and (len(shape) != 2 or min(shape) < 1):
        raise ValueError(f"{function}: size must be one or two positive numbers, got {size}; e.g. 64")
    pixels: np.ndarray | None = None
    for row, (name, source) in enumerate(images):
        try:
            with Image.open(source, formats=formats) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(f"{file.width} × {file.height} pixels, more than {MAX_PIXELS}")
                if file.mode not in MODES:
                    raise ValueError(f"one of mode {file.mode}; convert it to 8 bits a channel")
                # By way of RGBA: Pillow warns where it drops the transparency of a palette.
                image = (file.convert("RGBA") if file.mode in ("P", "PA") else file).convert("RGB")
                if shape is not None:
                    image = ImageOps.fit(image, shape[::-1], Image.Resampling.BILINEAR)
                decoded = np.asarray(image)
        except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
            raise ValueError(
                f"{function}: {name} must be a {' or '.join(formats)} image, got {error}"
            ) from error
        if pixels is None:
            pixels = np.empty((count, *decoded.shape), np.uint8)
        if decoded.shape != pixels.shape[1:]:
            raise ValueError(
                f"{function}: images must be of one size, got {decoded.shape[:2]} for {name} "
                f"after {pixels.shape[1:3]}; pass size="
            )
        pixels[row] = decoded
    assert pixels is not None
    return pixels.transpose(0, 3, 1, 2)
