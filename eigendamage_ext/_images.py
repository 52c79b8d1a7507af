"""Tensors of rows, seen as the images ``(N, C, H, W)`` that kernels read."""

from torch import Tensor


def positions_as_pixels(x: Tensor) -> Tensor:
    """``(N, …, F)`` as ``(N, F, H, W)`` whose pixels are what lies between."""
    if x.dim() > 4:
        x = x.flatten(1, -2)
    while x.dim() < 4:
        x = x.unsqueeze(1)
    return x.movedim(-1, 1)


def rows_as_pixels(x: Tensor, feature_dim: int) -> Tensor:
    """``(N, F, H, W)`` whose positions are the rows of x; a copy only where three strides are too few."""
    sizes, strides = list(x.shape), list(x.stride())
    features, feature_stride = sizes.pop(feature_dim), strides.pop(feature_dim)
    if 0 in sizes:
        return x.new_empty((0, features, 1, 1))
    rows: list[tuple[int, int]] = []  # (stride, size), outermost first; what continues its neighbour joins it
    for stride, size in sorted(zip(strides, sizes, strict=True), reverse=True):
        if size > 1 and rows and rows[-1][0] == size * stride:
            rows[-1] = (stride, rows[-1][1] * size)
        elif size > 1:
            rows.append((stride, size))
    if len(rows) > 3:
        return x.movedim(feature_dim, -1).reshape(-1, features)[:, :, None, None]
    single = (0, 1)
    if len(rows) == 2:
        rows.insert(1, single)
    elif len(rows) == 1 and rows[0][0] >= feature_stride:
        rows += [single, single]  # a batch of single pixels
    batch, height, width = [single] * (3 - len(rows)) + rows
    shape = (batch[1], features, height[1], width[1])
    return x.as_strided(shape, (batch[0], feature_stride, height[0], width[0]), x.storage_offset())
