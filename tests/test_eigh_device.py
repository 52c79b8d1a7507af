"""What a device adds to eigendecompositions: kernel and library share a list, streams, and nobody waits.

The device's logic runs on tensors of the CPU too, with the kernel of the CPU: only streams are missing there.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from eigenproblems import FAMILIES, assert_decomposition, factor
from torch import Tensor

from eigendamage_ext import _eigh, ops

DTYPES = (torch.float32, torch.float64)
KERNEL_SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 27, 31, 32, 33, 34, 40, 63, 64]
RESNET32 = {27: 1, 144: 11, 288: 10, 576: 9, 16: 11, 32: 10, 64: 11, 10: 1}


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch, device: str) -> list[list[int]]:
    """Tensors of the CPU are solved as a device's, and those too large for the kernel by the library.

    Returns the sizes that each call of the kernel gets.
    """
    asked: list[list[int]] = []
    honest = _eigh._C.eigh

    def kernel(stacks: list[Tensor]) -> Any:
        asked.append([stack.shape[-1] for stack in stacks])
        return honest(stacks)

    monkeypatch.setattr(_eigh._C, "eigh_directly", lambda *_: None)
    monkeypatch.setattr(_eigh._C, "eigh", kernel)
    monkeypatch.setattr(_eigh, "HOST_SIZE", _eigh.KERNEL_SIZE)
    if device == "cpu":
        monkeypatch.setattr(
            _eigh, "_solve_by_kernel", lambda stacks: _eigh._solve_on_device(stacks, _eigh.KERNEL_SIZE)
        )
    return asked


def check(matrix: Tensor, values: Tensor, vectors: Tensor) -> None:
    assert values.device == vectors.device == matrix.device and vectors.mT.is_contiguous()
    assert_decomposition(matrix.cpu(), values.cpu(), vectors.cpu())


def test_kernel_and_library_share_a_list(as_on_a_device: list[list[int]], device: str) -> None:
    sizes = [5, 65, 64, 0, 70, 65, 3, 65]
    dtypes = [DTYPES[index % 3 == 2] for index in range(len(sizes))]
    matrices = [
        factor(n, n + 9).to(device, dtype) if n else torch.zeros(0, 0, device=device)
        for n, dtype in zip(sizes, dtypes, strict=True)
    ]
    values, vectors, info = ops.eigh(matrices)
    assert as_on_a_device == [[5, 64, 0, 3]]
    assert info.shape == (8,) and info.dtype == torch.int32 and not info.any()
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert lam.dtype == (matrix.dtype if len(matrix) else torch.float32)
        check(matrix, lam, v)
    starts = {t.untyped_storage().data_ptr() for t in (*matrices, *values, *vectors) if t.numel()}
    assert len(starts) == 3 * 7


def test_stacks_on_either_side(as_on_a_device: list[list[int]], device: str) -> None:
    for n in (12, 80):
        stack = torch.stack([factor(n, n + i) for i in range(6)]).view(2, 3, n, n).to(device)
        sliced = torch.zeros(2, 3, 2 * n, 3 * n, dtype=torch.float64, device=device)[..., ::2, ::3].copy_(
            stack
        )
        for matrices in (stack, sliced, sliced.mT, stack[:, :1].expand(2, 3, n, n)):
            values, vectors, info = ops.eigh(matrices)
            assert info.shape == (2, 3) and not info.any()
            for i, j in ((0, 0), (1, 2)):
                check(matrices[i, j], values[i, j], vectors[i, j])
    values, vectors, info = ops.eigh(torch.zeros(0, 70, 70, device=device))
    assert values.shape == (0, 70) and vectors.shape == (0, 70, 70) and info.shape == (0,)


def test_failures_stay_alone(as_on_a_device: list[list[int]], device: str) -> None:
    matrices = [factor(n, n).float().to(device) for n in (6, 70, 6, 70, 6, 70)]
    expected = ops.eigh(matrices)
    matrices[0][5, 0] = matrices[1][69, 3] = torch.nan
    matrices[2][0, 5] = matrices[3][3, 69] = torch.inf  # above the diagonal
    matrices[4] = torch.full((6, 6), 3e38, device=device)
    values, vectors, info = ops.eigh(matrices, errors="info")
    assert info.tolist() == [1, 1, 0, 0, 3, 0]
    for i in (0, 1, 4):
        assert values[i].isnan().all() and vectors[i].isnan().all()
    for i in (2, 3, 5):
        torch.testing.assert_close(values[i], expected[0][i])
        check(matrices[i], values[i], vectors[i])
    with pytest.raises(ops.EighError) as caught:
        ops.eigh(matrices, names=list("abcdef"))
    assert [failure.name for failure in caught.value.failures] == ["a", "b", "e"]


@pytest.mark.parametrize("stacked", [False, True])
def test_what_the_kernel_leaves_is_a_code_or_is_solved_by_the_library(
    monkeypatch: pytest.MonkeyPatch, device: str, stacked: bool
) -> None:
    """The kernel is made to leave every second matrix, with NaN for its result."""
    honest = _eigh._C.eigh

    def leave(stacks: list[Tensor]) -> Any:
        values, vectors, codes, _ = honest(stacks)
        for number in range(0, len(codes), 2):
            index, place = _eigh._locate(stacks, number)
            values[index].view(-1, values[index].shape[-1])[place] = torch.nan
            codes[number] = _eigh.NOT_ACCURATE
        return values, vectors, codes, []

    monkeypatch.setattr(_eigh._C, "eigh_directly", lambda *_: None)
    monkeypatch.setattr(_eigh._C, "eigh", leave)
    stack = torch.stack([factor(9, 9 + i) for i in range(4)]).float().view(2, 2, 9, 9).to(device)
    given: Any = stack if stacked else list(stack.view(4, 9, 9))
    info = ops.eigh(given, errors="info")[2]
    assert info.flatten().tolist() == [2, 0, 2, 0]
    values, vectors, info = ops.eigh(given)
    assert not info.any()
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place: Any = (i, j) if stacked else 2 * i + j
        check(stack[i, j], values[place], vectors[place])


def test_the_library_gets_one_stack_for_each_size_and_type(
    as_on_a_device: list[list[int]], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    honest = torch.linalg.eigh
    shapes: list[tuple[Any, ...]] = []

    def library(a: Tensor) -> Any:
        if a.device.type == device:  # what is repaired is repaired on the CPU
            shapes.append((*a.shape, a.dtype))
        return honest(a)

    monkeypatch.setattr(torch.linalg, "eigh", library)
    monkeypatch.setattr(_eigh, "LIBRARY_COUNT", 2)
    matrices = [factor(n, n).to(device, dtype) for n in (66, 70) for dtype in DTYPES for _ in range(3)]
    values, vectors, _ = ops.eigh(matrices)
    assert shapes == [(c, n, n, d) for n in (66, 70) for d in DTYPES for c in (2, 1)]
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        check(matrix, lam, v)


def test_bad_results_of_the_library_are_repaired(
    as_on_a_device: list[list[int]], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    honest = torch.linalg.eigh

    def spoil(a: Tensor) -> Any:
        values, vectors = honest(a)
        if a.dtype == torch.float32:
            values[-1, 3] += 1e-3 * values[-1, -1]
        return values, vectors

    monkeypatch.setattr(torch.linalg, "eigh", spoil)
    matrices = [factor(n, n + 9).float().to(device) for n in (70, 70, 80, 5)]
    values, vectors, info = ops.eigh(matrices, errors="info")
    assert not info.any()
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        check(matrix, lam, v)


def test_medium_sizes_are_solved_on_the_cpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Between a device's kernel and its library, each type in one piece; their results are as on the CPU."""
    honest, asked = _eigh._solve_by_kernel, []

    def on_the_cpu(stacks: list[Tensor]) -> Any:
        assert all(stack.is_cpu for stack in stacks)
        asked.append([stack.shape for stack in stacks])
        return honest(stacks)

    exact = [
        torch.stack([factor(n, n + i) for i in range(count)]).to(DTYPES[n % 2])
        for n, count in ((71, 2), (4, 3), (66, 1), (70, 2), (90, 1))
    ]
    expected = honest(exact)
    stacks = [stack.to(device) for stack in exact]
    stacks[0] = stacks[0].mT
    monkeypatch.setattr(_eigh, "HOST_SIZE", 80)
    monkeypatch.setattr(_eigh, "_solve_by_kernel", on_the_cpu)
    values, vectors, codes = _eigh._solve_on_device(stacks, _eigh.KERNEL_SIZE)
    assert asked == [[(2, 71, 71), (1, 66, 66), (2, 70, 70)]]
    assert codes.shape == (9,) and codes.device == stacks[0].device and not codes.any()
    for index in (0, 2, 3):
        assert torch.equal(values[index].cpu(), expected[0][index])
        assert torch.equal(vectors[index].cpu(), expected[1][index])
    for stack, lam, v in zip(stacks, values, vectors, strict=True):
        for one in range(len(stack)):
            check(stack[one], lam[one], v[one])
    starts = {t.untyped_storage().data_ptr() for t in (*stacks, *values, *vectors)}
    assert len(starts) == 3 * 5


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy(family: str, dtype: torch.dtype) -> None:
    matrices = [FAMILIES[family](n).to(dtype) for n in [*KERNEL_SIZES, 65, 97, 144]]
    values, vectors, info = ops.eigh([matrix.cuda() for matrix in matrices], errors="info")
    assert not info.any()
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert_decomposition(matrix, lam.cpu(), v.cpu())


