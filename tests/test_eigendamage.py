"""Scores against explicit Kronecker algebra: the block G ⊗ I_K ⊗ A written out in float64."""

import pytest
import torch
from random_factors import eigenbasis, random_layer_factors
from torch import nn

from eigendamage_ext.curvature.eigenbasis import Eigen, LayerEigenbasis
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.methods.eigendamage import eigendamage_scores

LAYERS = {
    "conv": lambda: nn.Conv2d(4, 5, (3, 2), bias=False),
    "1x1": lambda: nn.Conv2d(5, 3, 1),
    "groups": lambda: nn.Conv2d(6, 9, 2, groups=3),
    "one input each": lambda: nn.Conv2d(3, 6, 3, groups=3),
    "linear": lambda: nn.Linear(6, 4),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    return request.param().double()


@pytest.fixture
def case(layer):
    spec = LayerSpec.of("layer", layer)
    factors = random_layer_factors(spec)
    return layer, spec, factors, eigendamage_scores(spec, layer, eigenbasis(factors))


def by_group(layer, spec):
    """``(g, c_out/g, K, c_in/g)``."""
    weight = layer.weight.detach().reshape(spec.groups, spec.out_per_group, spec.in_per_group, -1)
    return weight.transpose(2, 3)


def quadratic_loss(spec, factors, change):
    """½ vec(ΔW)ᵀ (G ⊗ I_K ⊗ A) vec(ΔW), summed over the groups; `change` as `by_group` gives it."""
    A, G = (f.reshape(spec.groups, *f.shape[-2:]) for f in (factors.A, factors.G))
    identity = torch.eye(spec.kernel_positions, dtype=torch.float64)
    blocks = (torch.kron(torch.kron(g, identity), a) for a, g in zip(A, G, strict=True))
    vectors = (delta.reshape(-1) for delta in change)
    return 0.5 * sum(float(v @ block @ v) for v, block in zip(vectors, blocks, strict=True))


def projected(weight, scores, inputs, outputs):
    """P_G W P_A, P the projection onto the named columns of the bases; `weight` as `by_group` gives it."""
    kept = scores.input_basis[:, :, inputs], scores.output_basis[:, :, outputs]
    P_A, P_G = (b @ b.mT for b in kept)
    return torch.einsum("gxo,goki,giy->gxky", P_G, weight, P_A)


def test_predicted_loss_is_the_quadratic_form_of_what_is_cut(case):
    layer, spec, factors, scores = case
    weight = by_group(layer, spec)
    for i in range(spec.in_per_group + 1):
        for o in range(spec.out_per_group + 1):
            cut = weight - projected(weight, scores, slice(i), slice(o))
            expected = quadratic_loss(spec, factors, cut)
            assert scores.predicted_loss(i, o) == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_with_second_moments_it_is_the_quadratic_form_that_has_them_as_diagonal(layer):
    spec = LayerSpec.of("layer", layer)
    S = torch.rand(layer.weight.shape, dtype=torch.float64)
    basis = eigenbasis(random_layer_factors(spec), S)
    scores = eigendamage_scores(spec, layer, basis)
    Q_A, Q_G = (
        e.vectors.contiguous().reshape(spec.groups, -1, e.vectors.shape[-1]) for e in (basis.A, basis.G)
    )
    identity = torch.eye(spec.kernel_positions, dtype=torch.float64)
    # In the order (output, input, offset) of weight and S; the forms of all groups.
    columns = [torch.kron(g, torch.kron(a, identity)) for a, g in zip(Q_A, Q_G, strict=True)]
    diagonals = S.reshape(spec.groups, -1)
    forms = [q @ s.diag() @ q.mT for q, s in zip(columns, diagonals, strict=True)]
    weight = by_group(layer, spec)
    for i in range(spec.in_per_group + 1):
        for o in range(spec.out_per_group + 1):
            cut = (weight - projected(weight, scores, slice(i), slice(o))).transpose(2, 3)
            expected = 0.5 * sum(
                float(v.flatten() @ form @ v.flatten()) for v, form in zip(cut, forms, strict=True)
            )
            assert scores.predicted_loss(i, o) == pytest.approx(expected, rel=1e-10, abs=1e-13)


def test_nothing_cut_loses_nothing(case):
    _, spec, _, scores = case
    assert scores.predicted_loss(spec.in_per_group, spec.out_per_group) == 0


def test_a_score_is_twice_the_loss_of_cutting_the_unit_alone(case):
    layer, spec, factors, scores = case
    weight = by_group(layer, spec)
    everything = slice(None)
    for unit, score in enumerate(scores.input_scores):
        rest = [i for i in range(spec.in_per_group) if i != unit]
        cut = weight - projected(weight, scores, rest, everything)
        assert score == pytest.approx(2 * quadratic_loss(spec, factors, cut), rel=1e-10)
    for unit, score in enumerate(scores.output_scores):
        rest = [o for o in range(spec.out_per_group) if o != unit]
        cut = weight - projected(weight, scores, everything, rest)
        assert score == pytest.approx(2 * quadratic_loss(spec, factors, cut), rel=1e-10)


def test_every_group_has_its_best_direction_first(case):
    layer, spec, factors, scores = case
    weight = by_group(layer, spec)
    everything = slice(None)
    alone = []
    for unit in range(spec.in_per_group):
        rest = [i for i in range(spec.in_per_group) if i != unit]
        cut = weight - projected(weight, scores, rest, everything)
        A, G = (f.reshape(spec.groups, *f.shape[-2:]) for f in (factors.A, factors.G))
        alone.append(torch.einsum("goki,gox,gxkj,gij->g", cut, G, cut, A))
    descending = torch.stack(alone)
    assert (descending[:-1] >= descending[1:] * (1 - 1e-12)).all()
    assert scores.input_scores == sorted(scores.input_scores, reverse=True)
    assert scores.output_scores == sorted(scores.output_scores, reverse=True)


def test_the_orders_say_which_eigenvector_each_unit_is(case):
    _, spec, factors, scores = case
    basis = eigenbasis(factors)
    for eigen, order, columns in (
        (basis.A, scores.input_order, scores.input_basis),
        (basis.G, scores.output_order, scores.output_basis),
    ):
        n = columns.shape[-1]
        for group, vectors in enumerate(eigen.vectors.reshape(spec.groups, n, n)):
            assert torch.allclose(columns[group], vectors[:, order[group]], rtol=0, atol=1e-12)


def test_single_precision_eigenvectors_become_orthonormal_to_double_precision():
    layer = nn.Conv2d(24, 40, 3)
    spec = LayerSpec.of("layer", layer)
    basis = eigenbasis(random_layer_factors(spec, torch.float32))
    scores = eigendamage_scores(spec, layer, basis)
    assert basis.A.vectors.dtype == torch.float32
    for q in (scores.input_basis, scores.output_basis):
        assert q.dtype == torch.float64
        assert (q.mT @ q - torch.eye(q.shape[-1], dtype=torch.float64)).abs().max() < 1e-11


def test_directions_without_variance_come_last_and_cost_nothing():
    layer = nn.Linear(3, 3, dtype=torch.float64)
    identity = torch.eye(3, dtype=torch.float64)
    values = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    basis = LayerEigenbasis(A=Eigen(values, identity), G=Eigen(values.new_ones(3), identity))
    scores = eigendamage_scores(LayerSpec.of("layer", layer), layer, basis)
    assert torch.equal(scores.input_basis[0, :, 0], identity[2])
    assert scores.input_scores[1:] == [0, 0]
    assert scores.predicted_loss(1, 3) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(bad):
    layer = nn.Linear(3, 3)
    spec = LayerSpec.of("block.fc", layer)
    layer.weight.data[1, 2] = bad
    with pytest.raises(ValueError, match=r"weight and factors of 'block\.fc' must be finite"):
        eigendamage_scores(spec, layer, eigenbasis(random_layer_factors(spec)))
