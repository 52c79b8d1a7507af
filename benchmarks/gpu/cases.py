"""What is timed on a GPU: every kernel on layers of wide ResNet32 and VGG19, eigenproblems, factor passes."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import baselines, bench_covariance, bench_eigh, bench_factor_pass, bench_second_moment
from benchmarks.cases import Case
from benchmarks.contest import Contest, Record, Run, fastest, relative_error
from eigendamage_ext import ops, reference
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.models.vgg import VGG

BATCHES = (512, 64)
LAYERS = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2))  # (C, H, W)
OPS = ("channel_covariance", "patch_covariance", "gradient_second_moment")
CACHES = 256 << 20  # inputs in turn are larger together than any GPU's
MOST_COPIES = 8
STACKS = {8: 1000, 16: 1000, 32: 1000, 64: 200, 128: 64, 256: 32, 576: 9}  # matrices of a size
MIXED = [1 + i % 32 for i in range(64)]
FACTORS = [n for n, count in bench_eigh.RESNET32.items() for _ in range(count)]
EIGH_MIXED, EIGH_FACTORS = "64 of 1 to 32", "factors of ResNet-32"
NETWORKS: dict[str, Callable[[], nn.Module]] = {"ResNet32": bench_factor_pass.wide_resnet32, "VGG19": VGG}
COMPILED = {  # which batch and, unless another was faster, which plain form
    "channel_covariance": (BATCHES[0], "channel_gram"),
    "patch_covariance": (BATCHES[0], "patch_gemm"),
    "gradient_second_moment": (BATCHES[1], "moment_unfold"),  # its loops are unrolled
}

Found = dict[str, Record]  # by "op: case"


@dataclass(frozen=True)
class Entry:
    """A contest to prepare: its name, and what it is prepared by, given the records found so far."""

    name: str
    prepare: Callable[[Found], Contest]


def entries(device: str, tiny: bool = False) -> Iterator[Entry]:
    """Those that most gates ask for come first. Tiny ones take no time and say nothing."""
    batches, layers = ((2, 2), ((4, 6, 5),)) if tiny else (BATCHES, LAYERS)
    first = [Case(op, (batches[0], *layers[0])) for op in OPS]
    for case in first:
        yield of_kernel(case, device)
    yield from eigh_entries(device, tiny)
    for case in (Case(op, (batch, *layer)) for batch in batches for layer in layers for op in OPS):
        if case not in first:
            yield of_kernel(case, device)
    for case in first:
        yield of_kernel(replace(case, channels_last=True), device)
        yield of_kernel(case, device, torch.bfloat16)
        yield of_kernel(replace(case, stride=2), device)
    for name, network in ({"ResNet8": small_resnet} if tiny else NETWORKS).items():
        for kind, against in itertools.product(("channel", "patch"), ("its network", "other ways")):
            yield of_network(name, network, kind, against, batches[1], device)
    for op, (batch, form) in COMPILED.items():
        case = Case(op, (batches[0] if tiny else batch, *layers[0]))
        backend = "eager" if tiny else "inductor"
        yield Entry(f"{op}: {case}, compiled", partial(against_compiled, case, form, device, backend))


def small_resnet() -> nn.Module:
    return ResNet(depth=8, widths=(4, 6, 8), num_classes=10)


def of_network(
    name: str, network: Callable[[], nn.Module], kind: str, against: str, examples: int, device: str
) -> Entry:
    """The factor pass of a batch."""
    case = f"{name}, {kind}, {against}"

    def prepare(_: Found) -> Contest:
        return replace(bench_factor_pass.prepare(kind, against, device, network, examples), case=case)

    return Entry(f"factor_pass: {case}", prepare)


def of_kernel(case: Case, device: str, dtype: torch.dtype = torch.float32) -> Entry:
    words = f"{case}" if dtype == torch.float32 else f"{case} {str(dtype).removeprefix('torch.')}"
    bench = bench_second_moment if case.op == "gradient_second_moment" else bench_covariance
    copies = 1 if device == "cpu" else min(MOST_COPIES, math.ceil(CACHES / case.read))

    def prepare(_: Found) -> Contest:
        return replace(bench.prepare(case, device, dtype, copies), case=words)

    return Entry(f"{case.op}: {words}", prepare)


def against_compiled(case: Case, form: str, device: str, backend: str, found: Found) -> Contest:
    """The plain form that was fastest of this case, by `torch.compile`."""
    record = found.get(f"{case.op}: {case}")
    if record and case.op != "gradient_second_moment":
        form = fastest(record)
    twice = case.op == "gradient_second_moment"
    inputs = [torch.randn(case.shape, device=device) for _ in range(1 + twice)]
    kernel, settings = case.kernel, case.geometry
    op, plain = getattr(ops, case.op), getattr(baselines, form)
    oracle = plain if twice else getattr(reference, case.op)
    compiled = torch.compile(plain, dynamic=False, backend=backend)
    return Contest(
        case.op,
        f"{case}, compiled",
        lambda: op(*inputs, kernel, **settings),
        {f"{form}, compiled": lambda: compiled(*inputs, kernel, **settings)},
        flops=case.flops,
        read=case.read,
        written=case.written,
        error=relative_error(oracle(*(x.double() for x in inputs), kernel, **settings)),
    )


def eigh_entries(device: str, tiny: bool) -> Iterator[Entry]:
    """Mixed sizes in one call, a network's factors, and stacks of one size."""
    mixed, listed = ([3, 2, 3], [4, 5, 4]) if tiny else (MIXED, FACTORS)
    yield Entry(f"eigh: {EIGH_MIXED}", lambda _: eigh_list(EIGH_MIXED, mixed, device, errors="info"))
    yield Entry(f"eigh: {EIGH_FACTORS}", lambda _: eigh_list(EIGH_FACTORS, listed, device))
    for n, count in ({4: 3} if tiny else STACKS).items():
        for dtype in (torch.float32, torch.float64) if n in (4, 32, 128) else (torch.float32,):
            yield Entry(f"eigh: {eigh_name(n, count, dtype)}", partial(eigh_stack, n, count, dtype, device))


