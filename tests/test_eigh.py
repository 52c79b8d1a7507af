"""Eigendecompositions: accuracy on hard matrices, signs, mixed lists, and failures that stay alone."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eigenproblems import FAMILIES, assert_decomposition, factor
from torch import Tensor

from eigendamage_ext import _eigh, ops, reference

SMALL = [*range(1, 6), *range(7, 10), *range(15, 18)]
SIZES = [*SMALL, 24, 25, *range(31, 35), 40, 41, 63, 64, 65, 80, 81, 96, 97, 127, 128, 129, 144]
DTYPES = (torch.float32, torch.float64)
LARGE = [255, 256, 257, 512, 513, 576, 1024]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_accuracy(family: str, dtype: torch.dtype) -> None:
    matrices = [FAMILIES[family](n).to(dtype) for n in SIZES]
    before = [matrix.clone() for matrix in matrices]
    values, vectors, info = ops.eigh(matrices)
    assert not info.any()
    for matrix, kept, lam, v in zip(matrices, before, values, vectors, strict=True):
        assert torch.equal(matrix, kept)
        assert lam.dtype == v.dtype == dtype and v.shape == matrix.shape
        assert_decomposition(matrix, lam, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", LARGE)
def test_accuracy_of_large_ones(n: int, dtype: torch.dtype) -> None:
    names = ["covariance"]
    if n < 300:
        names += ["ones", "rank n/4", "geometric", "cluster", "glued wilkinson", "scale 1e-40"]
    elif n < 1000 and dtype == torch.float32:
        names += ["ones", "glued wilkinson"]
    for name in names:
        matrix = FAMILIES[name](n).to(dtype)
        values, vectors, _ = ops.eigh(matrix)
        assert_decomposition(matrix, values, vectors)


def test_the_kernel_leaves_nothing() -> None:
    """It passes its own certificate on every family: nothing is handed to the library."""
    matrices = [make(n).to(dtype) for make in FAMILIES.values() for n in [*SMALL, 33, 64] for dtype in DTYPES]
    assert _eigh._C.eigh(matrices)[3] == []


EACH_SET = """
import json, sys
sys.path[:0] = sys.argv[1:3]
import torch
from eigenproblems import FAMILIES, assert_decomposition
from eigendamage_ext import ops
torch.set_num_threads(2)
for dtype in (torch.float32, torch.float64):
    matrices = [FAMILIES[name](n).to(dtype) for name in FAMILIES for n in json.loads(sys.argv[3])]
    values, vectors, info = ops.eigh(matrices)
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert_decomposition(matrix, lam, v)
print(ops.build_info()["simd"])
"""


@pytest.mark.parametrize("level", ["generic", "v2", "v3", "v4", "amx"])
def test_instruction_set(level: str) -> None:
    tests = Path(__file__).parent
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            EACH_SET,
            str(tests.parent),
            str(tests),
            json.dumps([2, 3, 7, 8, 9, 16, 17, 33, 41, 97]),
        ],
        env=os.environ | {"EIGENDAMAGE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )
    if "must name an instruction set of this CPU" in result.stderr:
        pytest.skip(f"this CPU has no {level}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


def test_threads_and_company_change_no_bit() -> None:
    matrices = [
        FAMILIES[name](n).to(dtype)
        for name in ("covariance", "integers", "ones", "geometric")
        for n in [*SMALL, 33, 65]
        for dtype in DTYPES
    ]
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(ops.eigh(matrices))
    finally:
        torch.set_num_threads(1)
    results.append(tuple(zip(*map(ops.eigh, matrices), strict=True)))
    for values, vectors, _ in results[1:]:
        for found, expected in zip([*values, *vectors], [*results[0][0], *results[0][1]], strict=True):
            assert torch.equal(found, expected)


def test_first_of_equal_components_is_positive() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    for shift in (matrix, -matrix, matrix.double()):
        _, vectors, _ = ops.eigh(shift)
        magnitudes = vectors.abs()
        for column, magnitude in zip(vectors.T, magnitudes.T, strict=True):
            assert column[int(magnitude.argmax())] > 0
    _, vectors, _ = ops.eigh(torch.diag(torch.tensor([3.0, 1.0, 2.0])))
    assert torch.equal(vectors, torch.eye(3)[:, [1, 2, 0]])


def test_mixed_list_is_the_same_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [5, 3, 8, 5, 1, 8, 40, 3, 5]
    matrices = [torch.randn(n, n, generator=generator) for n in sizes]
    matrices = [(m + m.T).to(torch.float64 if i % 3 == 0 else torch.float32) for i, m in enumerate(matrices)]
    values, vectors, info = ops.eigh(matrices)
    assert info.shape == (9,) and info.dtype == torch.int32
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        alone, alone_vectors, code = ops.eigh(matrix)
        assert code.shape == () and not code
        assert torch.equal(lam, alone) and torch.equal(v, alone_vectors)
        expected = reference.eigh(matrix)
        torch.testing.assert_close(lam, expected[0])
        torch.testing.assert_close(v, expected[1])


def test_stacks_and_strides() -> None:
    base = torch.stack([factor(6, 12) for _ in range(12)]) * torch.arange(1, 13)[:, None, None]
    stack = base.reshape(3, 4, 6, 6).transpose(0, 1).float()
    sliced = torch.zeros(4, 3, 12, 18)[..., ::2, ::3].copy_(stack)
    expanded = stack[:, :1].expand(4, 3, 6, 6)
    for matrices in (stack, sliced, sliced.mT, expanded):
        values, vectors, info = ops.eigh(matrices)
        assert values.shape == (4, 3, 6) and vectors.shape == (4, 3, 6, 6) and info.shape == (4, 3)
        for i, j in ((0, 0), (3, 1), (2, 2)):
            assert_decomposition(matrices[i, j], values[i, j], vectors[i, j])


def test_halves_are_solved_in_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        matrix = factor(9, 20).to(dtype)
        values, vectors, _ = ops.eigh(matrix)
        assert values.dtype == vectors.dtype == torch.float32
        assert_decomposition(matrix.float(), values, vectors)


@pytest.mark.parametrize("junk", [7.0, torch.nan, torch.inf])
@pytest.mark.parametrize("n", [2, 9, 40])
def test_upper_triangle_is_not_read(n: int, junk: float) -> None:
    matrix = factor(n, n).float()
    spoilt = matrix.tril() + torch.full((n, n), junk).triu(1)
    assert not torch.equal(spoilt, matrix)
    values, vectors, info = ops.eigh(spoilt)
    expected = ops.eigh(matrix)
    assert not info and torch.equal(values, expected[0]) and torch.equal(vectors, expected[1])


@pytest.mark.parametrize("n", [5, 16, 33])
def test_scaling_by_powers_of_two_changes_no_bit(n: int) -> None:
    matrix = factor(n, 70).float()
    values, vectors, _ = ops.eigh(matrix)
    for exponent in (-60, -1, 13, 90):
        scaled = ops.eigh(matrix * 2.0**exponent)
        assert torch.equal(scaled[1], vectors)
        assert torch.equal(scaled[0], values * 2.0**exponent)


def test_empty() -> None:
    assert ops.eigh([])[:2] == ([], [])
    assert ops.eigh([])[2].shape == (0,)
    values, vectors, info = ops.eigh(torch.zeros(0, 5, 5))
    assert values.shape == (0, 5) and vectors.shape == (0, 5, 5) and info.shape == (0,)
    values, vectors, info = ops.eigh(torch.zeros(2, 0, 0))
    assert values.shape == (2, 0) and vectors.shape == (2, 0, 0) and not info.any() and info.shape == (2,)
    values, vectors, info = ops.eigh([torch.zeros(0, 0), torch.eye(2)])
    assert [len(lam) for lam in values] == [0, 2] and info.tolist() == [0, 0]


def spoilt_list() -> list[Tensor]:
    matrices = [factor(n, n).float() for n in (6, 40, 6, 6, 3)]
    matrices[0][5, 0] = torch.nan
    matrices[1][7, 7] = torch.inf
    matrices[3] = torch.full((6, 6), 3e38)  # its largest eigenvalue is 1.8e39
    return matrices


def test_failures_stay_alone() -> None:
    matrices = spoilt_list()
    values, vectors, info = ops.eigh(matrices, errors="info")
    assert info.tolist() == [1, 1, 0, 3, 0]
    for i in (0, 1, 3):
        assert values[i].isnan().all() and vectors[i].isnan().all()
    for i in (2, 4):
        alone = ops.eigh(matrices[i])
        assert torch.equal(values[i], alone[0]) and torch.equal(vectors[i], alone[1])


def test_failures_are_raised_after_all_else_is_done() -> None:
    matrices = spoilt_list()
    with pytest.raises(ops.EighError) as caught:
        ops.eigh(matrices, names=["a", "b", "c", "d", "e"])
    error = caught.value
    assert [(failure.name, failure.n) for failure in error.failures] == [("a", 6), ("b", 40), ("d", 6)]
    assert str(error) == (
        "eigh: matrices must be solvable, got 3 that failed: a (n = 6): the input is not finite; "
        "b (n = 40): the input is not finite; d (n = 6): an eigenvalue is beyond the range of the dtype; "
        "the others are in .result"
    )
    values, vectors, info = error.result
    assert info.tolist() == [1, 1, 0, 3, 0]
    assert_decomposition(matrices[2], values[2], vectors[2])
    with pytest.raises(ops.EighError, match=r"got one that failed: 1 \(n = 6\): the input is not finite"):
        ops.eigh([matrices[2], matrices[0]])
    stack = torch.eye(3).repeat(2, 2, 1, 1)
    stack[1, 0, 2, 2] = torch.nan
    with pytest.raises(ops.EighError) as caught:
        ops.eigh(stack)
    assert caught.value.failures == [ops.Failure((1, 0), 3, "the input is not finite")]
    assert caught.value.result[2].tolist() == [[0, 0], [1, 0]]


def test_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ops.EighError([("a", 2, "why")], None)))
    assert error.failures == [ops.Failure("a", 2, "why")] and "a (n = 2): why" in str(error)


def test_what_the_kernel_leaves_is_solved_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is made to leave every second matrix of every list, with NaN for its result."""
    honest = _eigh._C.eigh
    asked: list[int] = []

    def leave(stacks: list[Tensor]) -> Any:
        values, vectors, codes, _ = honest(stacks)
        left = list(range(0, len(codes), 2))
        for number in left:
            index, place = _eigh._locate(stacks, number)
            values[index].view(-1, values[index].shape[-1])[place] = torch.nan
            asked.append(number)
        codes[left] = _eigh.NOT_ACCURATE
        return values, vectors, codes, left

    stack = torch.stack([factor(6, 6 + i) for i in range(6)]).reshape(2, 3, 6, 6).float()
    matrices = [factor(20, 30), factor(3, 5).float(), factor(9, 9).float()]
    monkeypatch.setattr(_eigh._C, "eigh_directly", lambda *_: None)
    monkeypatch.setattr(_eigh._C, "eigh", leave)
    values, vectors, info = ops.eigh(stack)
    assert not info.any() and vectors.mT.is_contiguous()
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        assert_decomposition(stack[i, j], values[i, j], vectors[i, j])
    values, vectors, info = ops.eigh(matrices)
    assert not info.any() and asked == [0, 2, 4, 0, 2]
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        assert_decomposition(matrix, lam, v)


