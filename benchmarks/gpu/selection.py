"""Every operator on a few small inputs, compared on the CPU: what runs under compute-sanitizer.

    python -m benchmarks.gpu.selection [--device cuda]

No other kernels run on the GPU, which would take their time there.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext import ops, reference

CONVOLUTIONS: list[tuple[tuple[int, ...], int, dict[str, Any]]] = [
    ((3, 5, 9, 8), 3, {"padding": 1}),
    ((2, 70, 6, 5), 3, {"padding": 1}),
    ((2, 12, 9, 8), 3, {"padding": 1, "stride": 2, "groups": 3}),
    ((2, 3, 17, 16), 7, {"padding": 3, "stride": 2}),
]
ROWS = [(70, 33), (5, 3, 17)]
SIZES = (1, 2, 5, 16, 31, 32, 33, 50, 64)


def calls() -> Iterator[tuple[str, tuple[Tensor, ...], dict[str, Any]]]:
    """An operator's name, its tensors, and what else it takes."""
    for shape, kernel, settings in CONVOLUTIONS:
        x = torch.randn(shape)
        stride, padding = settings.get("stride", 1), settings["padding"]
        g = torch.randn(shape[0], 6, *((n + 2 * padding - kernel) // stride + 1 for n in shape[2:]))
        more = settings | {"kernel_size": kernel}
        for dtype, memory_format in itertools.product(
            (torch.float32, torch.bfloat16), (torch.contiguous_format, torch.channels_last)
        ):
            cast, gradient = (t.to(dtype).contiguous(memory_format=memory_format) for t in (x, g))
            yield "channel_covariance", (cast,), more
            yield "patch_covariance", (cast,), more
            yield "gradient_second_moment", (cast, gradient), more
    for shape in ROWS:
        x = torch.randn(shape)
        yield "covariance", (x,), {"bias": True}
        yield "gradient_second_moment", (x, torch.randn(*shape[:-1], 10)), {}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.selection", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    torch.manual_seed(0)
    count = 0
    for op, tensors, settings in calls():
        found = getattr(ops, op)(*(tensor.to(device) for tensor in tensors), **settings)
        expected = getattr(reference, op)(*tensors, **settings)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
        count += 1
    matrices = [torch.randn(n, n) for n in SIZES]
    matrices = [matrix @ matrix.T for matrix in matrices]
    values, vectors, info = ops.eigh([matrix.to(device) for matrix in matrices], errors="info")
    assert not info.cpu().any()
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        lam, v = lam.cpu(), v.cpu()
        torch.testing.assert_close(v * lam @ v.T, matrix, rtol=1e-4, atol=1e-4 * len(matrix))
    print(f"{count + len(SIZES)} results are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
