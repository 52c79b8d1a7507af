"""CP decompositions by alternating least squares against dense algebra."""

import itertools

import pytest
import torch
from torch import Tensor

from eigendamage_ext.pruning.cp import CP, _simultaneous, decompose, sweep

SHAPES = [(6, 4, 9), (5, 5, 3), (4, 9, 4), (7, 3, 2), (1, 4, 9), (4, 1, 9), (12, 10, 9)]


def summed(cp: CP) -> Tensor:
    return torch.einsum("or,ir,kr->oik", cp.outputs, cp.inputs, cp.kernels)


def exact(shape: tuple[int, int, int], rank: int) -> Tensor:
    factors = (torch.randn(n, rank, dtype=torch.float64) for n in shape)
    return torch.einsum("or,ir,kr->oik", *factors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_core_that_is_such_a_sum_is_found_again(shape):
    for rank in {min(shape[:2]), 1}:
        core = exact(shape, rank)
        cp = decompose(core)
        assert cp.outputs.shape[1] == min(shape[:2])
        assert (summed(cp) - core).norm() < 1e-8 * core.norm()
        assert cp.error < 1e-8


@pytest.mark.parametrize("shape", [(5, 5), (6, 3), (3, 6), (1, 4)], ids=str)
def test_a_matrix_is_decomposed_exactly_or_as_well_as_by_svd(shape):
    core = torch.randn(*shape, 1, dtype=torch.float64)
    assert (summed(decompose(core)) - core).norm() < 1e-8 * core.norm()
    singular = torch.linalg.svdvals(core[..., 0])
    for rank in range(1, min(shape)):
        best = float(singular[rank:].norm() / singular.norm())
        assert decompose(core, rank).error == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_sweep_raises_the_error(shape):
    core = torch.randn(shape, dtype=torch.float64)
    slices = core.permute(2, 0, 1)
    cp = CP(*(torch.randn(n, min(shape[:2]), dtype=torch.float64) for n in shape), 0)
    errors = []
    for _ in range(40):
        cp = sweep(slices, cp)
        errors.append(cp.error)
        assert cp.error == pytest.approx(float((summed(cp) - core).norm() / core.norm()), abs=1e-7)
    assert all(after <= before + 1e-8 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.99 * errors[0] or errors[0] < 1e-6


def test_a_sweep_stays_where_the_sum_is_exact():
    factors = [torch.randn(n, 4, dtype=torch.float64) for n in (6, 5, 3)]
    core = torch.einsum("or,ir,kr->oik", *factors)
    stayed = sweep(core.permute(2, 0, 1), CP(*factors, 0))
    assert (summed(stayed) - core).norm() < 1e-12 * core.norm()


def test_it_is_better_than_singular_vectors_of_the_mean_kernel_offset():
    core = torch.randn(8, 8, 9, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(core.mean(2))
    kernels = torch.einsum("oik,or,ri->kr", core, U, Vh)
    by_svd = (torch.einsum("or,ri,kr->oik", U, Vh, kernels) - core).norm() / core.norm()
    assert decompose(core).error < 0.9 * by_svd


def test_components_neither_grow_and_cancel_nor_are_lopsided():
    # The limit of rank-2 sums that has rank 3: without a pull the two components grow without end.
    x, y, z = (torch.eye(2, dtype=torch.float64)[:, 0] for _ in range(3))
    u, v, w = (torch.eye(2, dtype=torch.float64)[:, 1] for _ in range(3))
    core = sum(torch.einsum("o,i,k->oik", *term) for term in ((u, y, z), (x, v, z), (x, y, w)))
    cp = decompose(core)
    norms = torch.stack([factor.norm(dim=0) for factor in cp[:3]])
    assert norms.prod(0).max() < 10 * core.norm()
    torch.testing.assert_close(norms, norms[:1].expand(3, -1), rtol=1e-12, atol=0)


def test_a_seed_says_all():
    core = torch.randn(6, 6, 9)
    state = torch.random.get_rng_state()
    first = decompose(core, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = decompose(core.requires_grad_(), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert first.outputs.dtype == torch.float64 and not again.outputs.requires_grad


def test_the_start_that_is_drawn_counts_where_it_is_best():
    core = torch.randn(6, 6, 9, dtype=torch.float64)
    assert len({decompose(core, seed=seed).error for seed in range(8)}) > 1


def test_slices_that_share_no_real_components_start_from_independent_columns():
    # A quarter turn: Y X⁻¹ has no real eigenvector.
    turn = torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)
    slices = torch.stack([2 * torch.eye(2, dtype=torch.float64), turn])
    assert torch.linalg.matrix_rank(_simultaneous(slices, 2).outputs) == 2


def test_a_core_of_zeros_is_a_sum_of_nothing():
    cp = decompose(torch.zeros(4, 3, 9))
    assert cp.error == 0 and not summed(cp).any()
