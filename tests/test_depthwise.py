"""Layers with depthwise cores against the dense layers that they stand for, in plans and in files."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_factors import eigenbasis, random_factors, random_layer_factors
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext._files import ArtifactError
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.cp import decompose
from eigendamage_ext.pruning.depthwise import separate
from eigendamage_ext.pruning.forms import (
    CHILDREN,
    Cost,
    Rotations,
    cost,
    factorize,
    form_at,
    grouped_weight,
    parts,
    rotate,
    separable,
)
from eigendamage_ext.pruning.methods.eigendamage import eigendamage_scores
from eigendamage_ext.pruning.methods.eigendamage_depthwise import EigenDamageDepthwise

LAYERS = {
    "plain": nn.Conv2d(6, 8, 3, padding=1),
    "more inputs": nn.Conv2d(8, 5, 3, bias=False),
    "strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": nn.Conv2d(5, 5, 3, dilation=2, padding="same", padding_mode="circular"),
    "reflect": nn.Conv2d(4, 7, (1, 3), padding=(0, 2), padding_mode="reflect"),
}


def bases(layer, input_rank, output_rank):
    core = parts(layer)["core"]
    spec = LayerSpec.of("layer", core)
    scores = eigendamage_scores(spec, core, eigenbasis(random_layer_factors(spec)))
    return scores.input_basis[:, :, :input_rank], scores.output_basis[:, :, :output_rank]


def stand_in(layer, inputs, outputs):
    """The dense layer with the weight that decomposing the projected core leaves, and the error of that."""
    cp = decompose(rotate(grouped_weight(layer), inputs, outputs)[0])
    core = torch.einsum("or,ir,kr->oik", cp.outputs, cp.inputs, cp.kernels)
    with torch.no_grad():
        expanded = torch.einsum("rsk,or,is->oik", core, outputs[0], inputs[0])
        layer.weight.copy_(expanded.reshape(layer.weight.shape))
    return layer, cp.error


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(LAYERS)), st.data())
def test_it_equals_the_dense_layer_with_the_decomposed_projected_weight(name, data):
    layer = LAYERS[name].double()
    spec = LayerSpec.of("layer", layer)
    ranks = [data.draw(st.integers(1, width)) for width in (spec.in_channels, spec.out_channels)]
    x = torch.randn(2, spec.in_channels, 8, 9, dtype=torch.float64)
    columns = bases(layer, *ranks)
    separated, error = separate(layer, *columns)

    built = separated(x)
    positions = x[0, 0].numel(), built[0, 0].numel()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        separated(x[:1])
    assert cost(spec, "depthwise", *ranks, *positions) == Cost(
        params=sum(p.numel() for p in separated.parameters()), flops=counter.get_total_flops()
    )

    saved = layer.weight.detach().clone()
    dense, expected_error = stand_in(layer, *columns)
    expected = dense(x)
    assert error == pytest.approx(expected_error)
    assert not (built - expected).abs().max() > 1e-10 * expected.abs().max()
    with torch.no_grad():
        layer.weight.copy_(saved)


def test_where_the_decomposition_is_exact_so_is_the_layer():
    layer = nn.Conv2d(6, 4, 3, padding=1).double()
    a, b, d = (torch.randn(n, 4, dtype=torch.float64) for n in (4, 6, 9))
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("or,ir,kr->oik", a, b, d).reshape(layer.weight.shape))
    separated, error = separate(layer, *bases(layer, 6, 4))
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = layer(x)
    assert error < 1e-8
    assert not (separated(x) - expected).abs().max() > 1e-10 * expected.abs().max()


def test_children_geometry_bias_and_flags():
    layer = nn.Conv2d(
        8,
        12,
        (3, 1),
        stride=2,
        padding=(2, 1),
        dilation=(2, 1),
        padding_mode="circular",
        dtype=torch.bfloat16,
    ).eval()
    layer = layer.to(memory_format=torch.channels_last)
    layer.weight.requires_grad_(False)
    separated, _ = separate(layer, *bases(layer, 5, 3))
    assert type(separated) is nn.Sequential and not separated.core.training
    assert tuple(name for name, _ in separated.named_children()) == CHILDREN["depthwise"]
    assert [tuple(child.weight.shape[:2]) for child in separated] == [(3, 8), (3, 1), (12, 3)]
    assert [child.groups for child in separated] == [1, 3, 1]
    assert [child.bias is not None for child in separated] == [False, False, True]
    assert torch.equal(separated[-1].bias, layer.bias)
    for attribute in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
        assert getattr(separated.core, attribute) == getattr(layer, attribute)
    assert {p.dtype for p in separated.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in separated.parameters()] == [False, False, False, True]
    assert form_at(separated) == "depthwise"


def test_a_layer_that_was_rotated_before_becomes_no_deeper():
    layer = nn.Conv2d(6, 7, 3, padding=1).double()
    rotated = factorize(layer, *bases(layer, 5, 6))
    columns = bases(rotated, 4, 3)
    separated, _ = separate(rotated, *columns)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    rotated.core, _ = stand_in(rotated.core, *columns)
    expected = rotated(x)
    assert [tuple(child.weight.shape[:2]) for child in separated] == [(3, 6), (3, 1), (7, 3)]
    assert not (separated(x) - expected).abs().max() > 1e-10 * expected.abs().max()
    core = LayerSpec.of("core", rotated.core)
    found = cost(core, "depthwise", 4, 3, 25, 25, Rotations(inputs=6, outputs=7, bias=7))
    assert found.params == sum(p.numel() for p in separated.parameters())


@pytest.mark.parametrize(
    ("layer", "possible"),
    [
        (nn.Conv2d(4, 4, 3), True),
        (nn.Conv2d(2, 4, (1, 2), stride=2), True),
        (nn.Conv2d(4, 4, 1), False),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(4, 4, 3, groups=4), False),
        (nn.Conv2d(1, 4, 3), False),
        (nn.Conv2d(4, 1, 3), False),
        (nn.Linear(4, 4), False),
    ],
    ids=str,
)
def test_which_layers_can_take_the_form(layer, possible):
    spec = LayerSpec.of("layer", layer)
    assert separable(spec) == possible
    assert ("depthwise" in EigenDamageDepthwise().forms(spec)) == possible
    assert "dense" in EigenDamageDepthwise().forms(spec)


def test_a_weight_that_is_not_finite_is_refused():
    layer = nn.Conv2d(4, 4, 3)
    columns = bases(layer, 4, 4)
    layer.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight of a layer must be finite"):
        separate(layer, *columns)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def pruned(target, **arguments):
    net = network()
    plan = ed.plan(
        net,
        random_factors(net, (3, 8, 8)),
        target=target,
        method="eigendamage-depthwise",
        **arguments,
    )
    return net, plan, plan.apply(net)


def test_a_plan_separates_what_it_cuts_and_says_what_that_leaves_out():
    net, plan, result = pruned({"ratio": 0.4})
    assert result.flops_after == plan.flops_after and result.params_after == plan.params_after
    assert plan.predicted_loss is None and plan["2"].predicted_loss == 0
    assert plan["4"].form == "depthwise" and form_at(result.model[4]) == "depthwise"
    assert plan["2"].form != "depthwise"
    inputs, outputs = (
        basis[:, :, :rank]
        for basis, rank in (
            (plan.scores("4").input_basis, plan["4"].input_rank),
            (plan.scores("4").output_basis, plan["4"].output_rank),
        )
    )
    _, error = separate(net[4], inputs, outputs)
    assert plan["4"].note == f"{100 * error:.0f} % of the core's norm left out"
    assert plan.settings["seed"] == 0
    again = plan.apply(net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again.model(x), result.model(x))


def test_an_edit_separates_too_and_other_forms_are_refused():
    net, plan, _ = pruned({"ratio": 0.0})
    plan.set("4", input_rank=5)
    assert (plan["4"].form, plan["4"].input_rank, plan["4"].output_rank) == ("depthwise", 5, 10)
    assert plan["4"].predicted_loss is None and plan.predicted_loss is None
    assert form_at(plan.apply(net).model[4]) == "depthwise"
    for form in ("both", "input"):
        with pytest.raises(
            ValueError, match=r"must be dense or depthwise, .*method is 'eigendamage-depthwise'"
        ):
            plan.set("4", form=form)
    other = ed.plan(net, random_factors(net, (3, 8, 8)), target={"flops": 1.0})
    with pytest.raises(ValueError, match="got 'depthwise'; the method is 'eigendamage'"):
        other.set("4", form="depthwise")


def test_a_layer_that_loses_no_direction_stays_dense():
    net, plan, result = pruned({"ratio": 0.0})
    assert {row.form for row in plan.values()} == {"dense"} and plan.predicted_loss == 0
    assert result.params_after == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("measure", ["flops", "params"])
def test_budgets_are_met_from_below(measure):
    for value in (0.8, 0.5, 0.3):
        _, plan, result = pruned({measure: value})
        before, after = (getattr(result, f"{measure}_{when}") for when in ("before", "after"))
        steps = [getattr(row, measure).before - getattr(row, measure).after for row in plan.values()]
        assert after <= value * before
        assert after >= (value - 0.01) * before - max(steps)


def test_least_loss_is_refused_as_not_all_that_is_lost_is_predicted():
    net = network()
    with pytest.raises(ValueError, match="allocation must be 'threshold' for method='eigendamage-depthwise'"):
        ed.plan(
            net,
            random_factors(net, (3, 8, 8)),
            target={"flops": 0.5},
            method="eigendamage-depthwise",
            allocation="least_loss",
        )


def test_a_file_brings_it_back(tmp_path):
    _, _, result = pruned({"ratio": 0.4})
    result.save(tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 8, 8)
    for into in (network(), result.model):
        loaded = ed.load(tmp_path / "net.safetensors", into=into)
        assert torch.equal(loaded(x), result.model(x))
        assert form_at(loaded[4]) == "depthwise"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"form": "depthwise", "input_rank": 4, "output_rank": 3}, "ranks of layer '4' must be equal"),
        (
            {"form": "depthwise", "input_rank": 9, "output_rank": 9},
            r"input_rank of layer '4' must lie in 1…8",
        ),
        (
            {"form": "depthwise", "input_rank": 0, "output_rank": 0},
            r"input_rank of layer '4' must lie in 1…8",
        ),
    ],
)
def test_a_manifest_that_no_such_layer_could_have_is_refused(shape, message):
    from eigendamage_ext.pruning.structure import restored

    with pytest.raises(ArtifactError, match=message):
        restored(network(), {"4": shape}, {})
    with pytest.raises(ArtifactError, match="layer '2' of into must have a kernel over several"):
        restored(network(), {"2": shape}, {})


@pytest.mark.parametrize("corrected", [False, True])
def test_a_later_round_cuts_channels_of_the_core_by_what_they_are_worth(corrected):
    _, _, result = pruned({"ratio": 0.3})
    model, x = result.model.double(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    loader = [(x, torch.arange(6) % 4)]
    factors = ed.estimate_factors(model, loader, progress=False)
    scores = "kfac"
    if corrected:
        factors.second_moments(model, loader, progress=False)
        scores = "ekfac"
    plan = ed.plan(model, factors, target={"ratio": 0.0}, scores=scores)
    core = model[4].core
    width, rank = core.in_channels, core.in_channels // 2
    assert width > 3 and plan["4"].widths == (width, width)
    assert (plan["4"].form, plan["4"].input_rank, plan["4"].output_rank) == ("dense", width, width)

    weight = core.weight.detach().reshape(width, -1)
    if corrected:
        worth = (factors["4"].S.reshape(width, -1) * weight**2).sum(1)
    else:
        worth = factors["4"].A.flatten() * factors["4"].G.flatten() * (weight**2).sum(1)
    lost = worth.argsort()[: width - rank]
    plan.set("4", input_rank=rank)
    assert (plan["4"].form, plan["4"].input_rank, plan["4"].output_rank) == ("depthwise", rank, rank)
    assert plan["4"].predicted_loss == pytest.approx(0.5 * float(worth[lost].sum()))
    cut = plan.apply(model)
    assert (cut.params_after, cut.flops_after) == (plan.params_after, plan.flops_after)
    assert [tuple(child.weight.shape[:2]) for child in cut.model[4]] == [(rank, 8), (rank, 1), (10, rank)]
    with torch.no_grad():
        core.weight[lost] = 0
        expected = model(x)
        assert not (cut.model(x) - expected).abs().max() > 1e-10 * expected.abs().max()


@pytest.mark.parametrize("method", ["eigendamage", "eigendamage-depthwise"])
@pytest.mark.parametrize("measure", ["flops", "params"])
def test_rounds_meet_their_targets(method, measure):
    loader = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)]
    net = pruned({"ratio": 0.3})[2].model
    rounds = ed.Pruner(net, loader, target={measure: 0.5}, steps=3, method=method, progress=False)
    for step in rounds:
        before, after = (getattr(rounds.result, f"{measure}_{when}") for when in ("before", "after"))
        assert after <= 0.5 ** (step.index / 3) * before
    ranks = [model[4].core.in_channels for model in (net, step.model)]
    assert ranks[1] < ranks[0] and step.model[4].core.groups == ranks[1]


def test_least_loss_counts_the_channels_of_a_depthwise_core():
    _, _, result = pruned({"ratio": 0.3})
    model, loader = result.model, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)]
    cut = ed.prune(model, loader, target={"flops": 0.6}, allocation="least_loss", progress=False)
    row = cut.plan["4"]
    assert row.form == "depthwise" and row.input_rank == row.output_rank < row.widths[0]
    assert cut.flops_after == cut.plan.flops_after <= 0.6 * cut.flops_before
    assert cut.plan.predicted_loss is not None