def test_matrices_beyond_the_kernel_are_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diagonal, so that the library, here a sort, is fast."""

    def sort(a: Tensor) -> Any:
        values, order = a.diagonal(dim1=-2, dim2=-1).sort()
        return values, torch.eye(a.shape[-1])[order].mT.contiguous()

    monkeypatch.setattr(torch.linalg, "eigh", sort)
    diagonal = torch.arange(2305.0).flip(0)
    values, vectors, info = ops.eigh([torch.eye(3), torch.diag(diagonal)])
    assert info.tolist() == [0, 0]
    assert torch.equal(values[1], diagonal.flip(0)) and torch.equal(
        vectors[1].argmax(0), torch.arange(2305).flip(0)
    )


def test_bad_results_are_repaired_or_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is made to answer wrongly for one matrix, then to give up on the stack, then for good."""
    monkeypatch.setattr(_eigh._C, "eigh_directly", lambda *_: None)
    monkeypatch.setattr(_eigh, "HOST_SIZE", 0)
    monkeypatch.setattr(_eigh, "_solve_by_kernel", lambda stacks: _eigh._solve_on_device(stacks, -1))
    honest = torch.linalg.eigh
    matrices = torch.stack([factor(12, 30), factor(12, 12), factor(12, 20)]).float()

    def spoil(result: Any) -> Any:
        values, vectors = result
        values[-1, 3] += 1e-3 * values[-1, -1]
        return values, vectors

    def skew(result: Any) -> Any:
        values, vectors = result
        vectors[-1, 0] *= 1 + 1e-4
        return values, vectors

    for wrong in (spoil, skew):
        monkeypatch.setattr(
            torch.linalg, "eigh", lambda a, w=wrong: w(honest(a)) if a.dtype == torch.float32 else honest(a)
        )
        values, vectors, info = ops.eigh(matrices)
        assert not info.any()
        for matrix, lam, v in zip(matrices, values, vectors, strict=True):
            assert_decomposition(matrix, lam, v)

    def give_up(a: Tensor) -> Any:
        if a.dtype == torch.float32:
            raise torch.linalg.LinAlgError("no convergence")
        return honest(a)

    monkeypatch.setattr(torch.linalg, "eigh", give_up)
    values, vectors, info = ops.eigh(matrices)
    assert not info.any()
    assert_decomposition(matrices[1], values[1], vectors[1])

    def always_wrong(a: Tensor) -> Any:
        if a.dtype == torch.float32:
            return spoil(honest(a))
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", always_wrong)
    values, vectors, info = ops.eigh(matrices, errors="info")
    assert info.tolist() == [0, 0, 2] and values[2].isnan().all() and vectors[2].isnan().all()
    assert_decomposition(matrices[1], values[1], vectors[1])
    with pytest.raises(ops.EighError, match="no decomposition passed the accuracy check, nor did float64"):
        ops.eigh(matrices)


