"""Kron-OBD, Kron-OBS and C-OBS against explicit Kronecker products and the losses of networks."""

import itertools
from dataclasses import replace

import pytest
import torch
from dense_fisher import weight_fisher
from filter_cases import (
    EXACT,
    LAYERS,
    constrained,
    dense,
    filters,
    group,
    random_filters,
    rows_of,
    stacked,
)
from nets import mlp
from torch import nn

from eigendamage_ext.curvature import LayerFactors, estimate_factors
from eigendamage_ext.pruning.methods.c_obs import COBS
from eigendamage_ext.pruning.methods.filters import Options
from eigendamage_ext.pruning.methods.kron_obd import KronOBD
from eigendamage_ext.pruning.methods.kron_obs import KronOBS

REFERENCE = Options(reference_compat=True)


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    return random_filters(request.param())


def loss_of(hessian, change):
    return 0.5 * float(change.flatten() @ hessian @ change.flatten())


def single_cuts(layer):
    return torch.eye(len(layer.weight), dtype=torch.bool)


def some_cuts(layer):
    """Every number of filters, a whole group among them."""
    count = len(layer.weight)
    yield torch.arange(count) < layer.spec.out_per_group
    for number in range(1, count + 1):
        yield torch.randperm(count) < number


def damped(factors, damping):
    """Each plus damping times its mean eigenvalue."""
    mean = torch.linalg.eigvalsh(factors).mean(-1)[:, None, None]
    return factors + damping * mean * torch.eye(factors.shape[-1], dtype=torch.float64)


def test_kron_obd_is_the_loss_of_zeroing_a_filter_and_nothing_else(layer):
    hessian = dense(*stacked(layer))
    scores = KronOBD().filter_scores(layer, Options())
    for cut, score in zip(single_cuts(layer), scores, strict=True):
        change = torch.where(cut[:, None], -layer.weight, 0)
        assert float(score) == pytest.approx(2 * loss_of(hessian, change), rel=1e-11)
        assert KronOBD().predicted_loss(layer, cut, REFERENCE) == pytest.approx(float(score) / 2)
    assert KronOBD().update(layer, cut, Options()) is None


@pytest.mark.parametrize("damping", [0, 0.3])
def test_kron_obs_is_the_loss_of_zeroing_a_filter_once_the_others_make_up_for_it(layer, damping):
    A, G = stacked(layer)
    hessian = dense(A, damped(G, damping))
    scores = KronOBS().filter_scores(layer, Options(damping))
    for cut, score in zip(single_cuts(layer), scores, strict=True):
        loss, _ = constrained(hessian, layer.weight.flatten(), rows_of(layer, cut))
        assert float(score) == pytest.approx(2 * loss, rel=1e-9)


@pytest.mark.parametrize("damping", [0, 0.3])
@pytest.mark.parametrize("method", [KronOBS(), COBS()], ids=lambda method: method.name)
def test_the_update_is_the_constrained_minimum_of_all_cuts_together(layer, damping, method):
    A, G = stacked(layer)
    hessian = dense(A, damped(G, damping))
    for cut in some_cuts(layer):
        loss, change = constrained(hessian, layer.weight.flatten(), rows_of(layer, cut))
        updated = method.update(layer, cut, Options(damping))
        assert not updated[cut].any()
        torch.testing.assert_close(
            (updated - layer.weight).flatten(), change, rtol=1e-9, atol=1e-9 * float(change.abs().max())
        )
        assert method.predicted_loss(layer, cut, Options(damping)) == pytest.approx(loss, rel=1e-9)


