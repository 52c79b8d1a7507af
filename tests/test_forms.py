"""Rebuilt layers against the layers they stand for, and their formulas of cost against torch's counter."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_factors import eigenbasis, random_layer_factors
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.pruning.forms import (
    CHILDREN,
    PROJECTIONS,
    Cost,
    Rotations,
    available,
    build,
    cost,
    factorize,
    obstacle,
    parts,
    rotates_input,
    rotates_output,
)
from eigendamage_ext.pruning.methods.eigendamage import eigendamage_scores


def bases(layer, form, input_rank, output_rank):
    """Columns for `factorize`, from random factors."""
    spec = LayerSpec.of("layer", layer)
    scores = eigendamage_scores(spec, layer, eigenbasis(random_layer_factors(spec)))
    return (
        scores.input_basis[:, :, :input_rank] if rotates_input(form) else None,
        scores.output_basis[:, :, :output_rank] if rotates_output(form) else None,
    )


def count(module, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    stride = draw(st.sampled_from([1, 2, (2, 1)]))
    padding = draw(st.sampled_from([0, 1, 2, (0, 2), "valid", "same"]))
    kernel = draw(st.sampled_from([1, 2, 3, (1, 3), (4, 2)]))
    dilation = draw(st.sampled_from([1, 2, (1, 2)]))
    layer = nn.Conv2d(
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 4)),
        kernel,
        stride=1 if padding == "same" else stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    height, width = draw(st.integers(8, 10)), draw(st.integers(8, 10))
    return layer, torch.randn(2, layer.in_channels, height, width)


@st.composite
def linears(draw):
    layer = nn.Linear(draw(st.integers(1, 6)), draw(st.integers(1, 6)), bias=draw(st.booleans()))
    return layer, torch.randn(*[2, 3, 4][: draw(st.integers(1, 3))], layer.in_features)


layers_and_inputs = st.one_of(convolutions(), linears())
checked = settings(max_examples=150, deadline=None, derandomize=True)


@checked
@given(layers_and_inputs, st.sampled_from(PROJECTIONS[1:]), st.sampled_from([torch.float32, torch.float64]))
def test_at_full_rank_a_rebuilt_layer_equals_the_layer(case, form, dtype):
    layer, x = case[0].to(dtype), case[1].to(dtype)
    rebuilt = factorize(layer, *bases(layer, form, None, None))
    expected = layer(x)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert rebuilt(x).dtype == dtype
    assert not (rebuilt(x) - expected).abs().max() > tolerance * expected.abs().max()


@checked
@given(layers_and_inputs, st.sampled_from(PROJECTIONS[1:]), st.data())
def test_at_reduced_rank_it_equals_the_layer_with_a_projected_weight(case, form, data):
    layer, x = case[0].double(), case[1].double()
    spec = LayerSpec.of("layer", layer)
    ranks = [data.draw(st.integers(1, width)) for width in (spec.in_per_group, spec.out_per_group)]
    inputs, outputs = bases(layer, form, *ranks)
    rebuilt = factorize(layer, inputs, outputs)

    weight = layer.weight.detach().reshape(spec.groups, spec.out_per_group, spec.in_per_group, -1)
    if inputs is not None:
        weight = torch.einsum("goik,gij->gojk", weight, inputs @ inputs.mT)
    if outputs is not None:
        weight = torch.einsum("goik,gxo->gxik", weight, outputs @ outputs.mT)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))
    expected = layer(x)
    assert not (rebuilt(x) - expected).abs().max() > 1e-10 * max(1, expected.abs().max())


@checked
@given(layers_and_inputs, st.sampled_from(PROJECTIONS), st.data())
def test_cost_is_what_torch_counts_on_the_built_layer(case, form, data):
    layer, x = case
    x = x[:1] if x.dim() == 4 and isinstance(layer, nn.Conv2d) else x
    spec = LayerSpec.of("layer", layer)
    ranks = [data.draw(st.integers(1, width)) for width in (spec.in_per_group, spec.out_per_group)]
    built = layer if form == "dense" else factorize(layer, *bases(layer, form, *ranks))
    positions = x.numel() // spec.in_channels, layer(x).numel() // spec.out_channels
    assert cost(spec, form, *ranks, *positions) == Cost(
        params=sum(p.numel() for p in built.parameters()), flops=count(built, x)
    )


def test_a_512_to_512_layer_cut_to_32_directions_costs_a_fiftieth():
    layer = nn.Conv2d(512, 512, 3, padding=1, bias=False, device="meta")
    spec = LayerSpec.of("layer", layer)
    dense = cost(spec, "dense", 512, 512, 16, 16)
    sequential = build(nn.Conv2d(512, 512, 3, padding=1, bias=False), "both", 32, 32)
    shares = [100 * child.weight.numel() / dense.params for child in sequential]
    assert [round(share, 1) for share in shares] == [0.7, 0.4, 0.7]
    assert cost(spec, "both", 32, 32, 16, 16).flops == pytest.approx(sum(shares) / 100 * dense.flops)


@pytest.mark.parametrize("form", PROJECTIONS[1:])
def test_children_bias_and_geometry(form):
    layer = nn.Conv2d(
        8, 12, (3, 1), stride=2, padding=(2, 1), dilation=(2, 1), groups=2, padding_mode="circular"
    )
    rebuilt = factorize(layer, *bases(layer, form, 3, 2))
    assert type(rebuilt) is nn.Sequential
    assert tuple(name for name, _ in rebuilt.named_children()) == CHILDREN[form]
    assert [child.bias is not None for child in rebuilt] == [False] * (len(rebuilt) - 1) + [True]
    assert torch.equal(rebuilt[-1].bias, layer.bias)
    for name, child in rebuilt.named_children():
        assert type(child) is nn.Conv2d and child.groups == 2
        if name == "core":
            for attribute in ("kernel_size", "stride", "padding", "dilation", "padding_mode"):
                assert getattr(child, attribute) == getattr(layer, attribute)
        else:
            assert (child.kernel_size, child.stride, child.padding) == ((1, 1), (1, 1), (0, 0))


def test_flags_dtype_and_memory_format_are_the_layer_s():
    layer = nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last, dtype=torch.bfloat16).eval()
    layer.weight.requires_grad_(False)
    rebuilt = factorize(layer, *bases(layer, "both", 4, 4))
    assert rebuilt.core.weight.is_contiguous(memory_format=torch.channels_last)
    assert not rebuilt.core.weight.is_contiguous()
    assert all(p.dtype == torch.bfloat16 for p in rebuilt.parameters())
    assert {n: p.requires_grad for n, p in rebuilt.named_parameters()} == {
        "input_rotation.weight": False,
        "core.weight": False,
        "output_rotation.weight": False,
        "output_rotation.bias": True,
    }
    assert not any(module.training for module in rebuilt.modules())
    assert factorize(layer.train(), *bases(layer, "both", 4, 4)).core.training


def test_the_weight_is_rounded_once():
    layer = nn.Linear(16, 16).bfloat16()
    inputs, outputs = bases(layer, "both", 5, 7)
    rebuilt = factorize(layer, inputs, outputs)
    core = outputs[0].T @ layer.weight.double() @ inputs[0]
    assert torch.equal(rebuilt.core.weight, core.bfloat16())


def test_building_draws_no_random_numbers_and_leaves_the_layer_alone():
    layer = nn.Conv2d(4, 4, 3)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    columns = bases(layer, "both", 2, 2)
    state = torch.random.get_rng_state()
    rebuilt = factorize(layer, *columns)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())
    pointers = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    assert not pointers & {p.untyped_storage().data_ptr() for p in rebuilt.parameters()}


@pytest.mark.parametrize(
    ("layer", "forms"),
    [
        (nn.Conv2d(4, 4, 3), PROJECTIONS),
        (nn.Conv2d(1, 4, 3), ("dense", "output")),
        (nn.Conv2d(4, 8, 3, groups=4), ("dense", "output")),
        (nn.Conv2d(8, 4, 3, groups=4), ("dense", "input")),
        (nn.Conv2d(4, 4, 3, groups=4), ("dense",)),
        (nn.Conv2d(4, 4, 1, stride=2), ("dense",)),
        (nn.Conv2d(4, 4, 2, stride=2), PROJECTIONS),
        (nn.Linear(4, 1), ("dense", "input")),
        (nn.Linear(1, 1), ("dense",)),
    ],
    ids=str,
)
def test_which_forms_a_layer_can_take(layer, forms):
    spec = LayerSpec.of("layer", layer)
    assert available(spec) == forms
    assert (obstacle(spec) is None) == (len(forms) > 1)


def test_the_forms_of_a_grouped_layer_never_mix_groups():
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False, dtype=torch.float64)
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    changed = x.clone()
    changed[:, 2:] += 1
    for form, rank in itertools.product(PROJECTIONS[1:], (1, 2)):
        rebuilt = factorize(layer, *bases(layer, form, rank, rank))
        assert torch.equal(rebuilt(x)[:, :3], rebuilt(changed)[:, :3])
        assert not torch.equal(rebuilt(x)[:, 3:], rebuilt(changed)[:, 3:])


def columns(groups, width, rank):
    """Random orthonormal columns ``(g, width, rank)``."""
    return torch.linalg.qr(torch.randn(groups, width, width, dtype=torch.float64)).Q[:, :, :rank]


def blocks(weight, groups):
    """The weight of a part as ``(g, out/g, in/g, K)``."""
    return weight.detach().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


@checked
@given(layers_and_inputs, st.lists(st.sampled_from(PROJECTIONS[1:]), min_size=2, max_size=3), st.data())
def test_rounds_of_cuts_equal_the_dense_layer_with_the_product_of_their_projections(case, rounds, data):
    dense, x = case[0].double(), case[1].double()
    spec = LayerSpec.of("layer", dense)
    kept_inputs, kept_outputs = (
        torch.eye(width, dtype=torch.float64).repeat(spec.groups, 1, 1)
        for width in (spec.in_per_group, spec.out_per_group)
    )
    layer, rotated = dense, set()
    for form in rounds:
        core = LayerSpec.of("core", parts(layer)["core"])
        ranks = [data.draw(st.integers(1, width)) for width in (core.in_per_group, core.out_per_group)]
        inputs = columns(core.groups, core.in_per_group, ranks[0]) if rotates_input(form) else None
        outputs = columns(core.groups, core.out_per_group, ranks[1]) if rotates_output(form) else None
        # A complete basis changes nothing where there is a rotation.
        if inputs is not None and not ("input_rotation" in rotated and ranks[0] == core.in_per_group):
            kept_inputs = kept_inputs @ inputs
        if outputs is not None and not ("output_rotation" in rotated and ranks[1] == core.out_per_group):
            kept_outputs = kept_outputs @ outputs
        layer = factorize(layer, inputs, outputs)
        rotated |= set(CHILDREN[form])
        assert set(parts(layer)) == rotated
    projected = torch.einsum(
        "gxa,goa,goik,gib,gyb->gxyk",
        kept_outputs, kept_outputs, blocks(dense.weight, spec.groups), kept_inputs, kept_inputs,
    )  # fmt: skip
    with torch.no_grad():
        dense.weight.copy_(projected.reshape(dense.weight.shape))
    expected = dense(x)
    assert not (layer(x) - expected).abs().max() > 1e-10 * max(1, expected.abs().max())


@checked
@given(layers_and_inputs, st.sampled_from(PROJECTIONS[1:]), st.sampled_from(PROJECTIONS[1:]), st.data())
def test_after_training_a_factored_layer_is_projected_at_its_core(case, first, second, data):
    dense, x = case[0].double(), case[1].double()
    ranks = [data.draw(st.integers(1, width)) for width in (dense.weight.shape[1], dense.weight.shape[1])]
    layer = factorize(dense, *bases(dense, first, *ranks))
    for parameter in layer.parameters():
        parameter.data += torch.randn_like(parameter)
    core = LayerSpec.of("core", layer.core)
    widths = core.in_per_group, core.out_per_group
    kept = [columns(core.groups, width, data.draw(st.integers(1, width))) for width in widths]
    inputs, outputs = kept[0] if rotates_input(second) else None, kept[1] if rotates_output(second) else None
    cut = factorize(layer, inputs, outputs)

    before = {name: child.weight.clone() for name, child in parts(layer).items()}
    weight = blocks(layer.core.weight, core.groups)
    if inputs is not None:
        weight = torch.einsum("goik,gij->gojk", weight, inputs @ inputs.mT)
    if outputs is not None:
        weight = torch.einsum("goik,gxo->gxik", weight, outputs @ outputs.mT)
    expected_bias = layer[-1].bias
    assert expected_bias is None or torch.equal(cut[-1].bias, expected_bias)
    layer.core.weight.data = weight.reshape(layer.core.weight.shape)
    expected = layer(x)
    assert not (cut(x) - expected).abs().max() > 1e-10 * max(1, expected.abs().max())
    for name, basis in (("input_rotation", inputs), ("output_rotation", outputs)):
        if name in before and (basis is None or basis.shape[-1] == basis.shape[-2]):
            assert torch.equal(parts(cut)[name].weight, before[name])


@checked
@given(layers_and_inputs, st.sampled_from(PROJECTIONS[1:]), st.sampled_from(PROJECTIONS), st.data())
def test_cost_of_a_second_cut_is_what_torch_counts(case, first, second, data):
    layer, x = case
    x = x[:1] if x.dim() == 4 and isinstance(layer, nn.Conv2d) else x
    spec = LayerSpec.of("layer", layer)
    ranks = [data.draw(st.integers(1, width)) for width in (spec.in_per_group, spec.out_per_group)]
    positions = x.numel() // spec.in_channels, layer(x).numel() // spec.out_channels
    layer = factorize(layer, *bases(layer, first, *ranks))
    core = LayerSpec.of("core", layer.core)
    widths = core.in_per_group, core.out_per_group
    ranks = [data.draw(st.integers(1, width)) for width in widths]
    inputs, outputs = (columns(core.groups, *side) for side in zip(widths, ranks, strict=True))
    cut = factorize(
        layer, inputs if rotates_input(second) else None, outputs if rotates_output(second) else None
    )
    assert cost(core, second, *ranks, *positions, Rotations.around(layer)) == Cost(
        params=sum(p.numel() for p in cut.parameters()), flops=count(cut, x)
    )


def test_cost_of_a_rebuilt_layer_whose_core_is_depthwise():
    layer = nn.Sequential()
    layer.input_rotation = nn.Conv2d(6, 4, 1, bias=False)
    layer.core = nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False)
    layer.output_rotation = nn.Conv2d(4, 5, 1)
    core, rotations = LayerSpec.of("core", layer.core), Rotations.around(layer)
    assert rotations == Rotations(inputs=6, outputs=5, bias=5, separated=True)
    assert cost(core, "dense", 0, 0, 49, 9, rotations) == Cost(
        params=6 * 4 + 4 * 9 + 4 * 5 + 5, flops=count(layer, torch.randn(1, 6, 7, 7))
    )


def test_flags_and_dtype_stay_with_the_parts_of_a_factored_layer():
    layer = factorize(nn.Linear(6, 6).bfloat16(), *bases(nn.Linear(6, 6), "input", 4, 6)).eval()
    layer.input_rotation.weight.requires_grad_(False)
    layer.core.bias.requires_grad_(False)
    inputs, outputs = columns(1, 4, 3), columns(1, 6, 2)
    cut = factorize(layer, inputs, outputs)
    assert {n: (p.requires_grad, p.dtype) for n, p in cut.named_parameters()} == {
        "input_rotation.weight": (False, torch.bfloat16),
        "core.weight": (True, torch.bfloat16),
        "output_rotation.weight": (True, torch.bfloat16),
        "output_rotation.bias": (False, torch.bfloat16),
    }
    assert not any(module.training for module in cut.modules())
    assert torch.equal(cut.output_rotation.bias, layer.core.bias)
    rotation = inputs[0].T @ layer.input_rotation.weight.double()
    assert torch.equal(cut.input_rotation.weight, rotation.bfloat16())
