"""Rounds of pruning: each starts from what the last one left."""

import pytest
import torch
from nets import resnet
from random_factors import random_factors
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext.curvature.layers import is_factored


def once(net: nn.Module, **kwargs) -> ed.PruneResult:
    """One round with random factors."""
    return ed.plan(net, random_factors(net, (3, 8, 8), dtype=torch.float64), **kwargs).apply(net)


@pytest.mark.parametrize("allocation", ["threshold", "least_loss"])
@pytest.mark.parametrize("measure", ["flops", "params"])
def test_a_second_round_costs_what_its_plan_says_and_stacks_nothing(measure, allocation):
    net = resnet()
    first = once(net, target={measure: 0.7}, allocation=allocation)
    second = once(first.model, target={measure: 0.7}, allocation=allocation)
    for result in (first, second):
        assert (result.params_before, result.flops_before) == (
            result.plan.params_before,
            result.plan.flops_before,
        )
        assert (result.params_after, result.flops_after) == (
            result.plan.params_after,
            result.plan.flops_after,
        )
    assert getattr(second, f"{measure}_before") == getattr(first, f"{measure}_after")
    assert any(
        row.form != "dense" and is_factored(first.model.get_submodule(row.name))
        for row in second.plan.values()
    )
    assert list(second.plan) == list(first.plan)
    for module in second.model.modules():
        if is_factored(module):
            assert all(type(child) is nn.Conv2d for child in module)


def test_a_plan_is_refused_by_a_model_with_other_rotations_around_the_same_core():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2)).double()
    other = ed.plan(net, random_factors(net, (4,), dtype=torch.float64), target={"params": 1})
    other.set("0", form="both")
    plan = ed.plan(net, random_factors(net, (4,), dtype=torch.float64), target={"params": 1})
    plan.set("0", form="input", input_rank=3)
    rotated = other.apply(net).model
    state = {name: value.clone() for name, value in rotated.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"apply: layer '0' of model must be as in the plan, got .*inputs=4, outputs=4"
    ):
        plan.apply(rotated, inplace=True)
    assert all(torch.equal(value, state[name]) for name, value in rotated.state_dict().items())


def test_a_file_loads_into_the_original_and_into_what_an_earlier_round_left(tmp_path):
    net = resnet()
    first = once(net, target={"flops": 0.7})
    second = once(first.model, target={"flops": 0.6})
    second.save(tmp_path / "second")
    for into in (net, first.model):
        loaded = ed.load(tmp_path / "second", into=into)
        expected = second.model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    first.save(tmp_path / "first")
    with pytest.raises(ValueError, match="build `into` like the model that was pruned"):
        ed.load(tmp_path / "first", into=second.model)
