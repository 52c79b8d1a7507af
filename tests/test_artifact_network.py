"""Files that say what their network does: loaded without its class it is the network that was saved."""

import copy
import pickle
import re
import weakref

import coupled_nets
import pytest
import torch
import torch.nn.functional as F
import traceable_nets
from random_factors import random_factors
from safetensors.torch import load_file
from small_nets import EXAMPLE, Net, same, snapshot
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import ArtifactError
from eigendamage_ext._files import read_tensors
from eigendamage_ext.artifact import allowlist
from eigendamage_ext.curvature.layers import is_factored
from eigendamage_ext.models.preresnet import PreResNet
from eigendamage_ext.pruning.coupling import channel_groups

FIXTURES = "dense", "directions", "filters_and_directions"
NETS = {
    **{name: lambda name=name: coupled_nets.coupled_net(name) for name in coupled_nets.NETS},
    **{name: lambda name=name: traceable_nets.traceable_net(name) for name in traceable_nets.NETS},
    "preresnet": lambda: (PreResNet(11, (3, 4, 5)).eval(), torch.randn(3, 3, 8, 8)),
    "small": lambda: (Net().eval(), torch.randn(3, *EXAMPLE)),
    "layer": lambda: (nn.Linear(3, 2), torch.randn(3, 3)),
}


def reloaded(model, folder):
    ed.save(model, folder / "net")
    return ed.load(folder / "net")


def run(model, x, seed=0):
    """Outputs, gradients and buffers of one pass."""
    torch.manual_seed(seed)
    model.zero_grad()
    output = model(x.clone())
    output.square().sum().backward()
    return [output, *(p.grad for p in model.parameters()), *model.state_dict().values()]


@pytest.mark.parametrize("name", NETS)
def test_every_network_comes_back_whole(tmp_path, name):
    net, x = NETS[name]()
    before = snapshot(net)
    loaded = reloaded(net, tmp_path)
    assert same(before, snapshot(net))
    assert [n for n, _ in loaded.named_modules()] == [n for n, _ in net.named_modules()]
    assert [(n, p.dtype, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.dtype, p.requires_grad) for n, p in net.named_parameters()
    ]
    assert list(loaded.state_dict()) == list(net.state_dict())
    assert all(map(torch.equal, loaded.state_dict().values(), net.state_dict().values()))
    for examples in (1, 2, 7):
        batch = torch.cat([x, x, x])[:examples]
        assert torch.equal(loaded(batch.clone()), net(batch.clone()))
    loaded.train(), net.train()
    for ours, theirs in zip(run(loaded, x), run(net, x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NETS)
def test_saved_again_it_is_the_same_file(tmp_path, name):
    net, _ = NETS[name]()
    ed.save(net, tmp_path / "first")
    ed.save(ed.load(tmp_path / "first"), tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def pruned(net, x):
    factors = random_factors(net, tuple(x.shape[1:]), dtype=x.dtype)
    return ed.plan(net, factors, target={"params": 0.5}, example_inputs=x[:1]).apply(net)


@pytest.mark.parametrize("name", ["residual", "vgg", "mobile", "preresnet", "small"])
def test_a_pruned_network_goes_on_as_if_it_had_never_been_away(tmp_path, name):
    net, x = NETS[name]()
    result = pruned(net, x)
    model = result.model
    assert any(map(is_factored, model.modules()))
    result.save(tmp_path / "net")
    loaded = ed.load(tmp_path / "net")
    assert [is_factored(m) for m in loaded.modules()] == [is_factored(m) for m in model.modules()]
    batches = [(x, torch.arange(len(x)))]
    ours, theirs = (ed.estimate_factors(m, batches, seed=0, progress=False) for m in (loaded, model))
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[n].A, theirs[n].A) and torch.equal(ours[n].G, theirs[n].G) for n in ours
    )
    again = [
        ed.plan(m, theirs, target={"ratio": 0.1}, example_inputs=x[:1]).apply(m).model
        for m in (loaded, model)
    ]
    assert torch.equal(again[0](x), again[1](x)) and list(again[0].state_dict()) == list(
        again[1].state_dict()
    )
    assert torch.equal(reloaded(again[0], tmp_path)(x), again[1](x))
    for m in (loaded, model):
        ed.recalibrate_bn(m, batches)
        ed.finetune(m, batches, epochs=1, lr=0.01)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", ["residual", "dense", "mobile", "flattened"])
