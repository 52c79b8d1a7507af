"""Replacing layers wherever they hang, slicing channels, and the model as it was where that fails."""

import pytest
import torch
from random_factors import random_factors
from small_nets import EXAMPLE, Net, same, snapshot
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.surgery import Cut, rebuild, slice_channels

PLACES = ("stem.0", "blocks.0", "blocks.1", "branches.pw", "hidden", "head")


def full_rank_plan(net):
    plan = ed.plan(net, random_factors(net, EXAMPLE), target={"flops": 1})
    for name in PLACES:
        plan.set(name, form="both")
    return plan


def test_every_container_is_rebuilt_and_at_full_rank_computes_the_same():
    net = Net().eval()
    x = torch.randn(4, *EXAMPLE)
    expected = net(x)
    result = full_rank_plan(net).apply(net)
    for name in PLACES:
        rebuilt = result.model.get_submodule(name)
        assert [child for child, _ in rebuilt.named_children()] == [
            "input_rotation",
            "core",
            "output_rotation",
        ]
    assert type(result.model.blocks) is nn.ModuleList and len(result.model.stem) == 3
    assert [n for n, _ in result.model.named_children()] == [n for n, _ in net.named_children()]
    assert (result.model(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_original_is_left_as_it_was_and_shares_no_memory():
    net = Net().train()
    net.blocks.eval()
    net.hidden.weight.requires_grad_(False)
    plan = full_rank_plan(net)
    before = snapshot(net)
    model = plan.apply(net).model
    assert same(before, snapshot(net))
    ours = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert not ours & {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert model.training and not model.blocks[0].core.training and model.head.core.training
    assert not model.hidden.core.weight.requires_grad and model.hidden.output_rotation.bias.requires_grad


def test_in_place_the_model_itself_is_rebuilt():
    net = Net().eval()
    norm = net.stem[1]
    result = full_rank_plan(net).apply(net, inplace=True)
    assert result.model is net and net.stem[1] is norm
    assert isinstance(net.head, nn.Sequential)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_builder_that_fails_leaves_the_model_as_it_was(inplace, error):
    net = Net()

    def fail(layer):
        raise error

    before = snapshot(net)
    with pytest.raises(error):
        rebuild(net, {"stem.0": lambda layer: nn.Identity(), "head": fail}, inplace=inplace)
    assert same(before, snapshot(net))


def test_a_forward_that_fails_leaves_the_model_as_it_was():
    net = Net()
    plan = full_rank_plan(net)
    net.up = nn.ConvTranspose2d(7, 7, 1)
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="channels"):
        plan.apply(net, inplace=True)
    assert same(before, snapshot(net))


def of(*channels):
    return torch.tensor(channels)


def test_slices_keep_the_bits_of_what_stays():
    net = Net()
    cut = {
        "stem.0": Cut(outputs=of(0, 5)),
        "stem.1": Cut(outputs=of(5, 0)),
        "branches.dw": Cut(outputs=of(2, 3, 15)),
        "branches.pw": Cut(inputs=of(1)),
        "hidden": Cut(outputs=of(23), inputs=of(0, 31)),
    }
    small = slice_channels(net, cut)
    rows = [i for i in range(16) if i not in (0, 5)]
    assert torch.equal(small.stem[0].weight, net.stem[0].weight[rows])
    assert torch.equal(small.stem[0].bias, net.stem[0].bias[rows])
    assert small.stem[1].num_features == 14 and torch.equal(small.stem[1].running_var, torch.ones(14))
    dw, pw = small.branches["dw"], small.branches["pw"]
    assert (dw.in_channels, dw.out_channels, dw.groups) == (13, 13, 13)
    assert torch.equal(dw.weight, net.branches["dw"].weight[[0, 1, *range(4, 15)]])
    assert torch.equal(pw.weight, net.branches["pw"].weight[:, [0, *range(2, 16)]])
    assert (pw.in_channels, pw.out_channels) == (15, 32)
    assert torch.equal(small.hidden.weight, net.hidden.weight[:23, 1:31])
    assert torch.equal(small.hidden.bias, net.hidden.bias[:23])
    assert torch.equal(small.head.weight, net.head.weight)


def test_batch_norms_keep_the_statistics_and_settings_of_what_stays():
    norm = nn.BatchNorm1d(4, eps=1e-3, momentum=None)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    norm.num_batches_tracked.fill_(7)
    bare = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    net = nn.ModuleList([norm, bare])
    small, bare = slice_channels(net, {"0": Cut(outputs=of(1)), "1": Cut(outputs=of(1, 2))})
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(small, name), getattr(norm, name)[[0, 2, 3]])
    assert (small.num_features, small.eps, small.momentum) == (3, 1e-3, None)
    assert int(small.num_batches_tracked) == 7
    assert type(bare) is nn.BatchNorm2d and bare.num_features == 2 and not bare.state_dict()


def test_slices_are_like_the_layers_they_came_from():
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, padding_mode="circular", bias=False)
    conv = conv.to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    conv.weight.requires_grad_(False)
    conv.register_forward_hook(lambda *_: None)
    net = nn.Sequential(conv, nn.Linear(3, 4, dtype=torch.float64).train())
    small, linear = slice_channels(net, {"0": Cut(of(0), of(1)), "1": Cut(outputs=of(1))})
    assert (
        small.extra_repr()
        == nn.Conv2d(
            3, 5, (3, 2), stride=2, padding=1, dilation=2, padding_mode="circular", bias=False
        ).extra_repr()
    )
    assert small.weight.dtype == torch.bfloat16 and small.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    assert not small.weight.is_contiguous() and not small.weight.requires_grad and not small.training
    assert not small._forward_hooks
    assert linear.weight.dtype == torch.float64 and linear.training and linear.weight.requires_grad