def test_no_other_update_that_zeroes_the_same_filters_loses_less(layer):
    hessian = dense(*stacked(layer))
    method = KronOBS()
    for cut in some_cuts(layer):
        best = method.predicted_loss(layer, cut, EXACT)
        joint = method.update(layer, cut, EXACT) - layer.weight
        assert loss_of(hessian, joint) == pytest.approx(best, rel=1e-9)
        alone = sum(
            method.update(layer, one, EXACT) - layer.weight for one in single_cuts(layer)[cut]
        )  # leaves something in the rows that are cut, so that is zeroed as slicing would
        summed = torch.where(cut[:, None], -layer.weight, alone)
        nothing = torch.where(cut[:, None], -layer.weight, 0)
        nearby = [joint + torch.where(cut[:, None], 0, 0.1 * torch.randn_like(joint)) for _ in range(5)]
        for other in (summed, nothing, *nearby):
            assert loss_of(hessian, other) >= best * (1 - 1e-9)


@pytest.mark.parametrize("damping", [0, 0.3])
def test_c_obs_adds_up_the_losses_of_single_weights(layer, damping):
    A, G = (damped(factor, damping) for factor in stacked(layer))
    inverse = torch.linalg.inv(dense(A, G)).diagonal().reshape(layer.weight.shape)
    scores = COBS().filter_scores(layer, Options(damping))
    torch.testing.assert_close(scores, (layer.weight.square() / inverse).sum(1), rtol=1e-10, atol=0)


def trained(widths, bias, examples=24):
    """A deep linear network whose first layer is at its optimum: there the loss is exactly quadratic."""
    net = mlp(*widths, bias=bias, activation=None)
    x = torch.randn(examples, widths[0], dtype=torch.float64)
    y = torch.randn(examples, widths[-1], dtype=torch.float64)

    def loss():
        return (net(x) - y).square().sum(1).mean()

    first = [net[0].weight, *([net[0].bias] if bias else [])]
    curvature = weight_fisher(net, "0", x, y, "mse", "exact")
    gradient = torch.autograd.grad(loss(), first)
    rows = torch.cat([gradient[0], *(g[:, None] for g in gradient[1:])], dim=1)
    step = torch.linalg.solve(curvature, rows.flatten()).reshape(rows.shape)
    load(net[0], filters(net[0]).weight - step)
    assert all(g.abs().max() < 1e-10 for g in torch.autograd.grad(loss(), first))
    return net, x, y, loss


def load(layer, rows):
    with torch.no_grad():
        layer.weight.copy_(rows[:, : layer.in_features])
        if layer.bias is not None:
            layer.bias.copy_(rows[:, -1])


@pytest.mark.parametrize("bias", [True, False])
def test_predicted_is_what_the_loss_of_a_network_rises_by(bias):
    net, x, y, loss = trained((4, 5, 6), bias)
    factors = estimate_factors(net, [x], loss="mse", fisher="exact", kind="patch", progress=False)
    layer = filters(net[0], factors["0"])
    block = weight_fisher(net, "0", x, y, "mse", "exact")
    torch.testing.assert_close(dense(*stacked(layer)), block, rtol=1e-10, atol=1e-12)
    before = float(loss().detach())

    def rise(rows):
        load(net[0], rows)
        return float(loss().detach()) - before

    for cut in single_cuts(layer):
        zeroed = torch.where(cut[:, None], 0, layer.weight)
        assert KronOBD().predicted_loss(layer, cut, EXACT) == pytest.approx(rise(zeroed), rel=1e-9)
    for cut in some_cuts(layer):
        updated = KronOBS().update(layer, cut, EXACT)
        assert KronOBS().predicted_loss(layer, cut, EXACT) == pytest.approx(rise(updated), rel=1e-9)


def test_the_reference_scores_weigh_squares_by_sums_of_rows(layer):
    (A, G), weight = stacked(layer), layer.weight
    rows = layer.spec.out_per_group
    expected_obd, expected_obs = [], []
    for filter_ in range(len(weight)):
        group_, row = divmod(filter_, rows)
        energy = sum(
            float(weight[filter_, j] ** 2 * A[group_, j, k])
            for j, k in itertools.product(range(weight.shape[1]), repeat=2)
        )
        inverse = torch.linalg.inv(G[group_] + 1e-10 * torch.eye(rows, dtype=torch.float64))
        expected_obd.append(energy * float(G[group_, row, row]))
        expected_obs.append(energy / float(inverse[row, row]))
    assert KronOBD().filter_scores(layer, REFERENCE).tolist() == pytest.approx(expected_obd, rel=1e-11)
    assert KronOBS().filter_scores(layer, REFERENCE).tolist() == pytest.approx(expected_obs, rel=1e-9)


