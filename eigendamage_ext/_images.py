"""Tensors of rows, seen as the images ``(N, C, H, W)`` that kernels read."""

from torch import Tensor


def positions_as_pixels(x: Tensor) -> Tensor:
    """``(N, …, F)`` as ``(N, F, H, W)`` whose pixels are what lies between."""
    if x.dim() > 4:
        x = x.flatten(1, -2)
    while x.dim() < 4:
        x = x.unsqueeze(1)
    return x.movedim(-1, 1)
