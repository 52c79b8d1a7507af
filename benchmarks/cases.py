"""What the kernel benchmarks run on, and how much arithmetic that needs."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A call ``op(x, kernel, stride=…, padding=…, dilation=…, groups=…)`` on ``x (N, C, H, W)``.

    For second moments the output of the convolution, and its gradient, has `outputs` channels, C where 0.
    """

    op: str
    shape: tuple[int, int, int, int]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    channels_last: bool = False
    outputs: int = 0

    def __str__(self) -> str:
        """Like "channel 64x64x32x32 3x3 stride 2"."""
        shape = "x".join(str(size) for size in self.shape)
        name = self.op.removesuffix("_covariance").removeprefix("gradient_")
        words = [name.replace("_", " "), shape, f"{self.kernel}x{self.kernel}"]
        settings = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        settings["outputs"] = self.outputs
        words += [f"{name} {value}" for name, value in settings.items() if value > 1]
        return " ".join(words + ["channels_last"] * self.channels_last)

    @property
    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    @property
    def flops(self) -> int:
        """2·(multiplications) of the least this package knows: equal products formed once, one triangle."""
        n, c, h, w = self.shape
        c //= self.groups
        rows, columns = self._products(h), self._products(w)
        if self.op == "gradient_second_moment":  # every product of a gradient and a pixel inside the image
            pairs = sum(len(self._starts(h, i)) for i in range(self.kernel))
            pairs *= sum(len(self._starts(w, j)) for j in range(self.kernel))
            return 2 * n * c * self._outputs * pairs
        if self.op == "channel_covariance":
            pixels = len(rows[0]) * len(columns[0])
            return self.groups * n * pixels * c * (c + 1)
        multiplications = len(rows[0]) * len(columns[0]) * c * (c + 1) // 2
        for down, first in rows.items():
            for right, second in columns.items():
                if (down, right) > (0, 0):
                    multiplications += len(first) * len(second) * c * c
        return 2 * self.groups * n * multiplications

    @property
    def read(self) -> int:
        """Bytes of the input, in float32."""
        outputs = self.shape[0] * self._outputs
        outputs *= self._positions(self.shape[2]) * self._positions(self.shape[3])
        return 4 * (math.prod(self.shape) + outputs * (self.op == "gradient_second_moment"))

    @property
    def written(self) -> int:
        """Bytes of the result, in float32."""
        channels, offsets = self.shape[1] // self.groups, self.kernel**2
        if self.op == "gradient_second_moment":
            return 4 * self._outputs * channels * offsets
        return 4 * self.groups * (channels * (offsets if self.op == "patch_covariance" else 1)) ** 2

    @property
    def _outputs(self) -> int:
        return self.outputs or self.shape[1]

    def _products(self, size: int) -> dict[int, set[int]]:
        """Along one axis: which pixels q meet the pixel q + lag under some window, for every lag."""
        lags: dict[int, set[int]] = {}
        for first in range(self.kernel):
            for second in range(self.kernel):
                lag = self.dilation * (second - first)
                inside = {q for q in self._starts(size, first) if 0 <= q + lag < size}
                lags.setdefault(lag, set()).update(inside)
        return lags

    def _positions(self, size: int) -> int:
        return (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def _starts(self, size: int, offset: int) -> list[int]:
        """The pixels that one kernel offset reads along an axis."""
        first = self.dilation * offset - self.padding
        read = (self.stride * t + first for t in range(self._positions(size)))
        return [q for q in read if 0 <= q < size]


SQUARES = ((64, 64, 32, 32), (64, 128, 16, 16), (64, 256, 8, 8), (64, 512, 4, 4))

CHANNEL = [Case("channel_covariance", shape) for shape in SQUARES] + [
    Case("channel_covariance", SQUARES[0], channels_last=True),
    Case("channel_covariance", (64, 3, 32, 32)),
    Case("channel_covariance", (64, 16, 32, 32)),
    Case("channel_covariance", SQUARES[0], stride=2),
]
PATCH = [Case("patch_covariance", shape) for shape in SQUARES] + [
    Case("patch_covariance", SQUARES[0], channels_last=True),
    Case("patch_covariance", (64, 3, 32, 32)),
    Case("patch_covariance", (64, 16, 32, 32)),
    Case("patch_covariance", SQUARES[0], stride=2),
    Case("patch_covariance", SQUARES[1], dilation=2, padding=2),
    Case("patch_covariance", (64, 64, 16, 16), kernel=5, padding=2),
    Case("patch_covariance", (64, 64, 32, 32), groups=64),
]
# (N, C, H, W), kernel, stride, padding, dilation, groups: patch covariance over what layers there are.
_GRID = (
    # first layers and small images
    ((64, 3, 32, 32), 3, 1, 1, 1, 1),
    ((64, 3, 32, 32), 5, 1, 2, 1, 1),
    ((64, 3, 32, 32), 3, 2, 1, 1, 1),
    ((8, 3, 64, 64), 7, 2, 3, 1, 1),
    ((2, 3, 112, 112), 7, 2, 3, 1, 1),
    ((4, 3, 96, 96), 4, 4, 0, 1, 1),
    ((64, 1, 28, 28), 3, 1, 1, 1, 1),
    ((64, 1, 28, 28), 5, 1, 0, 1, 1),
    ((64, 1, 28, 28), 7, 3, 3, 1, 1),
    ((2, 1, 28, 28), 5, 1, 2, 1, 1),
    ((2, 2, 8, 8), 3, 1, 1, 1, 1),
    ((2, 4, 4, 4), 3, 1, 1, 1, 1),
    # few channels
    ((16, 8, 32, 32), 3, 1, 1, 1, 1),
    ((16, 8, 32, 32), 3, 2, 1, 1, 1),
    ((64, 16, 32, 32), 3, 1, 1, 1, 1),
    ((64, 16, 32, 32), 3, 2, 1, 1, 1),
    ((64, 16, 32, 32), 1, 1, 0, 1, 1),
    ((64, 16, 32, 32), 1, 2, 0, 1, 1),
    ((16, 16, 32, 32), 5, 1, 2, 1, 1),
    ((16, 16, 32, 32), 3, 1, 2, 2, 1),
    ((16, 20, 16, 16), 3, 1, 1, 1, 1),
    ((32, 24, 14, 14), 5, 2, 2, 1, 1),
    # the middle of a network
    ((32, 32, 16, 16), 3, 1, 1, 1, 1),
    ((64, 32, 16, 16), 3, 2, 1, 1, 1),
    ((64, 32, 16, 16), 2, 2, 0, 1, 1),
    ((16, 32, 16, 16), 7, 1, 3, 1, 1),
    ((64, 32, 8, 8), 3, 3, 0, 1, 1),
    ((16, 48, 14, 14), 3, 1, 1, 1, 1),
    ((64, 64, 8, 8), 3, 1, 1, 1, 1),
    ((64, 64, 16, 16), 1, 1, 0, 1, 1),
    ((32, 64, 16, 16), 1, 2, 0, 1, 1),
    ((32, 64, 16, 16), 3, 2, 1, 1, 1),
    ((16, 64, 16, 16), 3, 1, 2, 2, 1),
    ((16, 64, 16, 16), 3, 2, 2, 2, 1),
    ((16, 64, 14, 14), 5, 1, 2, 1, 1),
    ((2, 64, 32, 32), 3, 1, 1, 1, 1),
    ((4, 96, 14, 14), 3, 3, 1, 1, 1),
    ((64, 100, 4, 4), 3, 1, 0, 1, 1),
    # many channels
    ((64, 128, 8, 8), 3, 1, 1, 1, 1),
    ((32, 128, 8, 8), 3, 2, 1, 1, 1),
    ((2, 128, 8, 8), 3, 1, 1, 1, 1),
    ((16, 128, 8, 8), 2, 1, 0, 1, 1),
    ((8, 128, 7, 7), 5, 1, 2, 1, 1),
    ((16, 256, 8, 8), 1, 1, 0, 1, 1),
    ((64, 256, 8, 8), 1, 2, 0, 1, 1),
    ((8, 256, 8, 8), 3, 1, 1, 1, 1),
    ((32, 256, 4, 4), 3, 2, 1, 1, 1),
    ((8, 512, 7, 7), 1, 1, 0, 1, 1),
    ((64, 512, 4, 4), 3, 2, 1, 1, 1),
    ((2, 512, 4, 4), 3, 1, 1, 1, 1),
    # groups and depthwise
    ((64, 64, 16, 16), 3, 1, 1, 1, 2),
    ((32, 64, 16, 16), 3, 2, 1, 1, 4),
    ((16, 128, 14, 14), 3, 1, 1, 1, 32),
    ((16, 128, 14, 14), 3, 1, 2, 2, 8),
    ((8, 256, 8, 8), 1, 1, 0, 1, 4),
    ((16, 32, 32, 32), 3, 1, 1, 1, 32),
    ((16, 96, 14, 14), 3, 2, 1, 1, 96),
    ((16, 48, 14, 14), 5, 1, 2, 1, 48),
    ((2, 512, 4, 4), 3, 1, 1, 1, 512),
    ((8, 64, 16, 16), 7, 1, 3, 1, 64),
)
GRID = [Case("patch_covariance", *row) for row in _GRID]

MOMENT = [Case("gradient_second_moment", shape) for shape in SQUARES]
# As _GRID, and outputs: second moments of first layers, few channels, groups and depthwise, strides.
_MOMENT_GRID = (
    ((8, 3, 112, 112), 7, 2, 3, 1, 1, 64),
    ((64, 3, 32, 32), 3, 1, 1, 1, 1, 64),
    ((64, 1, 28, 28), 5, 1, 2, 1, 1, 32),
    ((64, 16, 32, 32), 3, 1, 1, 1, 1, 16),
    ((64, 64, 32, 32), 1, 1, 0, 1, 1, 64),
    ((64, 64, 32, 32), 1, 2, 0, 1, 1, 128),
    ((64, 64, 32, 32), 3, 2, 1, 1, 1, 128),
    ((32, 512, 7, 7), 3, 1, 1, 1, 1, 512),
    ((2, 64, 32, 32), 3, 1, 1, 1, 1, 64),
    ((64, 128, 16, 16), 3, 1, 1, 1, 32, 128),
    ((64, 64, 32, 32), 3, 1, 1, 1, 64, 64),
    ((16, 96, 56, 56), 3, 2, 1, 1, 96, 96),
    ((64, 256, 8, 8), 3, 1, 1, 1, 256, 256),
)
MOMENT_GRID = [
    Case("gradient_second_moment", *row, outputs=outputs)
    for *row, outputs in _MOMENT_GRID  # type: ignore[arg-type]
]
MEMORY = [Case("patch_covariance", SQUARES[0]), Case("patch_covariance", (512, 64, 32, 32)), *MOMENT]


def eigh_stack(n: int, dtype: str) -> tuple[int, str]:
    """How many matrices of a size are solved at a time, and what to call that."""
    count = max(1, min(1000, 20_000_000 // n**3))
    return count, f"{count} of {n} {dtype}"


def eigh_factors(threads: int) -> str:
    """What to call all factors of ResNet-32 in one call."""
    return f"factors of ResNet-32, {threads} threads"
