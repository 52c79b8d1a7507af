"""The least predicted loss for a cost: against brute force, and what every answer must satisfy."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_factors import random_factors
from small_nets import EXAMPLE, Net

import eigendamage_ext as ed
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.direction_plan import Candidate
from eigendamage_ext.pruning.forms import FORMS, available, cost
from eigendamage_ext.pruning.least_loss import Options, choose
from eigendamage_ext.pruning.methods.directions import LayerScores


def options(costs, losses):
    return Options(torch.tensor(costs), torch.tensor(losses, dtype=torch.float64))


def totals(layers, chosen):
    return (
        sum(int(layer.cost[at]) for layer, at in zip(layers, chosen, strict=True)),
        sum(float(layer.loss[at]) for layer, at in zip(layers, chosen, strict=True)),
    )


def test_the_frontier_drops_what_costs_more_and_loses_no_less():
    layer = options([5, 3, 3, 9, 4, 9], [2.0, 3.0, 4.0, 0.0, 3.0, 1.0])
    assert layer.frontier().tolist() == [1, 0, 3]


def test_a_cheap_direction_is_cut_before_a_dear_one_of_equal_loss():
    cheap_to_keep, dear_to_keep = options([10, 9], [0.0, 1.0]), options([100, 50], [0.0, 1.0])
    assert choose([cheap_to_keep, dear_to_keep], 60) == [0, 1]


def test_a_multiplier_reaches_what_lies_on_the_hull():
    layers = [options([4, 2, 1], [0.0, 1.0, 4.0]), options([8, 4, 1], [0.0, 1.0, 9.0])]
    assert choose(layers, 12) == [0, 0]
    assert choose(layers, 8) == [0, 1]
    assert choose(layers, 6) == [1, 1]
    assert choose(layers, 3) == [1, 2]
    assert choose(layers, 2) == [2, 2]


def test_layers_that_lose_nothing_take_their_cheapest_option():
    assert choose([options([7, 3, 5], [0.0, 0.0, 0.0])], 10) == [1]


layer_strategy = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=6).map(
    lambda pairs: options([c for c, _ in pairs], [l / 16 for _, l in pairs])
)


@given(layers=st.lists(layer_strategy, min_size=1, max_size=4), spare=st.integers(0, 60))
def test_against_brute_force(layers, spare):
    allowance = sum(int(layer.cost.min()) for layer in layers) + spare
    chosen = choose(layers, allowance)
    spent, lost = totals(layers, chosen)
    assert spent <= allowance
    every = [totals(layers, at) for at in itertools.product(*(range(len(layer.cost)) for layer in layers))]
    # One layer's options are as far as the multiplier's answer can be from the best one.
    gap = max(float(layer.loss.max() - layer.loss.min()) for layer in layers)
    assert lost <= min(loss for cost, loss in every if cost <= allowance) + gap
    for i, layer in enumerate(layers):
        room = allowance - spent + int(layer.cost[chosen[i]])
        assert not any(
            c <= room and l < layer.loss[chosen[i]] for c, l in zip(layer.cost, layer.loss, strict=True)
        )


def candidate(groups=1):
    generator = torch.Generator().manual_seed(groups)
    importance = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    spec = LayerSpec("layer", "Conv2d", 4 * groups, 5 * groups, (3, 3), groups=groups)
    none = torch.empty(0)
    return Candidate(spec, (64, 36), LayerScores(importance, none, none, none, none), available(spec))


def test_losses_at_all_ranks_are_those_at_each():
    scores = candidate().scores
    table = scores.predicted_losses()
    assert table.shape == (5, 6)
    for i, o in itertools.product(range(5), range(6)):
        assert table[i, o] == pytest.approx(scores.predicted_loss(i, o), rel=1e-14)


@pytest.mark.parametrize("by", ["flops", "params"])
@pytest.mark.parametrize("groups", [1, 2])
def test_options_are_every_form_at_every_rank(by, groups):
    layer = candidate(groups)
    offered, option = layer.options([1, 3, 4], [2, 5], by)
    found = {option(at): at for at in range(len(offered.cost))}
    assert len(found) == len(offered.cost) == 1 + 3 + 2 + 6
    for (form, i, o), at in found.items():
        expected = getattr(cost(layer.spec, form, i, o, 64, 36), by)
        assert form in FORMS and offered.cost[at] == expected
        assert offered.loss[at] == pytest.approx(layer.scores.predicted_loss(i, o), rel=1e-14)


@pytest.mark.parametrize("target", [{"flops": 0.7}, {"flops": 0.4}, {"params": 0.5}])
def test_a_plan_loses_less_than_the_threshold_at_the_same_budget(target):
    torch.manual_seed(0)
    net = Net()
    factors = random_factors(net, EXAMPLE)
    by_threshold = ed.plan(net, factors, target=target)
    plan = ed.plan(net, factors, target=target, allocation="least_loss")
    [(measure, kept)] = target.items()
    before, after = (getattr(plan, f"{measure}_{when}") for when in ("before", "after"))
    assert (kept - 0.02) * before <= after <= kept * before
    assert plan.predicted_loss < by_threshold.predicted_loss
    assert plan.settings["allocation"] == "least_loss"
    result = plan.apply(net)
    assert (result.params_after, result.flops_after) == (plan.params_after, plan.flops_after)


def test_ranks_obey_max_ratio_and_round_to():
    torch.manual_seed(0)
    net = Net()
    plan = ed.plan(
        net,
        random_factors(net, EXAMPLE),
        target={"flops": 0.8},
        allocation="least_loss",
        max_ratio=0.5,
        round_to=2,
    )
    assert any(row.form != "dense" for row in plan.values())
    for row in plan.values():
        for rank, width in (
            (row.input_rank, row.spec.in_per_group),
            (row.output_rank, row.spec.out_per_group),
        ):
            assert rank == width or (rank % 2 == 0 and 2 * rank >= width)


def test_what_it_refuses():
    net = Net()
    factors = random_factors(net, EXAMPLE)
    with pytest.raises(ValueError, match=r"allocation must be one of threshold, least_loss, got 'best'"):
        ed.plan(net, factors, target={"flops": 0.5}, allocation="best")
    with pytest.raises(ValueError, match="target must be in flops or params for allocation='least_loss'"):
        ed.plan(net, factors, target={"ratio": 0.5}, allocation="least_loss")
    with pytest.raises(ValueError, match="nearest reachable value"):
        ed.plan(net, factors, target={"flops": 1e-4}, allocation="least_loss")
    with pytest.raises(ValueError, match="nearest reachable value"):
        ed.plan(net, factors, target={"flops": 0.5}, allocation="least_loss", ignored_layers="*")