def test_filters_of_a_loaded_network_are_coupled_as_they_were(tmp_path, name):
    net, x = NETS[name]()
    ours, theirs = channel_groups(reloaded(net, tmp_path), x), channel_groups(net, x)
    assert ours.refused == theirs.refused
    for a, b in zip(ours.groups, theirs.groups, strict=True):
        assert (a.name, a.units) == (b.name, b.units)
        for m, n in zip(a.members, b.members, strict=True):
            assert (m.name, m.side) == (n.name, n.side) and torch.equal(m.channels, n.channels)


def test_flags_modes_and_layouts_are_kept(tmp_path):
    net, x = NETS["residual"]()
    net.to(memory_format=torch.channels_last).train()
    net.layer1.eval()
    net.layer2[0].conv1.weight.requires_grad_(False)
    net.linear.weight = nn.Parameter(net.linear.weight.detach().T.contiguous().T)
    loaded = reloaded(net, tmp_path)
    assert [m.training for m in loaded.modules()] == [m.training for m in net.modules()]
    for (name, ours), theirs in zip(loaded.state_dict().items(), net.state_dict().values(), strict=True):
        assert ours.stride() == theirs.stride(), name
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["layer2.0.conv1.weight"]
    x = x.to(memory_format=torch.channels_last)
    assert torch.equal(loaded.eval()(x), net.eval()(x))


def test_what_was_tied_stays_tied(tmp_path):
    net, _ = NETS["tied"]()
    loaded = reloaded(net, tmp_path)
    assert loaded.decode.weight is loaded.encode.weight and loaded.again is loaded.middle
    assert loaded.a is loaded.b
    assert len(list(loaded.parameters())) == len(list(net.parameters()))


def test_tensors_outside_of_the_state_are_saved_and_stay_outside(tmp_path):
    net, x = NETS["gated"]()
    loaded = reloaded(net, tmp_path)
    assert dict(loaded.gate.named_buffers()).keys() == {"offset", "mask", "plain"}
    assert torch.equal(loaded.gate.mask, net.gate.mask) and torch.equal(loaded.gate.plain, net.gate.plain)
    assert loaded.state_dict().keys() == net.state_dict().keys()
    into = traceable_nets.Gated().eval()
    into.gate.mask, into.gate.plain = net.gate.mask, net.gate.plain
    assert torch.equal(ed.load(tmp_path / "net", into=into)(x), net(x))


def test_a_loaded_network_can_be_copied_pickled_printed_and_moved(tmp_path):
    net, x = NETS["residual"]()
    loaded = reloaded(net, tmp_path)
    assert repr(loaded) == repr(net)
    for twin in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert torch.equal(twin(x), net(x))
    assert torch.equal(loaded.float()(x.float()), net.float()(x.float()))


def test_a_loaded_network_is_called_by_the_names_of_its_inputs(tmp_path):
    net, x = NETS["gated"]()
    loaded = reloaded(net, tmp_path)
    assert torch.equal(loaded(x=x), net(x))
    for args, kwargs in (((), {}), ((x, True), {}), ((x,), {"x": x}), ((x,), {"twice": True})):
        with pytest.raises(TypeError, match=r"Gated: arguments must be x, got \d and .*kept it"):
            loaded(*args, **kwargs)


def test_activations_are_given_back_when_they_are_spent(tmp_path):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

        def forward(self, x):
            y = self.layers[0](x)
            z = self.layers[1](y)
            return self.layers[2](F.relu(z)) + y

    loaded = reloaded(Chain(), tmp_path)
    seen = []
    for layer in loaded.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    alive = []
    loaded.layers[2].register_forward_hook(lambda *_: alive.extend(ref() is not None for ref in seen))
    with torch.no_grad():
        loaded(torch.randn(2, 3))
    assert alive == [True, False, True]


