"""What a command asks of its device: whether it can work there, what it is called, how fast networks are."""

import platform
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from . import ops
from ._adapter import Inputs, call, named_tensors
from ._timing import in_turn


def problem(device: str) -> str | None:
    """What is wrong with a device and what to do, ``"got …; …"``; None if kernels run there."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        return f"got {device!r}; use cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        return f"got {device!r} where PyTorch finds no GPU; use cpu"
    if kind == "cuda" and not ops.build_info()["cuda"]:
        return (
            f"got {device!r}, for which the kernels were not compiled; run `EIGENDAMAGE_CUDA=1 make build` "
            "where nvcc is installed, or use cpu"
        )
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        return f"got {device!r}; use cpu"
    return None if kind in ("cpu", "cuda") else f"got {device!r}, for which there are no kernels; use cpu"


def name(device: str) -> str:
    """What the device is called by its maker."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def milliseconds(
    networks: Sequence[nn.Module], batch: Inputs, repeats: int, *, autocast: torch.dtype | None = None
) -> list[float]:
    """Median time of a forward pass per network; they take turns, so that a slow moment hits them all.

    Args:
        networks: In eval mode, on the device of the batch.
        batch: Their inputs: a tensor, a tuple of arguments or a mapping.
        repeats: Passes of each, after one that warms up.
        autocast: Run them under `torch.autocast` with this dtype.
    """
    device = next(named_tensors(batch))[1].device
    half = torch.autocast(device.type, autocast) if autocast else nullcontext()
    with torch.inference_mode(), half:
        times = in_turn(
            [partial(call, network, batch) for network in networks], repeats + 1, partial(wait, device)
        )
    return [1000 * median(record[1:]) for record in times]


def wait(device: torch.device) -> None:
    """Returns when all that the device was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
