"""What the machine gives at most, measured beside the kernels: no kernel can be faster than its floor."""

import ctypes
import functools
import hashlib
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

SOURCE = Path(__file__).with_suffix(".cpp")
BUILD = SOURCE.parents[1] / "build"
# Not -ffast-math: the chains must stay as they are written, only fused.
FLAGS = "-std=gnu++20 -O3 -march=native -ffp-contract=fast -shared -fPIC -pthread".split()
ROUNDS = 1_000_000  # about 5 ms
SPIN = 0.02  # OpenMP's threads keep their cores busy so long after their last work, in seconds
BUFFER = 256 << 20  # larger than caches
RATE = ctypes.c_double


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled probes."""
    compiler = os.environ.get("CXX", "c++")
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:12]
    target = BUILD / f"probes-{name}.so"
    if not target.exists():
        BUILD.mkdir(exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(partial)], check=True)
        partial.replace(target)
    loaded = ctypes.CDLL(str(target))
    for probe in ("float_rate", "double_rate", "read_rate", "write_rate", "copy_rate"):
        getattr(loaded, probe).restype = RATE
    return loaded


def multiply_adds(threads: int, dtype: torch.dtype = torch.float32, rounds: int = ROUNDS) -> float:
    """FLOP/s of multiply-adds that never leave the registers."""
    time.sleep(SPIN)
    probe = library().double_rate if dtype == torch.float64 else library().float_rate
    rate: float = probe(ctypes.c_int(threads), ctypes.c_int64(rounds))
    return rate


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second from and to memory; of a copy, each byte counts once."""

    read: float
    write: float
    copy: float


@functools.cache
def bandwidth(threads: int, size: int = BUFFER, repeats: int = 5) -> Bandwidth:
    """Median rates over buffers of `size` bytes that caches do not hold."""
    source, target = (np.ones(size, dtype=np.uint8) for _ in range(2))
    count, length = ctypes.c_int(threads), ctypes.c_int64(source.nbytes)
    a, b = (ctypes.c_void_p(buffer.ctypes.data) for buffer in (source, target))
    probes = library()
    time.sleep(SPIN)
    rates = [
        (
            probes.read_rate(count, a, length),
            probes.write_rate(count, b, length),
            probes.copy_rate(count, a, b, length),
        )
        for _ in range(repeats)
    ]
    return Bandwidth(*(statistics.median(column) for column in zip(*rates, strict=True)))


def main() -> None:
    for threads in sorted({1, torch.get_num_threads()}):
        single, double = (multiply_adds(threads, dtype) / 1e9 for dtype in (torch.float32, torch.float64))
        rates = bandwidth(threads)
        print(
            f"{threads} threads: {single:.0f} GFLOP/s in float32, {double:.0f} in float64; "
            f"GB/s read {rates.read / 1e9:.1f}, written {rates.write / 1e9:.1f}, "
            f"copied {rates.copy / 1e9:.1f}"
        )


if __name__ == "__main__":
    main()
