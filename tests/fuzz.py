"""Random eigenproblems and convolutions against float64.

    make fuzz ARGS='[--eigh 100000] [--convolutions 2000] [--seed S] [--only eigh:17]'

A case is made from the seed, its kind and its number alone; the line printed for one that fails repeats it.
"""

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from accuracy import assert_accurate
from cases import DTYPES, LAYOUTS
from eigenproblems import assert_decomposition
from torch import Tensor

from eigendamage_ext import ops, reference

LIST = 50  # eigenproblems solved in one call
REPEATS = 15  # of a convolution that does not seem accurate enough


def generator(seed: int, kind: str, number: int) -> tuple[random.Random, torch.Generator]:
    draw = random.Random(f"{seed}/{kind}/{number}")
    return draw, torch.Generator().manual_seed(draw.getrandbits(63))


def random_spectrum(draw: random.Random, n: int, rng: torch.Generator) -> Tensor:
    """Spread over decades, in ties, in clusters, with zeros, or of both signs."""
    u = torch.rand(n, generator=rng, dtype=torch.float64)
    shape = draw.choice(["decades", "ties", "cluster", "zeros", "signs"])
    if shape == "decades":
        return 10 ** (-draw.uniform(0, 16) * u)
    if shape == "ties":
        return (u * draw.randint(1, 4)).round()
    if shape == "cluster":
        return 1 + 10 ** -draw.uniform(1, 9) * u
    return u * (u > draw.random()) if shape == "zeros" else (u - 0.5).sign()


def random_matrix(draw: random.Random, rng: torch.Generator) -> Tensor:
    """Symmetric ``(n, n)`` in float64: of a random family, spoilt at random by zeros and scales."""
    n = draw.randint(1, 20) if draw.random() < 0.7 else draw.randint(1, 80)
    normal = torch.randn(n, n, generator=rng, dtype=torch.float64)
    family = draw.choice(["covariance", "spectrum", "normal", "integers", "tridiagonal", "constant"])
    if family == "covariance":
        rows = normal[: draw.randint(1, n)] * torch.logspace(0, -draw.uniform(0, 6), n, dtype=torch.float64)
        matrix = rows.T @ rows
    elif family == "spectrum":
        q = torch.linalg.qr(normal).Q
        matrix = (q * random_spectrum(draw, n, rng)) @ q.T
    elif family == "integers":
        matrix = (2 * normal).round()
    elif family == "tridiagonal":
        matrix = normal.tril(0).triu(-1) * 10 ** -draw.uniform(0, 10)
    else:
        matrix = normal if family == "normal" else torch.full_like(normal, normal[0, 0].item())
    if draw.random() < 0.3:
        matrix = matrix * (torch.rand(n, n, generator=rng) < draw.random())
    if draw.random() < 0.2:
        scale = torch.logspace(0, -draw.uniform(0, 12), n, dtype=torch.float64)
        matrix = scale[:, None] * matrix * scale
    if draw.random() < 0.2:
        matrix = matrix * 10 ** draw.uniform(-36, 33)
    return matrix.tril() + matrix.tril(-1).T


def fuzz_eigh(draw: random.Random, rng: torch.Generator) -> None:
    matrices = []
    for _ in range(LIST):
        matrix = random_matrix(draw, rng).to(draw.choice([torch.float32, torch.float64]))
        matrices.append(draw.choice([matrix, matrix.T, matrix.repeat(1, 2)[:, : len(matrix)]]))
    values, vectors, _ = ops.eigh(matrices)
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert_decomposition(matrix, lam, v)


def random_convolution(draw: random.Random) -> tuple[list[int], tuple[int, int], dict[str, Any]]:
    """Shape of x, kernel size and keyword arguments of a convolution whose window fits."""
    groups = draw.choice([1, 1, 1, 2, 3])
    channels = groups * draw.choice([1, 2, 3, 5, 8, 17, 33])
    while True:
        kernel, stride, dilation, padding = (
            (draw.randint(low, high), draw.randint(low, high))
            for low, high in ((1, 5), (1, 3), (1, 3), (0, 4))
        )
        height, width = draw.randint(1, 20), draw.randint(1, 20)
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if reach[0] <= height + 2 * padding[0] and reach[1] <= width + 2 * padding[1]:
            shape = [draw.randint(1, 6), channels, height, width]
            settings = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
            return shape, kernel, settings


def fuzz_convolution(draw: random.Random, rng: torch.Generator) -> None:
    shape, kernel, settings = random_convolution(draw)
    scale, offset = 10 ** draw.uniform(-3, 3), draw.choice([0.0, 0.0, 1.0])
    layout, dtype = LAYOUTS[draw.choice(list(LAYOUTS))], draw.choice(DTYPES)
    positions = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, d, p in zip(
            shape[2:], kernel, settings["stride"], settings["dilation"], settings["padding"], strict=True
        )
    ]
    outputs = settings["groups"] * draw.choice([1, 2, 5, 9])
    settings["reduction"] = draw.choice(["mean", "sum"])
    bias = {"bias": draw.random() < 0.5}

    def results(op: str, inputs: int, extra: dict[str, bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Ours, plain and exact, of new random numbers."""
        x = layout((torch.randn(shape, generator=rng) * scale + offset).to(dtype))
        g = torch.randn(shape[0], outputs, *positions, generator=rng).to(dtype)
        tensors, twin = (x, g)[:inputs], getattr(reference, op)
        return (
            getattr(ops, op)(*tensors, kernel, **settings, **extra),
            twin(*tensors, kernel, **settings, **extra),
            twin(*(t.double() for t in tensors), kernel, **settings, **extra),
        )

    for op, inputs, extra in (
        ("gradient_second_moment", 2, {}),
        ("channel_covariance", 1, {}),
        ("patch_covariance", 1, bias),
    ):
        first = results(op, inputs, extra)
        try:
            assert_accurate(*first)
        except AssertionError:  # one number of plain PyTorch's may be right by luck, many are not
            more = [results(op, inputs, extra) for _ in range(REPEATS)]
            assert_accurate(*map(torch.stack, zip(first, *more, strict=True)))


KINDS: dict[str, tuple[Callable[[random.Random, torch.Generator], None], int]] = {
    "eigh": (fuzz_eigh, LIST),
    "convolution": (fuzz_convolution, 1),
}


def run(kind: str, number: int, seed: int) -> None:
    """Run one case; the error of one that fails begins with the command that repeats it."""
    try:
        KINDS[kind][0](*generator(seed, kind, number))
    except Exception as error:
        raise AssertionError(f"make fuzz ARGS='--seed {seed} --only {kind}:{number}'\n{error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--eigh", type=int, default=100_000, help="eigenproblems")
    parser.add_argument("--convolutions", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--only", help="one case, as kind:number")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    if arguments.only:
        kind, number = arguments.only.split(":")
        run(kind, int(number), arguments.seed)
        print("passed")
        return
    for kind, wanted in (("eigh", arguments.eigh), ("convolution", arguments.convolutions)):
        each, start = KINDS[kind][1], time.perf_counter()
        cases = -(-wanted // each)
        for number in range(cases):
            run(kind, number, arguments.seed)
            if (number + 1) % max(1, cases // 20) == 0:
                done, taken = (number + 1) * each, time.perf_counter() - start
                print(f"{kind}: {done:,} of {cases * each:,} passed, {taken:.0f} s", flush=True)


if __name__ == "__main__":
    main()
