"""Coupled channels: groups against those read off by hand, cuts against zeros where the channels are used."""

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from coupled_nets import NETS, coupled_net
from small_nets import same, snapshot
from torch import Tensor, nn

from eigendamage_ext.pruning.channel_check import Trial
from eigendamage_ext.pruning.channel_graph import ChannelGraph
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


def test_filters_of_one_layer_may_fall_into_two_groups():
    net, x = coupled_net("split")
    assert listed(channel_groups(net, x)) == {
        "whole": [
            ("whole", "output", columns(0, 4)),
            ("left", "output", columns(0, 4)),
            ("circular", "input", columns(0, 4)),
        ],
        "right": [
            ("whole", "output", columns(4, 9)),
            ("right", "output", columns(0, 5)),
            ("circular", "input", columns(4, 9)),
        ],
        "circular": [("circular", "output", columns(0, 6)), ("head", "input", columns(0, 6))],
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
    assert list(groups) == ["0", "2", "6"]
    assert groups["2"] == [("2", "output", columns(0, 6)), ("6", "input", pixels)]
    assert [name for name, _, _ in groups["6"]] == ["6", "7", "11"]


class Around(nn.Module):
    """Two convolutions with something between them, and a head."""

    def __init__(self, between=None, inner=8, second=None, **modules):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.between = between or (lambda _, y: y)
        self.second = second or nn.Conv2d(inner, 6, 1)
        self.head = nn.Linear(6, 5)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        y = self.between(self, self.first(x))
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def weight_tied():
    net = Around(lambda net, y: y + net.more(y), more=nn.Conv2d(8, 8, 1), again=nn.Conv2d(8, 8, 1))
    net.again.weight = net.more.weight
    return net


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def norms_tied():
    net = Around(lambda net, y: net.norm(y), norm=nn.BatchNorm2d(8), aside=nn.BatchNorm2d(8))
    net.aside.bias = net.norm.bias
    return net


def standardised():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    return Around(second=Standardised(8, 6, 1))


def factored():
    children = {"input_rotation": nn.Conv2d(8, 3, 1, bias=False), "core": nn.Conv2d(3, 6, 3)}
    return Around(second=nn.Sequential(OrderedDict(children)))


def masked_by_a_buffer():
    net = Around(lambda net, y: y * net.mask)
    net.register_buffer("mask", torch.ones(8, 1, 1))
    return net


def first_channel_zeroed(net, y):
    y = y * 1
    y[:, 0] = 0
    return y


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (
            Around(lambda net, y: net.norm(y), norm=nn.GroupNorm(2, 8)),
            "GroupNorm 'norm', which cannot lose any",
        ),
        (Around(lambda net, y: net.norm(y), norm=nn.InstanceNorm2d(8)), "InstanceNorm2d 'norm'"),
        (Around(lambda net, y: net.act(y), act=nn.PReLU(8)), "PReLU 'act', which cannot lose any"),
        (Around(lambda net, y: net.up(y), up=nn.ConvTranspose2d(8, 8, 1)), "ConvTranspose2d 'up'"),
        (Around(lambda net, y: net.more(y), more=nn.Conv2d(8, 8, 1, groups=2)), "'more': its 2 groups tie"),
        (Around(lambda net, y: net.more(y), more=nn.Conv2d(8, 8, 1, groups=4)), "'more': its 4 groups tie"),
        (
            Around(lambda net, y: net.more(net.more(y)), more=nn.Conv2d(8, 8, 1)),
            "'more': it is called 2 times",
        ),
        (Around(lambda net, y: net.norm(F.relu(net.norm(y))), norm=nn.BatchNorm2d(8)), "is called 2 times"),
        (
            Around(lambda net, y: net.norm(y), norm=Doubled(8)),
            "'norm': Doubled may have a forward of its own",
        ),
        (norms_tied(), "'norm': its parameters are shared"),
        (
            Around(lambda net, y: y * net.scale, scale=nn.Parameter(torch.ones(8, 1, 1))),
            "meet 'scale', a param",
        ),
        (weight_tied(), "'more': its weight is shared with 'again'"),
        (standardised(), "'second': Standardised has a forward of its own"),
        (factored(), "'second.input_rotation': it is factored already"),
        (masked_by_a_buffer(), "does not run without some of them (RuntimeError: "),
        (Around(lambda _, y: F.channel_shuffle(y, 2)), "ChannelShuffle, which may mix them"),
        (Around(lambda _, y: y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)), "tied to each other"),
        (Around(lambda _, y: y - y.mean(1, keepdim=True)), "is not zeroing them"),
        (Around(lambda net, y: y / net.first.out_channels), "is not zeroing them"),
        (Around(lambda _, y: y.softmax(1)), "Softmax, which may mix them"),
        (Around(lambda _, y: y * y[:, :1]), "through a slice"),
        (Around(lambda _, y: y[:, :4] * y[:, 4:], inner=4), "through a slice"),
        (Around(lambda _, y: y.chunk(2, 1)[0], inner=4), "Split, which may mix them"),
        (Around(lambda _, y: y * y[:, 0].unsqueeze(1)), "Select, which may mix them"),
        (Around(first_channel_zeroed), "CopySlices, which may mix them"),
        (Around(lambda _, y: F.pad(y, (0, 0, 0, 0, 1, 1)), inner=10), "padded with channels of zeros"),
        (Around(lambda _, y: F.pixel_shuffle(y, 2), inner=2), "PixelShuffle, which may mix them"),
        (
            Around(lambda net, y: y + net.one(y), one=nn.Conv2d(8, 1, 1)),
            "go to 'one' in a way that torch_pru",
        ),
        (Around(lambda net, y: net.norm(y), norm=nn.LocalResponseNorm(2)), "padded with channels of zeros"),
        (Around(lambda _, y: y.unflatten(1, (4, 2)).amax(2), inner=4), "its filters are tied to each other"),
        (Around(lambda _, y: y.detach()), "the output does not depend on it"),
        (Around(lambda _, y: 0 * y), "the output does not depend on them on random weights"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(net, reason):
    coupling = channel_groups(net, torch.randn(1, 3, 8, 8))
    assert reason in coupling.refused["first"]
    assert "first" not in [member.name for group in coupling.groups for member in group.producers]
    assert coupling.refused["head"] == "it makes the model's output"
    layers = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    known = {member.name for group in coupling.groups for member in group.producers} | coupling.refused.keys()
    assert layers - known <= {"second.input_rotation", "second.core"}  # they go by the name of the whole


class Several(Around):
    def forward(self, x):
        y = self.first(x)
        return {"logits": super().forward(x), "maps": [y, None, 7], "more": self.side(y)}


def test_a_factored_layer_goes_by_its_own_name():
    assert channel_groups(factored(), torch.randn(1, 3, 8, 8)).refused["second"] == "it is factored already"


class SplitUnevenly(nn.Module):
    """Some filters of `whole` are tied to `left`, the others to a group norm."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
        self.whole = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1) + self.whole(x)).mean((2, 3))


def test_a_layer_that_can_lose_some_filters_is_not_refused():
    coupling = channel_groups(SplitUnevenly(), torch.randn(1, 3, 4, 4))
    [group] = coupling.groups
    assert [(m.name, m.channels.tolist()) for m in group.producers] == [
        ("left", columns(0, 4)),
        ("whole", columns(0, 4)),
    ]
    assert set(coupling.refused) == {"right.0", "head"}


def test_randomness_in_the_model_is_not_a_fault():
    class Noisy(Around):
        def forward(self, x):
            return F.dropout(super().forward(x), training=True)

    state = torch.random.get_rng_state()
    groups = channel_groups(Noisy(), torch.randn(1, 3, 8, 8)).groups
    assert [group.name for group in groups] == ["first", "second"]
    torch.random.set_rng_state(state)


def test_a_trial_has_no_two_numbers_alike():
    net, x = coupled_net("residual")
    model = Trial(net, x).model
    for name, tensor in model.state_dict().items():
        assert tensor.numel() == len(tensor.unique()) and (tensor.dim() == 0 or tensor.dtype == torch.float64)
        assert not name.endswith("running_var") or (tensor > 0.4).all()


def test_every_output_counts_and_what_is_not_called_stays():
    net = Several(lambda net, y: net.more(y), more=nn.Conv2d(8, 8, 1), side=nn.Conv2d(8, 2, 1))
    net.aside = nn.Conv2d(3, 4, 1)
    refused = channel_groups(net, torch.randn(1, 3, 8, 8)).refused
    output = "it makes the model's output"
    assert refused == {
        "first": "it is called 2 times",
        "head": output,
        "side": output,
        "aside": "the model does not call it",
    }


@pytest.mark.parametrize("change", [lambda y: y * 2, Tensor.detach, lambda y: y.sum((1, 2, 3))])
def test_features_that_are_returned_stay(change):
    class Net(Around):
        def forward(self, x):
            y = self.first(x)
            return self.head(F.relu(self.second(y)).mean((2, 3))), change(y)

    coupling = channel_groups(Net(), torch.randn(1, 3, 8, 8))
    assert set(coupling.refused) == {"first", "head"}
    assert set(coupling.refused.values()) == {"it makes the model's output"}


def test_a_single_filter_stays():
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.Flatten(1), nn.Linear(64, 2))
    coupling = channel_groups(net, torch.randn(1, 3, 8, 8))
    assert coupling.refused["0"] == "it has one filter, and one must stay"
    assert [group.name for group in coupling.groups] == ["2"]


def test_a_wrong_graph_is_found_out(monkeypatch):
    true = ChannelGraph.reached

    def crossed(*args):
        owned, reason = true(*args)
        columns = owned.get(("second", "input"), {})
        return {
            **owned,
            ("second", "input"): dict(zip(columns, reversed(columns.values()), strict=True)),
        }, reason

    monkeypatch.setattr(ChannelGraph, "reached", crossed)
    coupling = channel_groups(Around(), torch.randn(1, 3, 8, 8))
    assert "cutting some of them is not zeroing them" in coupling.refused["first"]


def test_a_model_that_does_not_run_on_the_example():
    with pytest.raises(
        ValueError, match=r"channel_groups: model must run .* got RuntimeError: Given groups=1"
    ):
        channel_groups(Around(), torch.randn(1, 4, 8, 8))
    with pytest.raises(TypeError, match=r"channel_groups: example must be a tensor, .*, got str"):
        channel_groups(Around(), "image")


def test_without_torch_pruning_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning.dependency", None)
    with pytest.raises(ImportError, match=r'channel_groups: .*pip install "eigendamage-ext\[channels\]"'):
        channel_groups(Around(), torch.randn(1, 3, 8, 8))


def test_groups_are_the_same_whatever_sets_are_ordered_by():
    code = (
        "import torch; from coupled_nets import coupled_net; from test_coupling import listed;"
        "from eigendamage_ext.pruning.coupling import channel_groups;"
        "print(*[listed(channel_groups(*coupled_net(name))) for name in ('residual', 'dense', 'flattened')])"
    )
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{root}:{root / 'tests'}",
    }
    there = subprocess.run([sys.executable, "-c", code], env=environment, stdout=-1, text=True, check=True)
    here = [listed(channel_groups(*coupled_net(name))) for name in ("residual", "dense", "flattened")]
    assert there.stdout == " ".join(map(str, here)) + "\n"


def test_views_and_concatenations_in_a_row_are_numbered_through():
    net, x = coupled_net("two scales")
    assert listed(channel_groups(net, x)) == {
        "fine": [
            ("fine", "output", columns(0, 4)),
            ("head", "input", [list(range(3 * 64 + 64 * c, 3 * 64 + 64 * c + 64)) for c in range(4)]),
        ],
        "coarse": [
            ("coarse", "output", columns(0, 5)),
            ("head", "input", [list(range(7 * 64 + 16 * c, 7 * 64 + 16 * c + 16)) for c in range(5)]),
        ],
    }


def test_the_model_and_the_random_state_are_left_alone():
    net, x = coupled_net("residual")
    net.float().train().layer1.eval()
    net.conv1.weight.requires_grad_(False)
    seen = []
    net.linear.register_forward_hook(lambda *_: seen.append(1))
    before = snapshot(net)
    channel_groups(net, x.float())
    assert same(before, snapshot(net))