def test_certificate_is_near_its_gate() -> None:
    """It accepts errors well below 8·n·eps and refuses those well above, whatever their direction."""
    n, eps = 50, torch.finfo(torch.float32).eps
    matrix = factor(n, 100).float()
    values, vectors = (part.float() for part in torch.linalg.eigh(matrix.double()))
    norm = torch.linalg.norm(matrix)
    for seed in range(20):
        noise = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
        noise *= 8 * n * eps / torch.linalg.norm(noise)
        shift = noise[0] / torch.linalg.norm(noise[0]) * 8 * n * eps * norm
        for size, accepted in ((0.3, True), (4.0, False)):
            assert _eigh._certify(matrix[None], values[None] + size * shift, vectors[None]).item() is accepted
            assert (
                _eigh._certify(matrix[None], values[None], vectors[None] + size * noise / 2).item()
                is accepted
            )


def test_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    ops.eigh([factor(20, 30).float()])
    assert torch.equal(torch.get_rng_state(), state)


def test_results_do_not_overlap() -> None:
    matrices = [factor(n, n).float() for n in (4, 1, 7, 4)]
    values, vectors, _ = ops.eigh(matrices)
    kept = [t.clone() for t in (*values, *vectors)]
    for one, (t, expected) in enumerate(zip((*values, *vectors), kept, strict=True)):
        assert torch.equal(t, expected)
        t.fill_(one)
    assert all((t == one).all() for one, t in enumerate((*values, *vectors)))
    assert all(
        torch.equal(matrix, factor(n, n).float()) for n, matrix in zip((4, 1, 7, 4), matrices, strict=True)
    )
    gradient = torch.eye(3, requires_grad=True)
    assert not ops.eigh(gradient)[0].requires_grad and not ops.eigh([gradient])[0][0].requires_grad


