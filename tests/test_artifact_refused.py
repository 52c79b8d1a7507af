"""What cannot be written down is named when it is saved, and saved all the same."""

import re

import pytest
import torch
import torch.nn.functional as F
from random_factors import random_factors
from small_nets import same, snapshot
from torch import nn
from torch.nn.utils import parametrizations

import eigendamage_ext as ed
from eigendamage_ext import ArtifactError


class Layer(nn.Module):
    """A Linear and what a test makes of it."""

    def __init__(self, forward=None, **attributes):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.does = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.does(self, self.linear(x)) if self.does else self.linear(x)


def changed(change, model=None):
    model = model or Layer()
    change(model)
    return model


class OwnTrain(Layer):
    def train(self, mode=True):
        return super().train(False)


class AnyArguments(Layer):
    def forward(self, *args):
        return self.linear(*args)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Layer(lambda self, x: x)

    def forward(self, x):
        return self.inner(self.inner.linear(x))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = self.second = Layer()

    def forward(self, x):
        return self.second(self.first(x))


class Flagged(nn.Module):
    class Inner(Layer):
        def forward(self, x, doubled):
            return self.linear(x) * (2 if doubled else 1)

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x):
        return self.inner(self.inner(x, True), False)


class Graphless(Layer):
    def forward(self, x):
        with torch.no_grad():
            x = self.linear(x)
        return self.linear(x)


class InFloat(Layer):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x)


def encoder_layer(**arguments):
    return nn.TransformerEncoderLayer(4, 2, 5, **arguments)


def doing(forward, **attributes):
    return lambda: Layer(forward, **attributes)


def after(change):
    return lambda: changed(change)


OBSTACLES = {
    "branch": (doing(lambda self, x: x if x.sum() > 0 else -x), "the Layer: torch.fx cannot follow it"),
    "length": (doing(lambda self, x: x * len(x)), "the Layer: torch.fx cannot follow it"),
    "function": (doing(lambda self, x: torch.linalg.inv(x)), "it calls 'linalg_inv'"),
    "method": (doing(lambda self, x: x.cauchy_()), "it calls 'cauchy_'"),
    "attribute": (doing(lambda self, x: x.data), "'data'"),
    "set attribute": (
        doing(lambda self, x: setattr(x, "requires_grad", False) or x),
        "its forward sets 'requires_grad' of a tensor",
    ),
    "device": (doing(lambda self, x: x.to(torch.device("cuda"))), "it computes with device(type='cuda')"),
    "word": (doing(lambda self, x: x.to("cuda")), "it computes with 'cuda'"),
    "noise": (doing(lambda self, x: x + torch.randn(3)), "the tensor '_tensor_constant0' is another"),
    "counter": (
        doing(lambda self, x: count(self) and x + self.calls, calls=0),
        "it does something else each time",
    ),
    "no_grad": (Graphless, "switches gradients or autocast"),
    "autocast": (InFloat, "switches gradients or autocast"),
    "hooks": (after(lambda m: m.linear.register_forward_hook(print)), "Linear 'linear' has hooks"),
    "forward": (
        after(lambda m: setattr(m.linear, "forward", F.relu)),
        "Linear 'linear' was given another forward",
    ),
    "train": (OwnTrain, "the OwnTrain has a train() of its own"),
    "arguments": (AnyArguments, "the forward of AnyArguments takes any arguments (*args)"),
    "shared": (Shared, "'second' is the same module as 'first'"),
    "flagged": (Flagged, "Inner 'inner' is called in different ways"),
    "layer": (doing(lambda self, x: self.inner(x), inner=nn.RNN(3, 3)), "RNN 'inner'"),
    "part of a layer": (
        lambda: changed(lambda m: setattr(m[0].dropout2, "p", 0.3), nn.Sequential(encoder_layer())),
        "TransformerEncoderLayer '0' was changed after it was made (p)",
    ),
    "other layers": (
        lambda: changed(
            lambda m: setattr(m[0].layers[1], "norm_first", True),
            nn.Sequential(nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)),
        ),
        "TransformerEncoder '0' was changed after it was made (norm_first)",
    ),
    "activation": (
        lambda: nn.Sequential(encoder_layer(activation=F.silu)),
        "it computes with <function sil",
    ),
    "modes": (
        lambda: changed(lambda m: m[0].dropout1.train(), nn.Sequential(encoder_layer()).eval()),
        "TransformerEncoderLayer '0' was changed after it was made (modes of its parts)",
    ),
    "dict": (
        doing(lambda self, x: {"x": x}),
        "it makes a dict of tensors, which no file may hold; return a tuple",
    ),
    "changed": (
        lambda: changed(lambda m: setattr(m[0], "padding", 2), nn.Sequential(nn.Conv2d(3, 3, 1))),
        "Conv2d '0' was changed after it was made (_reversed_padding_repeated_twice, padding)",
    ),
    "narrowed": (
        after(lambda m: setattr(m.linear, "bias", nn.Parameter(torch.zeros(1)))),
        "Linear 'linear' was changed after it was made (its tensors)",
    ),
    "parametrized": (after(lambda m: parametrizations.weight_norm(m.linear)), "it calls"),
    "memory": (
        after(lambda m: setattr(m, "row", nn.Parameter(m.linear.weight.detach()[0]))),
        "'linear.weight' shares memory with 'row'",
    ),
    "name": (
        after(lambda m: m.add_module("a-b", nn.Linear(2, 2))),
        "it has a module 'a-b'; names must be letters, digits and underscores",
    ),
}


def count(module):
    module.calls += 1
    return True


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_written_down_is_named_and_saved_all_the_same(tmp_path, name):
    build, reason = OBSTACLES[name]
    torch.manual_seed(0)
    model, path = build(), tmp_path / "net"
    before = snapshot(model)
    with pytest.warns(UserWarning, match=re.escape(reason)) as caught:
        ed.save(model, path)
    assert caught[0].filename == __file__ and "ed.load(path, into=MyNet())" in str(caught[0].message)
    assert same(before, snapshot(model))
    with pytest.raises(ArtifactError, match=re.escape(reason)):
        ed.load(path)
    loaded = ed.load(path, into=model)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_what_torch_fx_saw_is_compared_with_what_the_network_does(tmp_path):
    def forward(self, x):
        return self.linear(x) if isinstance(x, torch.Tensor) else x

    net = nn.Sequential(Layer(forward), nn.Linear(3, 3)).double()
    result = ed.plan(net, random_factors(net, (3,), dtype=torch.float64), target={"ratio": 0.2}).apply(net)
    with pytest.warns(UserWarning, match="torch.fx, which followed it, saw something else than it does"):
        result.save(tmp_path / "net")