def test_what_is_saved_and_loaded_under_inference_mode_can_be_trained(tmp_path):
    net, x = NETS["residual"]()
    with torch.inference_mode():
        loaded = [reloaded(net, tmp_path), ed.load(tmp_path / "net", into=NETS["residual"]()[0])]
    for model in loaded:
        for ours, theirs in zip(run(model, x), run(net, x), strict=True):
            assert torch.equal(ours, theirs)


def test_provenance_leads_to_the_original(tmp_path):
    net, x = NETS["residual"]()
    ed.save(net, tmp_path / "original")
    pruned(net, x).save(tmp_path / "pruned")
    original, small = (
        read_tensors(tmp_path / name, format="eigendamage-model", version=2)[1]["provenance"]
        for name in ("original", "pruned")
    )
    assert original["parent"] is None
    assert small["parent"] == original["weights"] != small["weights"]
    assert len(small["weights"]) == 64
    net.linear.bias.data[0] += 1
    assert pruned(net, x).parent != original["weights"]


@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_version_1_load_for_ever(name, request):
    """Written before files said what their network does, by ResNet(8, (4, 6, 8), num_classes=5)."""
    folder = request.path.parent / "fixtures"
    outputs = load_file(folder / "v1_outputs.safetensors")
    path = folder / f"v1_{name}.safetensors"
    loaded = ed.load(path, into=ed_resnet())
    torch.testing.assert_close(loaded.eval()(outputs["x"]), outputs[f"v1_{name}"])
    with pytest.raises(ArtifactError, match=r"load\(path, into=MyNet\(\)\), as its file is of version 1"):
        ed.load(path)


def ed_resnet():
    return coupled_nets.ResNet(8, (4, 6, 8), num_classes=5)


ARGUMENTS = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (4, 6, 3, 2, 1)),
    **dict.fromkeys(("BatchNorm", "InstanceNorm"), (4, 1e-3, None, False)),
    **dict.fromkeys(("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool"), (2,)),
    **dict.fromkeys(("CircularPad", "ReflectionPad", "ReplicationPad", "ZeroPad"), (2,)),
    "Bilinear": (2, 3, 4),
    "CELU": (0.5,),
    "ChannelShuffle": (2,),
    "ConstantPad": (1, 0.5),
    "Embedding": (5, 3, 1, 2.0),
    "Fold": ((4, 5), 2),
    "GroupNorm": (2, 4),
    "GRU": (3, 4, 2, True, True, 0.1, True),
    "Hardtanh": (-2.0, 3.0),
    "LayerNorm": ((3, 4), 1e-3, True, False),
    "LPPool": (2, 3, 1),
    "Linear": (3, 2, False),
    "LSTM": (3, 4, 1, False, False, 0.0, False, 2),
    "LocalResponseNorm": (2,),
    "MultiheadAttention": (4, 2, 0.1, False, True),
    "PixelShuffle": (2,),
    "PixelUnshuffle": (2,),
    "PReLU": (3, 0.1),
    "RMSNorm": ((3,), 1e-3),
    "Threshold": (0.1, 2.0),
    "TransformerEncoder": (nn.TransformerEncoderLayer(4, 2, 5), 3, nn.LayerNorm(4, 0.1), False, False),
    "TransformerEncoderLayer": (4, 2, 5, 0.2, "gelu", 1e-3, True, True, False),
    "Unflatten": (1, (2, -1)),
    "Unfold": (3,),
    "Upsample": (None, 2.0, "bilinear", True),
}


def test_every_listed_layer_is_made_again_from_its_arguments(tmp_path):
    for name, kind in allowlist.LEAVES.items():
        net = nn.Sequential(kind(*ARGUMENTS.get(re.sub(r"[123]d$", "", name), ())))
        loaded = reloaded(net, tmp_path)
        assert type(loaded[0]) is kind and repr(loaded) == repr(net)
        assert loaded.state_dict().keys() == net.state_dict().keys()


def test_classes_that_only_build_themselves_are_the_layers_they_are(tmp_path):
    net, _ = NETS["concatenated"]()
    assert type(net.layers[0]) is traceable_nets.Concatenated.Convolution
    loaded = reloaded(net, tmp_path)
    assert type(loaded.layers[0]) is nn.Conv2d