@pytest.mark.cuda
def test_company_changes_no_bit() -> None:
    """Alone, in a list of all, and in one so long that each has a single warp."""
    matrices = [
        FAMILIES[name](n).to("cuda", dtype)
        for name in ("covariance", "integers", "ones", "geometric")
        for n in KERNEL_SIZES
        for dtype in DTYPES
    ]
    alone = [ops.eigh(matrix) for matrix in matrices]
    for repeats in (1, 12):
        values, vectors, _ = ops.eigh(matrices * repeats)
        for found, v, expected in zip(values, vectors, alone * repeats, strict=True):
            assert torch.equal(found, expected[0]) and torch.equal(v, expected[1])


@pytest.mark.cuda
def test_scaling_by_powers_of_two_changes_no_bit() -> None:
    for n in (5, 16, 33):
        matrix = factor(n, 70).float().cuda()
        values, vectors, _ = ops.eigh(matrix)
        for exponent in (-60, -1, 13, 90):
            scaled = ops.eigh(matrix * 2.0**exponent)
            assert torch.equal(scaled[1], vectors) and torch.equal(scaled[0], values * 2.0**exponent)


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[str], None]]:
    torch.cuda.synchronize()
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_nobody_waits_for_the_kernel(waiting_is_an_error: Callable[[str], None]) -> None:
    matrices = [factor(n, n).float().cuda() for n in KERNEL_SIZES]
    stack = torch.stack([factor(16, 20)] * 5).cuda()
    waiting_is_an_error("error")
    found = ops.eigh(matrices, errors="info"), ops.eigh(stack, errors="info")
    waiting_is_an_error("default")
    assert not found[0][2].any() and not found[1][2].any()


@pytest.mark.cuda
def test_streams_are_ordered() -> None:
    """Kernel and library start after what the current stream does, and it goes on after them."""
    sizes = [8, 64, 100, 150]
    exact = [factor(n, n + 9).float() for n in sizes]
    ops.eigh([matrix.cuda() for matrix in exact])  # what is set up once is set up
    matrices = [torch.zeros(n, n, device="cuda") for n in sizes]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # some 50 ms
        for matrix, given in zip(matrices, exact, strict=True):
            matrix.copy_(given)
        values, vectors, _ = ops.eigh(matrices, errors="info")
        kept = [(lam.clone(), v.clone()) for lam, v in zip(values, vectors, strict=True)]
        for result in (*values, *vectors):
            result.zero_()
    stream.synchronize()
    for matrix, (lam, v) in zip(exact, kept, strict=True):
        assert_decomposition(matrix, lam.cpu(), v.cpu())


@pytest.mark.cuda
def test_the_factors_of_a_resnet() -> None:
    matrices = [factor(n, n + i).float() for n, count in RESNET32.items() for i in range(count)]
    values, vectors, _ = ops.eigh([matrix.cuda() for matrix in matrices])
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert_decomposition(matrix, lam.cpu(), v.cpu())
