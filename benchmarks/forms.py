"""What half the FLOPs of a 3×3 convolution are worth in time, by the form that the layer takes.

    python -m benchmarks.forms [--seconds S]

Prints docs/method.md's table: a square layer of 64 to 512 channels with no more than half its FLOPs left, as
three factors, as two, and with fewer filters on both sides, each against the dense layer in the same rounds;
and three factors of the next width that is a multiple of 16, which cost more FLOPs.
It is the CPU time of one thread that counts, which other processes disturb little.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import cost, factorize

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, side of the image
BATCHES = (64, 1)
WAYS = ("dense", "both", "both, next 16", "input", "output", "fewer filters")
LEAST_ROUNDS = 15


def layer(way: str, channels: int, side: int) -> tuple[nn.Module, int, int]:
    """A layer with the most directions or filters that half the FLOPs allow.

    Args:
        way: One of `WAYS`; "next 16": as many more as make their number a multiple of 16.
        channels: Of the dense layer, in and out.
        side: Of the image.

    Returns:
        The layer, its input channels, and how many directions or filters of a side are left.
    """
    dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    if way == "dense":
        return dense, channels, channels
    spec, form = LayerSpec.of("", dense), way.split(",")[0]
    if form == "fewer filters":
        width = max(r for r in range(1, channels) if 2 * r * r <= channels * channels)
        return nn.Conv2d(width, width, 3, padding=1, bias=False), width, width

    def flops(form: str, rank: int) -> int:
        return cost(spec, form, rank, rank, side * side, side * side).flops

    half = flops("dense", 0) // 2
    rank = max(r for r in range(1, channels) if flops(form, r) <= half)
    if "next" in way:
        rank += -rank % 16
    basis = torch.linalg.qr(torch.randn(1, channels, channels, dtype=torch.float64)).Q[:, :, :rank]
    sides = {"both": (basis, basis), "input": (basis, None), "output": (None, basis)}
    return factorize(dense, *sides[form]), channels, rank


def seconds(module: nn.Module, x: Tensor) -> float:
    """CPU time of a call."""
    start = time.process_time()
    module(x)
    return time.process_time() - start


def measure(channels: int, side: int, batch: int, budget: float) -> dict[str, tuple[int, float]]:
    """Directions or filters left and median seconds of each way, timed in turn for about `budget` seconds."""
    ways = {way: layer(way, channels, side) for way in WAYS}
    runs = [(module, torch.randn(batch, width, side, side)) for module, width, _ in ways.values()]
    warm = min(sum(seconds(*run) for run in runs) for _ in range(3))
    times = [[seconds(*run) for run in runs] for _ in range(max(LEAST_ROUNDS, int(budget / warm)))]
    medians = map(median, zip(*times, strict=True))
    return {way: (left, taken) for (way, (_, _, left)), taken in zip(ways.items(), medians, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a 3x3 convolution in every form at half its FLOPs.")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each shape and batch")
    budget = parser.parse_args().seconds
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"| N | layer | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}")
    with torch.no_grad():
        for batch in BATCHES:
            for channels, side in SHAPES:
                found = measure(channels, side, batch, budget)
                base = found["dense"][1]
                cells = [f"{base * 1e3:.2f} ms"]
                cells += [f"{base / taken:.2f}× ({left})" for left, taken in list(found.values())[1:]]
                print(f"| {batch} | {channels}, {side}² | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