@pytest.mark.parametrize(
    ("error", "message", "matrices", "kwargs"),
    [
        (ValueError, r"matrices must be square \(…, n, n\), got shape \(2, 3\); pass", torch.zeros(2, 3), {}),
        (ValueError, r"matrices must be square \(…, n, n\), got shape \(3,\);", torch.zeros(3), {}),
        (
            ValueError,
            r"matrices\[1\] must be square \(n, n\), got shape \(2, 2, 2\);",
            [torch.eye(2), torch.zeros(2, 2, 2)],
            {},
        ),
        (TypeError, r"matrices\[0\] must be a torch.Tensor, got list;", [[1.0]], {}),
        (
            TypeError,
            "matrices must be float32, float64, bfloat16 or float16, got torch.int64;",
            torch.ones(2, 2).long(),
            {},
        ),
        (TypeError, "matrices must be float32.* got torch.complex64;", torch.eye(2).cfloat(), {}),
        (
            TypeError,
            r"matrices must be a dense tensor, got layout torch.sparse_coo;",
            torch.eye(2).to_sparse(),
            {},
        ),
        (
            NotImplementedError,
            "matrices must hold data, got a meta tensor;",
            torch.zeros(2, 2, device="meta"),
            {},
        ),
        (ValueError, "errors must be 'raise' or 'info', got 'ignore';", torch.eye(2), {"errors": "ignore"}),
        (
            ValueError,
            "names must hold a string for each of 2 matrices, got 1;",
            [torch.eye(2)] * 2,
            {"names": ["a"]},
        ),
        (
            ValueError,
            "names must hold a string for each of 2 matrices, got 'ab';",
            [torch.eye(2)] * 2,
            {"names": "ab"},
        ),
        (
            ValueError,
            "names must hold a string for each of 6 matrices, got 3;",
            torch.zeros(2, 3, 1, 1),
            {"names": list("abc")},
        ),
    ],
)
def test_refuses(error: type[Exception], message: str, matrices: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^eigh: {message}") as caught:
        ops.eigh(matrices, **kwargs)
    assert caught.type is error


def test_refuses_mixed_devices() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with (
        FakeTensorMode(),
        pytest.raises(
            ValueError, match=r"matrices\[1\] must be on the device of the first, cpu, got cuda:0;"
        ),
    ):
        ops.eigh([torch.eye(2), torch.eye(2, device="cuda")])
