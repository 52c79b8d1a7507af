"""Coupled channels: groups against those read off by hand, cuts against zeros where the channels are used."""

import pytest
import torch
from coupled_nets import NETS, coupled_net
from small_nets import same, snapshot
from torch import Tensor, nn

from eigendamage_ext.pruning.coupling import ChannelGroup, channel_groups, cuts
from eigendamage_ext.pruning.surgery import slice_channels


def masked_outputs(net: nn.Module, x: Tensor, removed: list[tuple[ChannelGroup, Tensor]]) -> Tensor:
    """What the uncut network computes where every consumer sees zeros in the channels removed."""
    hooks = []
    for group, units in removed:
        for member in group.consumers:
            module = net.get_submodule(member.name)
            mask = torch.ones(module.weight.shape[1], dtype=torch.float64)
            mask[member.channels[units]] = 0
            mask = mask.reshape(-1, 1, 1) if isinstance(module, nn.Conv2d) else mask
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,)))
    outputs = net(x)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("name", NETS)
def test_two_rounds_of_cuts_are_zeros_at_the_consumers(name):
    net, x = coupled_net(name)
    for _ in range(2):
        groups = channel_groups(net, x).groups
        assert groups
        removed = [(group, torch.randperm(group.units)[: max(1, group.units // 3)]) for group in groups]
        smaller = slice_channels(net, cuts(removed))
        expected = masked_outputs(net, x, removed)
        assert (expected - net(x)).abs().max() > 1e-3 * expected.abs().max()
        assert (smaller(x) - expected).abs().max() < 1e-10 * expected.abs().max()
        for group, units in removed:
            for member in group.producers:
                before, after = (n.get_submodule(member.name).weight.shape[0] for n in (net, smaller))
                assert before - after >= len(units)
        net = smaller


def listed(coupling):
    """Members by group: name, side, and the channels as nested lists."""
    return {
        group.name: [(member.name, member.side, member.channels.tolist()) for member in group.members]
        for group in coupling.groups
    }


def columns(start, stop):
    return [[channel] for channel in range(start, stop)]


def test_a_residual_sum_couples_a_stage():
    net, x = coupled_net("residual")
    coupling = channel_groups(net, x)
    assert [group.name for group in coupling.groups] == [
        "conv1",
        "layer1.0.conv1",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
        "layer3.0.conv2",
    ]
    stage = coupling.groups[3]
    assert stage.units == 6 and all(member.channels.tolist() == columns(0, 6) for member in stage.members)
    assert [member.name for member in stage.producers] == ["layer2.0.conv2", "layer2.0.shortcut.0"]
    assert [member.name for member in stage.norms] == ["layer2.0.bn2", "layer2.0.shortcut.1"]
    assert [member.name for member in stage.consumers] == ["layer3.0.conv1", "layer3.0.shortcut.0"]
    assert coupling.refused == {"linear": "it makes the model's output"}


def test_zero_padded_shortcuts_leave_the_channels_inside_blocks():
    net, x = coupled_net("residual A")
    coupling = channel_groups(net, x)
    assert [group.name for group in coupling.groups] == [
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)
    ]
    assert coupling.refused.pop("linear") == "it makes the model's output"
    assert set(coupling.refused) == {"conv1"} | {f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1)}
    assert set(coupling.refused.values()) == {"its channels are padded with channels of zeros"}


def test_concatenated_channels_are_columns_of_several_groups():
    net, x = coupled_net("dense")
    assert listed(channel_groups(net, x)) == {
        "stem": [
            ("stem", "output", columns(0, 4)),
            ("norm1", "both", columns(0, 4)),
            ("conv1", "input", columns(0, 4)),
            ("norm2", "both", columns(0, 4)),
            ("conv2", "input", columns(0, 4)),
            ("transition", "input", columns(0, 4)),
        ],
        "conv1": [
            ("conv1", "output", columns(0, 3)),
            ("norm2", "both", columns(4, 7)),
            ("conv2", "input", columns(4, 7)),
            ("transition", "input", columns(4, 7)),
        ],
        "conv2": [("conv2", "output", columns(0, 3)), ("transition", "input", columns(7, 10))],
        "transition": [("transition", "output", columns(0, 6)), ("head", "input", columns(0, 6))],
    }


def test_depthwise_convolutions_and_gates_go_with_their_channels():
    net, x = coupled_net("mobile")
    groups = listed(channel_groups(net, x))
    assert [(name, side) for name, side, _ in groups["expand.0"]] == [
        ("expand.0", "output"),
        ("expand.1", "both"),
        ("depthwise", "both"),
        ("norm", "both"),
        ("squeeze", "input"),
        ("excite", "output"),
        ("project.0", "input"),
    ]
    assert [name for name, _, _ in groups["stem.0"]] == [
        "stem.0",
        "stem.1",
        "expand.0",
        "project.0",
        "project.1",
        "head",
    ]
    assert list(groups) == ["stem.0", "expand.0", "squeeze"]


def test_a_flattened_channel_is_many_columns():
    net, x = coupled_net("flattened")
    groups = listed(channel_groups(net, x))
    pixels = [[4 * channel + pixel for pixel in range(4)] for channel in range(6)]
    assert groups["2"] == [("2", "output", columns(0, 6)), ("6", "input", pixels)]
    assert [name for name, _, _ in groups["6"]] == ["6", "7", "11"]


def test_the_model_and_the_random_state_are_left_alone():
    net, x = coupled_net("residual")
    net.float().train().layer1.eval()
    net.conv1.weight.requires_grad_(False)
    seen = []
    net.linear.register_forward_hook(lambda *_: seen.append(1))
    before = snapshot(net)
    channel_groups(net, x.float())
    assert same(before, snapshot(net))