def eigh_name(n: int, count: int, dtype: torch.dtype) -> str:
    return f"{count} of {n} {str(dtype).removeprefix('torch.')}"


def eigh_list(name: str, sizes: list[int], device: str, **settings: Any) -> Contest:
    """A list of any sizes; the library gets it stacked by size, one by one, and on the CPU."""
    by_size = {
        n: bench_eigh.covariances(sizes.count(n), n, torch.float32, device) for n in dict.fromkeys(sizes)
    }
    matrices = [matrix for stack in by_size.values() for matrix in stack]
    bench_eigh.check(matrices)
    others: dict[str, Run] = {
        "torch stacked": lambda: [torch.linalg.eigh(stack) for stack in by_size.values()],
        "torch one by one": lambda: [torch.linalg.eigh(matrix) for matrix in matrices],
        "torch on the CPU": lambda: [on_the_cpu(stack) for stack in by_size.values()],
    }
    error = partial(residual, matrices)
    return Contest("eigh", name, lambda: ops.eigh(matrices, **settings), others, error=error)


def eigh_stack(n: int, count: int, dtype: torch.dtype, device: str, _: Found) -> Contest:
    matrices = bench_eigh.covariances(count, n, dtype, device)
    bench_eigh.check([*matrices[:20]])
    others: dict[str, Run] = {
        "torch stacked": lambda: torch.linalg.eigh(matrices),
        "torch one by one": lambda: [torch.linalg.eigh(matrix) for matrix in matrices],
        "torch on the CPU": lambda: on_the_cpu(matrices),
    }
    error = partial(residual, matrices)
    name = eigh_name(n, count, dtype)
    return Contest("eigh", name, lambda: ops.eigh(matrices), others, dtype=dtype, error=error)


def on_the_cpu(stack: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.to(stack.device) for part in torch.linalg.eigh(stack.cpu()))


def residual(matrices: Iterable[Tensor], found: Any) -> float:
    """The largest ``‖AV − VΛ‖ / ‖A‖``."""
    errors = []
    for exact, pair in zip(matrices, pairs(found), strict=True):
        exact, values, vectors = (part.double() for part in (exact, *pair))
        off = torch.linalg.norm(exact @ vectors - vectors * values)
        errors.append(off / torch.linalg.norm(exact).clamp_min(1e-300))
    return float(torch.stack(errors).max())


def pairs(found: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Eigenvalues and eigenvectors of each matrix in a result of ours, the library's, or a list of those."""
    if not isinstance(found, tuple):
        for one in found:
            yield from pairs(one)
    elif isinstance(found[0], Tensor) and found[0].dim() == 1:
        yield found[0], found[1]
    else:
        yield from zip(found[0], found[1], strict=True)