def test_the_reference_damping_is_absolute_and_ignores_negative_eigenvalues():
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    G = (q * torch.tensor([-1e-9, 0.5, 1.0])) @ q.T
    layer = filters(nn.Linear(2, 3, bias=False), LayerFactors(torch.eye(2).double(), G, count=1))
    inverse = (q * torch.tensor([1e10, 2.0, 1.0])) @ q.T
    energy = layer.weight.square().sum(1)
    expected = (energy / inverse.diagonal()).tolist()
    assert KronOBS().filter_scores(layer, REFERENCE).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [KronOBD(), KronOBS(), COBS()], ids=lambda method: method.name)
def test_coupled_filters_add_up_over_layers_and_rows(method):
    first, second = random_filters(nn.Linear(5, 4)), random_filters(nn.Linear(3, 8), "other")
    second = replace(second, units=torch.tensor([[0, 7], [1, 3], [2, 6], [4, 5]]))
    scores = method.unit_scores(group(first, second), Options())
    one, other = (method.filter_scores(layer, Options()).tolist() for layer in (first, second))
    pairs = ((0, 7), (1, 3), (2, 6), (4, 5))
    expected = [one[unit] + other[a] + other[b] for unit, (a, b) in enumerate(pairs)]
    assert scores.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", [KronOBD(), KronOBS(), COBS()], ids=lambda method: method.name)
@pytest.mark.parametrize("options", [Options(), REFERENCE], ids=["ours", "reference"])
def test_filters_that_nothing_depends_on_cost_next_to_nothing(method, options):
    layer = random_filters(nn.Linear(4, 3))
    dead = replace(layer, factors=replace(layer.factors, G=torch.zeros(3, 3)))
    alive = method.unit_scores(group(layer), options)
    scores = method.unit_scores(group(dead), options)
    assert (scores >= 0).all()
    assert not (scores > 1e-8 * alive).any()
    cut = torch.tensor([True, False, False])
    if method.update(dead, cut, options) is not None:
        torch.testing.assert_close(method.update(dead, cut, options)[1:], layer.weight[1:])


@pytest.mark.parametrize("method", [KronOBS(), COBS()], ids=lambda method: method.name)
def test_a_singular_factor_without_damping_is_refused_by_name(method):
    layer = random_filters(nn.Linear(4, 3), "block.fc")
    layer = replace(layer, factors=replace(layer.factors, G=torch.ones(3, 3)))
    method.unit_scores(group(layer), Options())
    with pytest.raises(ValueError, match=r"damping must make the factors of 'block\.fc' positive definite"):
        method.unit_scores(group(layer), EXACT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "A", "G"])
@pytest.mark.parametrize("method", [KronOBD(), KronOBS(), COBS()], ids=lambda method: method.name)
def test_what_is_not_finite_is_named(method, where, bad):
    layer = random_filters(nn.Linear(4, 3), "block.fc")
    (layer.weight if where == "weight" else getattr(layer.factors, where))[1, 2] = bad
    with pytest.raises(ValueError, match=r"weight and factors of 'block\.fc' must be finite"):
        method.unit_scores(group(layer), Options())


def test_single_precision_factors_are_used_in_double():
    layer = random_filters(nn.Conv2d(4, 6, 3))
    single = replace(layer.factors, A=layer.factors.A.float(), G=layer.factors.G.float())
    double = replace(single, A=single.A.double(), G=single.G.double())
    for method in (KronOBD(), KronOBS(), COBS()):
        a, b = (
            method.filter_scores(replace(layer, factors=factors), Options()) for factors in (single, double)
        )
        assert a.dtype == torch.float64
        assert torch.equal(a, b)
