"""What a GPU gives at most, by torch's own copies and products: the floor under every kernel's time."""

from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import elapsed

COPY = 1 << 30  # bytes
SIDES = {"bfloat16": 8192, "float16": 8192, "tf32": 8192, "float32": 4096, "float64": 4096}  # of matrices
SMALL = 64  # divides them all on a CPU, which only shows that this runs


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device.

    Attributes:
        copy: bytes per second of a copy, those read and those written.
        products: FLOP/s of large matrix products, by type; "tf32" too.
        launch: seconds from one small kernel to the next.
    """

    copy: float
    products: dict[str, float]
    launch: float

    def arithmetic(self, dtype: torch.dtype) -> float:
        """FLOP/s as accurate as the type: floats by the multipliers, or by three products of TF32."""
        if dtype == torch.float32:
            return max(self.products["float32"], self.products["tf32"] / 3)
        return self.products[str(dtype).removeprefix("torch.")]

    def floor(self, flops: float, moved: float, dtype: torch.dtype) -> float:
        """Seconds that so many operations or bytes take at least."""
        return max(flops / self.arithmetic(dtype), moved / self.copy)


def probe(device: str) -> Ceilings:
    """Medians of some seconds altogether."""
    shrink = SMALL if device == "cpu" else 1
    products = {name: product_rate(name, side // shrink, device) for name, side in SIDES.items()}
    one = torch.zeros(1, device=device)
    launch = elapsed(lambda: one.add_(1), device, repeats=1000 // shrink)
    return Ceilings(copy_rate(COPY // shrink, device), products, launch)


def copy_rate(size: int, device: str) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / elapsed(lambda: target.copy_(source), device)


def product_rate(name: str, side: int, device: str) -> float:
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        return 2 * side**3 / elapsed(lambda: a @ b, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
