"""What is done to images before a network sees them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .loader import Transform


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
        images: ``(N, C, H, W)``; uint8 stands for float32 in [0, 1], as everywhere here.
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
    if images.dtype == torch.uint8:
        images = images.float().div_(255)
    shift, scale = (
        torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (mean, std)
    )
    return (images - shift) / scale
