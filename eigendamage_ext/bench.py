"""The kernels against plain PyTorch on this machine, in under a minute.

Each case is computed by the kernel and by its plain twin in `reference`, compared in float64, then timed in
turn. The repository's benchmarks hold the kernels against faster ways too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from torch import Tensor

from . import ops, reference
from ._timing import in_turn

SECONDS = 2.0  # for one case
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
BAR = 24  # characters
TOLERANCE = 1e-4

Run = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One call of a kernel and of its twin.

    Attributes:
        kernel: its name in `ops`.
        shape: what it works on, in words.
        ours: calls the kernel.
        plain: calls the twin on the same data.
        exact: calls the twin in float64.
        compare: what of a result is compared; eigenvectors may differ, what they rebuild may not.
    """

    kernel: str
    shape: str
    ours: Run
    plain: Run
    exact: Run
    compare: Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True)
class Result:
    """Median seconds of a case."""

    case: Case
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        """How many times faster the kernel is."""
        return self.plain / self.ours


def cases(batch: int = 64, scale: int = 1) -> Iterator[Case]:
    """What is measured, made one at a time.

    Args:
        batch: images.
        scale: divides channels and matrix sizes, for a quick look.
    """
    shapes = [(channels // scale, side) for channels, side in ((64, 32), (256, 8))]
    for op in ("channel_covariance", "patch_covariance"):
        for channels, side in shapes:
            x = torch.randn(batch, channels, side, side)
            yield _case(op, f"{batch}×{channels}×{side}×{side}, 3×3", (x,), kernel_size=3, padding=1)
    if hasattr(ops, "gradient_second_moment"):
        for channels, side in shapes:
            x, g = (torch.randn(batch, channels, side, side) for _ in range(2))
            shape = f"{batch}×{channels}×{side}×{side}, 3×3"
            yield _case("gradient_second_moment", shape, (x, g), kernel_size=3, padding=1)
    for count, size in ((2048, 16), (256, 64), (8, 256)):
        size = max(2, size // scale)
        count = max(1, count // scale)
        rows = torch.randn(count, size, 2 * size)
        matrices = rows @ rows.mT / (2 * size)
        yield _case("eigh", f"{count} of {size}×{size}", (matrices,))


def _case(kernel: str, shape: str, inputs: tuple[Tensor, ...], **settings: Any) -> Case:
    op, twin = getattr(ops, kernel), getattr(reference, kernel)
    return Case(
        kernel,
        shape,
        ours=lambda: op(*inputs, **settings),
        plain=lambda: twin(*inputs, **settings),
        exact=lambda: twin(*(x.double() for x in inputs), **settings),
        compare=_spectrum if kernel == "eigh" else lambda result: (result,),
    )


def _spectrum(result: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    values, vectors, _ = result
    return values, (vectors * values[..., None, :]) @ vectors.mT


def check(case: Case) -> None:
    """Compare the kernel with its twin in float64.

    Raises:
        ArithmeticError: They differ by more than float32 explains.
    """
    for found, exact in zip(case.compare(case.ours()), case.compare(case.exact()), strict=True):
        error = torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact)
        if not (error <= TOLERANCE):
            raise ArithmeticError(
                f"bench: {case.kernel} of {case.shape} must agree with plain PyTorch to {TOLERANCE:g}, got a "
                f"relative error of {error:.1e}; please report it with the output of ops.build_info()"
            )


def measure(case: Case, seconds: float = SECONDS) -> Result:
    """Check a case, then time kernel and twin in turn for about so many seconds."""
    check(case)
    runs = (case.plain, case.ours)
    warm = sum(times[0] for times in in_turn(runs, 1))
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds / max(warm, 1e-9))))
    plain, ours = map(median, in_turn(runs, rounds))
    return Result(case, ours, plain)


def run_bench(console: Console, *, batch: int = 64, scale: int = 1, seconds: float = SECONDS) -> list[Result]:
    """Measure all and print them: bars on a terminal, otherwise plain lines.

    Raises:
        ArithmeticError: A kernel and its twin differ.
    """
    info = ops.build_info()
    console.print(
        f"torch {info['torch']}, kernels {info['simd']}, {info['threads']} threads; "
        "every answer is checked in float64, then both take turns",
        highlight=False,
        soft_wrap=True,
    )
    torch.manual_seed(0)
    results: list[Result] = []
    # Drawn between cases alone: a thread that draws would take time from those being measured.
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for case in cases(batch, scale):
            results.append(measure(case, seconds))
            if live is None:
                console.print(_line(results[-1]), highlight=False, soft_wrap=True)
            else:
                live.update(_bars(results), refresh=True)
    return results


def _line(result: Result) -> str:
    ours, plain = (f"{1e3 * seconds:9.2f} ms" for seconds in (result.ours, result.plain))
    words = f"{result.case.kernel:24}{result.case.shape:24}"
    return f"{words}{ours}, plain PyTorch {plain}: {result.ratio:5.1f} times faster"


def _bars(results: Sequence[Result]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("ms", "plain, ms"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("times faster than plain PyTorch", no_wrap=True)
    longest = max(result.ratio for result in results)
    previous = ""
    for result in results:
        if result.case.kernel != previous:
            previous = result.case.kernel
            table.add_row(Text(previous, style="bold"))
        colour = "green" if result.ratio >= 1 else "red"
        bar = Text("█" * max(1, round(BAR * result.ratio / longest)), style=colour)
        table.add_row(
            f"  {result.case.shape}",
            f"{1e3 * result.ours:.2f}",
            f"{1e3 * result.plain:.2f}",
            bar.append(f" {result.ratio:.1f}", style="default"),
        )
    return table
