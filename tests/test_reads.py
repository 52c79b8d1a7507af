"""Models that read attributes of their layers: what a rebuilt layer tells, and what keeps a layer whole."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.curvature.layers import is_factored
from eigendamage_ext.pruning.reads import read_layers


class Reader(nn.Module):
    """Pads by the stride of a convolution, casts to the dtype of a weight, folds by a width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.cast = nn.Conv2d(8, 8, 1)
        self.wide = nn.Linear(32, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        (top, left), (high, wide) = self.conv.stride, self.conv.kernel_size
        x = self.conv(F.pad(x, (left - 1, wide - 2, top - 1, high - 2))).tanh()
        x = self.cast(x.to(self.cast.weight.dtype)).tanh()
        return self.head(self.wide(x.reshape(-1, self.wide.in_features)).tanh())


def pruned() -> tuple[Reader, Tensor, object]:
    torch.manual_seed(0)
    model, x = Reader(), torch.randn(4, 3, 4, 4)
    factors = ed.estimate_factors(model, [x], progress=False)
    return model, x, ed.plan(model, factors, target={"params": 0.7})


def test_a_rebuilt_layer_tells_the_geometry_of_the_layer():
    model, x, plan = pruned()
    plan.set("conv", form="both", input_rank=3, output_rank=8)
    plan.set("wide", form="input", input_rank=32)
    rebuilt = plan.apply(model).model
    assert is_factored(rebuilt.conv) and is_factored(rebuilt.wide)
    assert (rebuilt.conv.stride, rebuilt.conv.in_channels, rebuilt.wide.out_features) == ((2, 2), 3, 12)
    torch.testing.assert_close(rebuilt(x), model(x))
    assert not hasattr(rebuilt.conv, "weight") and type(rebuilt.conv) is nn.Sequential
    again = ed.plan(rebuilt, ed.estimate_factors(rebuilt, [x], progress=False), target={"params": 0.5})
    again.set("conv", form="both", input_rank=2, output_rank=4)
    thinner = again.apply(rebuilt).model.conv
    assert (thinner.stride, thinner.in_channels, thinner.core.in_channels) == ((2, 2), 3, 2)


def test_a_layer_whose_weight_the_model_reads_stays_as_it_is():
    model, x, plan = pruned()
    assert plan["cast"].form == "dense"
    assert plan["cast"].note == "the model reads its weight, which a rebuilt layer has not"
    assert {row.form for name, row in plan.items() if name in ("conv", "wide")} != {"dense"}
    assert plan.apply(model).model(x).shape == (4, 3)
    message = "form of 'cast' must be dense, got 'output'; the model reads its weight, which a rebuilt layer"
    with pytest.raises(ValueError, match=message):
        plan.set("cast", form="output", output_rank=4)


class Strict(Reader):
    """Asks what a layer is."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.wide, nn.Linear):
            raise TypeError("wide must be a Linear")
        return super().forward(x)


def test_a_layer_whose_class_the_model_checks_stays_as_it_is():
    model, x = Strict(), torch.randn(4, 3, 4, 4)
    plan = ed.plan(model, ed.estimate_factors(model, [x], progress=False), target={"params": 0.9})
    assert plan["wide"].note == "the model does not run with it in parts (TypeError: wide must be a Linear)"
    assert plan["cast"].note == "the model reads its weight, which a rebuilt layer has not"
    assert is_factored(plan.apply(model).model.conv)


@pytest.mark.parametrize("method", ["eigendamage", "l1"])
def test_a_model_that_does_not_run_once_rebuilt_is_put_together_again(method, monkeypatch):
    if method == "l1":
        pytest.importorskip("torch_pruning")
    model, x, plan = pruned()
    if method == "l1":
        plan = ed.plan(model, target={"params": 0.7}, method="l1", example_inputs=x)
    modules, children = dict(model.named_modules()), list(model.children())

    def forward(self, x):
        if list(model.children()) != children:
            raise KeyboardInterrupt
        return Reader.forward(self, x)

    monkeypatch.setattr(model, "forward", forward.__get__(model))
    with pytest.raises(KeyboardInterrupt):
        plan.apply(model, inplace=True)
    assert list(model.named_modules()) == list(modules.items())


@pytest.mark.parametrize("broken", [False, True])
def test_watching_leaves_the_model_alone(broken):
    model = Reader()
    modules, before = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    model.cast.eval()
    training = [module.training for module in model.modules()]
    if broken:
        with pytest.raises(RuntimeError):
            read_layers(model, ["conv", "cast"], torch.randn(1, 5, 4, 4))
    else:
        assert list(read_layers(model, ["conv", "cast"], torch.randn(1, 3, 4, 4))) == ["cast"]
    assert list(model.named_modules()) == list(modules.items())
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
