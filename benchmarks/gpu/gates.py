"""What the CUDA kernels are held to."""

import torch

from benchmarks.cases import Case
from benchmarks.contest import Record
from benchmarks.gates import Gate, field, names, times_as_long, times_faster, times_faster_than_all
from benchmarks.gpu.cases import (
    BATCHES,
    COMPILED,
    EIGH_FACTORS,
    EIGH_MIXED,
    LAYERS,
    NETWORKS,
    OPS,
    STACKS,
    eigh_name,
)

CHANNEL, PATCH, MOMENT = (names([Case(op, (BATCHES[0], *LAYERS[0]))]) for op in OPS)
AGAINST_COMPILED = tuple(
    f"{op}: {Case(op, (batch, *LAYERS[0]))}, compiled" for op, (batch, _) in COMPILED.items()
)


def microseconds(found: Record) -> float:
    us: float = found["us"]["median"]
    return us


GPU_GATES = [
    Gate("channel covariance", "memory", field("share of floor"), CHANNEL, (0.5,), unit=""),
    Gate("patch covariance", "strided unfold + mm", times_faster("patch_gemm"), PATCH, (4,)),
    Gate("patch covariance", "lags through cuDNN", times_faster("patch_lags"), PATCH, (1.5,)),
    Gate(
        "channel and patch covariance, second moment",
        "fastest plain torch",
        times_faster_than_all,
        (*CHANNEL, *PATCH, *MOMENT),
        (1,),
    ),
    Gate(
        "channel and patch covariance, second moment",
        "fastest plain torch, compiled",
        times_faster_than_all,
        AGAINST_COMPILED,
        (1,),
    ),
    Gate(
        "patch covariance, second moment",
        "memory over the output",
        field("extra MB"),
        (*PATCH, *MOMENT),
        (64,),
        at_most=True,
        unit=" MB",
    ),
    Gate(
        "eigh, 64 of 1 to 32",
        "time",
        microseconds,
        (f"eigh: {EIGH_MIXED}",),
        (100,),
        at_most=True,
        unit=" µs",
    ),
    Gate(
        "eigh, stacks of one size",
        "torch.linalg.eigh",
        times_faster("torch stacked"),
        tuple(f"eigh: {eigh_name(n, count, torch.float32)}" for n, count in STACKS.items()),
        (0.95,),
    ),
    Gate(
        "eigh, factors of ResNet-32",
        "torch.linalg.eigh stacked by size",
        times_faster("torch stacked"),
        (f"eigh: {EIGH_FACTORS}",),
        (1,),
    ),
    *(
        Gate(
            f"factor pass of {network}, {kind}",
            "its forward + backward",
            times_as_long("forward + backward"),
            (f"factor_pass: {network}, {kind}, its network",),
            (1.5,),
            at_most=True,
        )
        for network in NETWORKS
        for kind in ("channel", "patch")
    ),
]
