"""C-OBD, L1, Taylor, NN-Slimming and random against what defines them."""

import hashlib
from dataclasses import replace

import pytest
import torch
from dense_fisher import weight_fisher
from filter_cases import filters, group
from nets import convnet, images, labels
from torch import nn

from eigendamage_ext.curvature.factors import LayerFactors
from eigendamage_ext.pruning.methods.c_obd import COBD
from eigendamage_ext.pruning.methods.filters import Options
from eigendamage_ext.pruning.methods.l1 import L1
from eigendamage_ext.pruning.methods.nn_slimming import NNSlimming
from eigendamage_ext.pruning.methods.random import Random
from eigendamage_ext.pruning.methods.taylor import Taylor

NOTHING = torch.zeros(1, 1)
COVERED = ["0", "3", "5", "8"]  # convolution, groups with a bias, depthwise, Linear


def with_statistics(layer, name="layer", **statistics):
    return filters(layer, LayerFactors(NOTHING, NOTHING, count=1, **statistics), name)


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_c_obd_is_the_diagonal_part_of_the_loss_of_zeroing_a_filter(name, loss):
    net, x, y = convnet().eval(), images(5), labels(loss, 5)
    # The Gauss-Newton matrix of every example from its own Jacobian, and nothing but its diagonal.
    diagonal = weight_fisher(net, name, x, y, loss, "exact").diagonal().detach()
    layer = filters(net.get_submodule(name))
    layer = with_statistics(net.get_submodule(name), diagonal=diagonal.reshape(layer.weight.shape).float())
    scores = COBD().filter_scores(layer, Options())
    for number, score in enumerate(scores):
        change = torch.zeros_like(layer.weight)
        change[number] = -layer.weight[number]
        expected = float(change.flatten() @ diagonal.diag() @ change.flatten())
        assert float(score) == pytest.approx(expected, rel=1e-6)
        cut = torch.arange(len(scores)) == number
        assert COBD().predicted_loss(layer, cut, Options()) == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.parametrize("name", COVERED)
def test_taylor_is_the_squared_slope_of_the_loss_along_a_filter(name):
    net, x, y = convnet().eval(), images(6), labels("cross_entropy", 6)
    module = net.get_submodule(name)

    def loss():
        return nn.functional.cross_entropy(net(x), y)

    parameters = [p for p in (module.weight, module.bias) if p is not None]
    gradient = torch.cat(
        [g.flatten(1) if g.dim() > 1 else g[:, None] for g in torch.autograd.grad(loss(), parameters)], 1
    )
    scores = Taylor().filter_scores(with_statistics(module, gradient=gradient), Options())
    step = 1e-5
    for number, score in enumerate(scores):
        values = []
        for scale in (1 + step, 1 - step):
            saved = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p in parameters:
                    p[number] *= scale
                values.append(float(loss()))
                for p, old in zip(parameters, saved, strict=True):
                    p.copy_(old)
        slope = (values[0] - values[1]) / (2 * step)
        assert float(score) == pytest.approx(slope**2, rel=1e-5, abs=1e-16)


def test_taylor_does_not_set_coupled_layers_off_against_each_other():
    up, down = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for layer in (up, down):
        nn.init.constant_(layer.weight, 2)
    layers = [
        with_statistics(layer, gradient=torch.full((1, 1), slope))
        for layer, slope in ((up, 3.0), (down, -3.0))
    ]
    assert Taylor().unit_scores(group(*layers), Options()).tolist() == [72]
    assert not Taylor.predicts
    assert Taylor().predicted_loss(layers[0], torch.tensor([True]), Options()) == 0


def test_l1_is_the_sum_of_absolute_weights_without_the_bias():
    layer = nn.Conv2d(2, 3, 2)
    scores = L1().filter_scores(filters(layer), Options()).tolist()
    assert scores == pytest.approx([sum(abs(w) for w in row.flatten().tolist()) for row in layer.weight])
    without = nn.Conv2d(2, 3, 2, bias=False)
    without.weight = layer.weight
    assert L1().filter_scores(filters(without), Options()).tolist() == scores
    assert L1().predicted_loss(filters(layer), torch.ones(3, dtype=torch.bool), Options()) == 0


def test_nn_slimming_adds_up_the_scales_of_every_norm_and_channel():
    first = torch.tensor([[-1.0], [0.5], [0.0]], dtype=torch.float64)
    second = torch.tensor([[0.25, -2.0], [0.0, 0.125], [4.0, -4.0]], dtype=torch.float64)
    member = filters(nn.Linear(2, 3))
    scores = NNSlimming().unit_scores(group(member, norms=(first, second)), Options())
    assert scores.tolist() == [3.25, 0.625, 8]


def test_nn_slimming_leaves_a_group_without_batch_norm_alone():
    member = filters(nn.Linear(2, 3))
    assert "no batch norm" in NNSlimming().obstacle(group(member))
    assert NNSlimming().obstacle(group(member, norms=(torch.ones(3, 1),))) is None
    assert L1().obstacle(group(member)) is None


def draws(seed=0, name="layer1.0.conv1", units=8):
    with torch.random.fork_rng():
        members = group(filters(nn.Linear(1, units), name=name))
    return Random().unit_scores(members, Options(seed=seed))


def test_random_scores_depend_on_seed_and_name_alone():
    state = torch.random.get_rng_state()
    scores = draws()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(draws(), scores)
    assert torch.equal(draws(units=5), scores[:5])
    assert not (draws(seed=1) == scores).any()
    assert not (draws(name="layer1.0.conv2") == scores).any()


def test_random_scores_are_those_of_splitmix64_on_the_digest_of_the_name():
    def mix(state, step):
        z = (state + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    name = int(hashlib.sha256(b"layer1.0.conv1").hexdigest()[:16], 16)
    states = [mix(mix(mix(mix(0, 7), name), 0), unit) for unit in range(3)]
    assert draws(seed=7, units=3).tolist() == [((z >> 12) + 0.5) / 2**52 for z in states]


def test_random_scores_are_uniform():
    scores = torch.cat([draws(name=f"layer{i}", units=256) for i in range(64)]).sort().values
    steps = (torch.arange(len(scores)) + 0.5) / len(scores)
    assert (scores - steps).abs().max() < 1.63 / len(scores) ** 0.5  # Kolmogorov–Smirnov, 1 %


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [COBD(), L1(), Taylor(), NNSlimming()], ids=lambda method: method.name)
def test_what_is_not_finite_is_named(method, bad):
    layer = nn.Linear(4, 3)
    statistics = {"diagonal": torch.ones(3, 5), "gradient": torch.ones(3, 5)}
    member = with_statistics(layer, "block.fc", **statistics)
    norms = torch.ones(3, 1)
    member.weight[1, 2] = bad
    norms[1, 0] = bad
    with pytest.raises(ValueError, match=r"'block\.fc' must be finite"):
        method.unit_scores(group(member, norms=(norms,)), Options())
    if method.needs:
        statistics[method.needs][1, 2] = bad
        broken = replace(
            with_statistics(layer, "block.fc"), factors=LayerFactors(NOTHING, NOTHING, 1, **statistics)
        )
        with pytest.raises(ValueError, match=r"weight and factors of 'block\.fc' must be finite"):
            method.unit_scores(group(broken), Options())
