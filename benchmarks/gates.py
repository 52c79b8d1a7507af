"""What the kernels are held to, and whether a run met it. A missed gate is a finding, not a failure."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.cases import (
    CHANNEL,
    GRID,
    MEMORY,
    MOMENT,
    MOMENT_GRID,
    PATCH,
    SQUARES,
    Case,
    eigh_factors,
    eigh_stack,
)
from benchmarks.contest import Record, fastest

MOST_SHOWN = 6
Records = dict[str, Record]  # by "op: case"


@dataclass(frozen=True)
class Gate:
    """A figure of some cases and its limit.

    Attributes:
        what: the kernel and its cases.
        against: what the figure relates to.
        figure: of a record, or None where it has none.
        cases: names of records ("op: case"), each held to the limit of its place in `limits`.
        limits: one for all cases, or one for each.
        mean: hold the geometric mean instead of each case.
        at_most: the figure may not exceed the limit; else it may not fall below.
        unit: what to print behind figure and limit.
    """

    what: str
    against: str
    figure: Callable[[Record], float | None]
    cases: tuple[str, ...]
    limits: tuple[float, ...]
    mean: bool = False
    at_most: bool = False
    unit: str = "×"


@dataclass(frozen=True)
class Verdict:
    """What a run found for a gate; `met` is None where the run lacks one of its cases."""

    what: str
    against: str
    wanted: str
    measured: str
    met: bool | None


def times_faster(baseline: str) -> Callable[[Record], float | None]:
    return lambda found: found.get("times faster", {}).get(baseline)


def times_as_long(baseline: str) -> Callable[[Record], float | None]:
    return lambda found: found["ms"] / found["baselines ms"][baseline]


def times_faster_than_all(found: Record) -> float | None:
    return found["times faster"][fastest(found)] if found.get("baselines ms") else None


def field(name: str) -> Callable[[Record], float | None]:
    return lambda found: found.get(name)


def names(cases: Iterable[Case]) -> tuple[str, ...]:
    return tuple(f"{case.op}: {case}" for case in cases)


def squares(cases: Iterable[Case], least_channels: int = 0) -> tuple[str, ...]:
    """The shapes S: four stages of a network, 3×3."""
    plain = [case for case in cases if case == Case(case.op, case.shape) and case.shape in SQUARES]
    return names(case for case in plain if case.shape[1] >= least_channels)


CHANNEL_S, PATCH_S, MOMENT_S = squares(CHANNEL), squares(PATCH), squares(MOMENT)
PEAK = field("share of FMA peak")

EIGH_LIMITS = {
    "float32": {8: 8, 16: 8, 32: 6, 64: 5, 128: 3.5, 256: 2.8, 576: 1.8, 1024: 1.8},
    "float64": {8: 4, 16: 4, 32: 4, 64: 3.5, 128: 2.8, 256: 2.2, 576: 1.5},
}
EFFICIENCY = "eigh: thread efficiency"
LIBRARY = "torch.linalg.eigh, 1 thread"


def eigh_singles(sizes: Iterable[int], dtype: str) -> tuple[str, ...]:
    return tuple(f"eigh: one of {n} {dtype}" for n in sizes)


def microseconds_over_torch(found: Record) -> float | None:
    return 1e3 * (found["ms"] - found["baselines ms"]["torch"])


GATES = [
    Gate("channel covariance", "the original's im2col", times_faster("channel_im2col"), CHANNEL_S, (20,)),
    Gate(
        "channel covariance",
        "the original's im2col",
        times_faster("channel_im2col"),
        CHANNEL_S,
        (35,),
        mean=True,
    ),
    Gate("channel covariance", "fastest plain torch", times_faster_than_all, CHANNEL_S, (2.2,), mean=True),
    Gate("channel covariance", "fastest plain torch", times_faster_than_all, CHANNEL_S, (1.5,)),
    Gate("channel covariance, C ≥ 128", "FMA peak", PEAK, squares(CHANNEL, 128), (0.5,), unit=""),
    Gate("patch covariance", "GEMM form", times_faster("patch_gemm"), PATCH_S, (10,), mean=True),
    Gate("patch covariance", "GEMM form", times_faster("patch_gemm"), PATCH_S, (7,)),
    Gate(
        "patch covariance",
        "lags by conv2d_weight",
        times_faster("patch_lags"),
        PATCH_S,
        (1.8,),
        mean=True,
    ),
    Gate("patch covariance", "lags by conv2d_weight", times_faster("patch_lags"), PATCH_S, (1.2,)),
    Gate("patch covariance, grid", "fastest plain torch", times_faster_than_all, names(GRID), (1,)),
    Gate("patch covariance, C ≥ 64", "FMA peak", PEAK, squares(PATCH, 64), (0.45,), unit=""),
    Gate(
        "patch covariance",
        "memory over the output",
        field("extra MB"),
        tuple(f"memory: {case}" for case in MEMORY if case.op == "patch_covariance"),
        (48,),
        at_most=True,
        unit=" MB",
    ),
    Gate("second moment", "fastest plain torch", times_faster_than_all, MOMENT_S, (1.2, 1.2, 1.8, 4)),
    Gate("second moment, grid", "fastest plain torch", times_faster_than_all, names(MOMENT_GRID), (1,)),
    Gate("second moment", "FMA peak", PEAK, MOMENT_S, (0.6,), unit=""),
    Gate(
        "second moment",
        "memory over the output",
        field("extra MB"),
        tuple(f"memory: {case}" for case in MOMENT),
        (64,),
        at_most=True,
        unit=" MB",
    ),
    *(
        Gate(
            f"eigh, {dtype}, n = {', '.join(map(str, limits))}",
            LIBRARY,
            times_faster("torch"),
            tuple(f"eigh: {eigh_stack(n, dtype)[1]}" for n in limits),
            tuple(limits.values()),
        )
        for dtype, limits in EIGH_LIMITS.items()
    ),
    *(
        gate
        for dtype in EIGH_LIMITS
        for gate in (
            Gate(
                f"eigh, one {dtype} matrix, n = 32 … 1024",
                LIBRARY,
                times_faster("torch"),
                eigh_singles((32, 64, 128, 256, 576, 1024), dtype),
                (1,),
            ),
            Gate(
                f"eigh, one {dtype} matrix, n = 8, 16",
                f"{LIBRARY}, plus",
                microseconds_over_torch,
                eigh_singles((8, 16), dtype),
                (5,),
                at_most=True,
                unit=" µs",
            ),
        )
    ),
    *(
        Gate(
            f"eigh, factors of ResNet-32, {threads} threads",
            "torch.linalg.eigh stacked by size",
            times_faster_than_all,
            (f"eigh: {eigh_factors(threads)}",),
            (limit,),
        )
        for threads, limit in ((1, 2), (2, 3))
    ),
    Gate(
        "eigh, thread efficiency",
        "itself, 1 thread",
        field("thread efficiency"),
        (EFFICIENCY,),
        (0.8,),
        unit="",
    ),
    *(
        Gate(
            f"factor pass of wide ResNet32, {kind}",
            "its network's forward + backward",
            times_as_long("forward + backward"),
            (f"factor_pass: {kind}",),
            (limit,),
            at_most=True,
        )
        for kind, limit in (("channel", 1.0), ("patch", 1.45))
    ),
    Gate(
        "factor pass of wide ResNet32, channel and patch",
        "the original's way, curvlinops, kronfluence",
        times_faster_than_all,
        tuple(f"factor_pass: {kind}, other ways" for kind in ("channel", "patch")),
        (1,),
    ),
]


def judge(records: Sequence[Record], gates: Sequence[Gate] = GATES) -> list[Verdict]:
    """Each gate against the records of a run."""
    by_name = {f"{found['op']}: {found['case']}": found for found in records}
    one, two = (by_name.get(f"eigh: {eigh_factors(threads)}") for threads in (1, 2))
    if one and two:
        by_name[EFFICIENCY] = {"thread efficiency": one["ms"] / (2 * two["ms"])}
    return [_judge(gate, by_name) for gate in gates]


def _judge(gate: Gate, records: Records) -> Verdict:
    limits = gate.limits * len(gate.cases) if len(gate.limits) == 1 else gate.limits
    wanted = ("≤ " if gate.at_most else "≥ ") + " / ".join(f"{limit:g}" for limit in gate.limits) + gate.unit
    if gate.mean:
        wanted += " geometric mean"
    figures = [gate.figure(records[case]) if case in records else None for case in gate.cases]
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(gate.cases) or not known:
        return Verdict(gate.what, gate.against, wanted, "not run", None)
    if gate.mean:
        known, limits = [math.exp(sum(map(math.log, known)) / len(known))], gate.limits
    met = all(
        figure <= limit if gate.at_most else figure >= limit
        for figure, limit in zip(known, limits, strict=True)
    )
    shown = known
    many = len(known) > MOST_SHOWN and len(gate.limits) == 1  # the worst says all
    if many:
        shown = [max(known) if gate.at_most else min(known)]
    measured = " / ".join(f"{figure:.3g}" for figure in shown) + gate.unit
    if many:
        measured += f", the worst of {len(known)}"
    return Verdict(gate.what, gate.against, wanted, measured, met)