def test_a_depthwise_multiplier_keeps_whole_inputs():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3))
    [small] = slice_channels(net, {"0": Cut(outputs=of(2, 3))})
    assert (small.in_channels, small.groups) == (2, 2)
    x = torch.randn(2, 3, 4, 4)
    kept = torch.tensor([0, 1, 4, 5])
    torch.testing.assert_close(small(x[:, [0, 2]]), net(x)[:, kept])
    with pytest.raises(ValueError, match="depthwise '0' must go with their inputs, 2 to each"):
        slice_channels(net, {"0": Cut(outputs=of(2))})


def test_new_weights_are_put_in_before_slicing():
    net = Net()
    weights = {
        "stem.0": torch.randn(16, 28, dtype=torch.float64),
        "branches.dw": torch.randn(16, 10, dtype=torch.float64),
        "head": torch.randn(5, 25, dtype=torch.float64),
    }
    small = slice_channels(
        net, {"stem.0": Cut(outputs=of(0)), "branches.dw": Cut(outputs=of(3))}, weights=weights
    )
    conv = small.stem[0]
    assert torch.equal(conv.weight, weights["stem.0"][1:, :27].reshape(15, 3, 3, 3).float())
    assert torch.equal(conv.bias, weights["stem.0"][1:, 27].float())
    rows = [0, 1, 2, *range(4, 16)]
    assert torch.equal(small.branches["dw"].weight.flatten(1), weights["branches.dw"][rows, :9].float())
    assert torch.equal(small.head.weight, weights["head"][:, :24].float())
    assert torch.equal(small.head.bias, weights["head"][:, 24].float())


@pytest.mark.parametrize(
    ("cut", "weights", "error", "message"),
    [
        ({"nowhere": Cut()}, {}, ValueError, "must name modules of the model, got 'nowhere'"),
        ({"": Cut()}, {}, ValueError, "got ''"),
        ({"up": Cut(of(1))}, {}, TypeError, "'up' must be a Conv2d .* got a ConvTranspose2d"),
        ({"blocks.1": Cut(of(1))}, {}, TypeError, "'blocks.1' must be a Conv2d without groups"),
        ({"head": Cut(of(5))}, {}, ValueError, "outputs of 'head' must lie in 0…4, got 5"),
        ({"head": Cut(inputs=of(-1))}, {}, ValueError, "inputs of 'head' must lie in 0…23, got -1"),
        ({"head": Cut(of(0, 1, 2, 3, 4))}, {}, ValueError, "'head' must keep a channel, got all 5 removed"),
        ({"branches.dw": Cut(of(1), of(1))}, {}, ValueError, "pass the outputs alone"),
        (
            {},
            {"head": torch.zeros(5, 24)},
            ValueError,
            r"'head' must have the shape \(5, 25\), got \(5, 24\)",
        ),
        ({}, {"stem.1": torch.zeros(16, 2)}, TypeError, "'stem.1' must be a Conv2d or Linear"),
    ],
)
def test_what_cannot_be_sliced_leaves_the_model_as_it_was(cut, weights, error, message):
    net = Net()
    before = snapshot(net)
    with pytest.raises(error, match=f"slice_channels: .*{message}"):
        slice_channels(net, {"stem.0": Cut(of(0)), **cut}, weights=weights, inplace=True)
    assert same(before, snapshot(net))


def test_slicing_disturbs_nothing():
    net = Net()
    before = snapshot(net)
    small = slice_channels(net, {"stem.0": Cut(of(0)), "stem.1": Cut(of(0))})
    assert same(before, snapshot(net)) and small is not net
    norm = net.stem[1]
    assert slice_channels(net, {"stem.0": Cut(of(0))}, inplace=True) is net
    assert net.stem[0].out_channels == 15 and net.stem[1] is norm
