"""A Conv1d is a Conv2d of height 1, the Conv1D of transformers a Linear with a transposed weight."""

import copy

import pytest
import torch
from dense_fisher import fisher_of
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext.curvature import Factors
from eigendamage_ext.curvature.layers import is_factored, select
from eigendamage_ext.pruning.coupling import channel_groups

FIELDS = ("A", "G", "S", "diagonal", "gradient")
GEOMETRIES = {
    "plain": {"kernel_size": 3},
    "pointwise": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 4, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 3, "bias": False},
    "same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1, "padding_mode": "reflect"},
    "depthwise": {"kernel_size": 3, "groups": 4},
}


class Conv1D(nn.Module):
    """As transformers has it: ``weight (c_in, c_out)``."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], self.nf)


Conv1D.__module__ = "transformers.pytorch_utils"


class Doubled(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Raised(nn.Module):
    """Works on sequences ``(N, c, L)`` as on images ``(N, c, 1, L)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-2)


def raised(conv: nn.Conv1d) -> nn.Conv2d:
    """The Conv2d of height 1 that does the same."""
    padding = conv.padding if isinstance(conv.padding, str) else (0, *conv.padding)
    twin = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (1, *conv.kernel_size),
        (1, *conv.stride),
        padding,
        (1, *conv.dilation),
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
    )
    twin.load_state_dict(
        {name: p.unsqueeze(-2) if p.dim() > 1 else p for name, p in conv.state_dict().items()}
    )
    return twin


def sequences() -> Tensor:
    return torch.randn(5, 4, 9, dtype=torch.float64)


def pair(arguments: dict) -> tuple[nn.Sequential, nn.Sequential]:
    """A net with a Conv1d "1" in float64, and its twin of images."""
    conv = nn.Conv1d(4, 8, **arguments)
    length = conv(sequences().float()).shape[-1]
    net = nn.Sequential(nn.Identity(), conv, nn.Tanh(), nn.Flatten(), nn.Linear(8 * length, 3))
    twin = copy.deepcopy(net)
    twin[0], twin[1] = Raised(), raised(conv)
    return net.double(), twin.double()


def measured(model: nn.Module, x: Tensor, kind: str, weight_sharing: str) -> Factors:
    """All there is to know of the layers."""
    loader = [(x[:3], torch.tensor([0, 2, 1])), (x[3:], torch.tensor([1, 0]))]
    factors = ed.estimate_factors(
        model, loader, kind=kind, weight_sharing=weight_sharing, fisher="exact", progress=False
    )
    for measure in (factors.second_moments, factors.diagonal, factors.gradients):
        measure(model, loader, progress=False)
    return factors


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_conv1d_has_the_factors_of_a_conv2d_of_height_1(geometry, kind, weight_sharing):
    net, twin = pair(GEOMETRIES[geometry])
    x = sequences()
    assert torch.equal(net(x), twin(x))
    ours, theirs = (measured(model, x, kind, weight_sharing) for model in (net, twin))
    for name in ("1", "4"):
        for field in FIELDS:
            torch.testing.assert_close(getattr(ours[name], field), getattr(theirs[name], field))
    assert ours.specs["1"].kind == "Conv1d" and ours.specs["1"].kernel_positions == net[1].kernel_size[0]


def test_the_diagonal_of_a_conv1d_is_that_of_the_dense_fisher():
    net, _ = pair(GEOMETRIES["strided"])
    x = sequences()
    factors = measured(net, x, "channel", "expand")
    weight = net[1].weight.detach()

    def logits(flat: Tensor, example: Tensor) -> Tensor:
        return functional_call(net, {"1.weight": flat.reshape(weight.shape)}, example[None])[0]

    blocks = [
        fisher_of(
            lambda flat, x=x: logits(flat, x), weight.flatten(), "cross_entropy", "exact", torch.tensor(0)
        )
        for x in x
    ]
    expected = torch.stack(blocks).mean(dim=0).diagonal().reshape(8, -1)
    torch.testing.assert_close(factors["1"].diagonal[:, :-1], expected)


@pytest.mark.parametrize("method", ["eigendamage", "eigendamage-depthwise"])
@pytest.mark.parametrize("geometry", ["plain", "strided", "grouped"])
def test_a_pruned_conv1d_computes_what_the_pruned_conv2d_does(geometry, method, tmp_path):
    net, twin = pair(GEOMETRIES[geometry])
    x = sequences()
    results = []
    for model in (net, twin):
        factors = ed.estimate_factors(model, [x], progress=False)
        plan = ed.plan(model, factors, target={"flops": 1.0}, method=method, prune_head=True)
        depthwise = method != "eigendamage" and geometry != "grouped"
        plan.set("1", form="depthwise" if depthwise else "both", input_rank=2, output_rank=3)
        results.append(plan.apply(model))
    ours, theirs = (result.model for result in results)
    assert all(isinstance(part, nn.Conv1d) for part in ours[1])
    torch.testing.assert_close(ours(x), theirs(x))
    assert results[0].flops_after == results[1].flops_after == results[0].plan.flops_after
    results[0].save(tmp_path / "net.safetensors")
    for loaded in (ed.load(tmp_path / "net.safetensors"), ed.load(tmp_path / "net.safetensors", into=net)):
        assert torch.equal(loaded(x), ours(x))
    again = ed.estimate_factors(ours, [x], progress=False)
    assert is_factored(ours[1]) and again.specs["1"].in_channels == ours[1].core.in_channels


def test_filters_of_a_conv1d_stay_and_say_so():
    pytest.importorskip("torch_pruning")
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Flatten(), nn.Linear(56, 6), nn.Tanh(), nn.Linear(6, 3))
    coupling = channel_groups(net, torch.randn(1, 4, 9))
    assert [group.name for group in coupling.groups] == ["2"]
    assert coupling.refused["0"] == "filters of a Conv1d stay, its directions can be cut"


def test_a_single_sequence_without_a_batch_is_a_layer_input_too():
    class Squeezed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[0])[None]

    conv, x = nn.Conv1d(4, 2, 3), torch.randn(1, 4, 9)
    single = Squeezed(conv, nn.Flatten(0), nn.Linear(14, 3))
    batched = nn.Sequential(conv, nn.Flatten(), single[2])
    ours, theirs = (ed.estimate_factors(m, [x], fisher="exact", progress=False) for m in (single, batched))
    for side in ("A", "G"):
        torch.testing.assert_close(getattr(ours["0"], side), getattr(theirs["0"], side))


def transposed() -> tuple[nn.Sequential, nn.Sequential]:
    """A net with a Conv1D, and its twin with a Linear."""
    odd = Conv1D(8, 6)
    plain = nn.Linear(6, 8)
    plain.load_state_dict({"weight": odd.weight.detach().mT, "bias": odd.bias.detach()})
    net = nn.Sequential(nn.Linear(4, 6), odd, nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
    twin = nn.Sequential(net[0], plain, *net[2:])
    return net.double(), twin.double()


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_a_transposed_linear_has_the_factors_of_a_linear(kind):
    net, twin = transposed()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(net(x), twin(x))
    ours, theirs = (measured(model, x, kind, "expand") for model in (net, twin))
    assert ours.specs == theirs.specs and ours.specs["1"].kind == "Linear"
    for field in FIELDS:
        torch.testing.assert_close(getattr(ours["1"], field), getattr(theirs["1"], field))


@pytest.mark.parametrize("form", ["input", "output", "both"])
def test_a_transposed_linear_becomes_plain_linears(form, tmp_path):
    net, twin = transposed()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    pruned = []
    for model in (net, twin):
        plan = ed.plan(model, ed.estimate_factors(model, [x], progress=False), target={"flops": 1.0})
        ranks = {"input": {"input_rank": 2}, "output": {"output_rank": 3}}
        plan.set("1", form=form, **ranks.get(form, ranks["input"] | ranks["output"]))
        pruned.append(plan.apply(model))
    ours = pruned[0].model
    assert all(type(part) is nn.Linear for part in ours[1])
    torch.testing.assert_close(ours(x), pruned[1].model(x))
    with FlopCounterMode(display=False) as counter:
        ours(x[:1])
    assert counter.get_total_flops() == pruned[0].plan.flops_after == pruned[1].plan.flops_after
    pruned[0].save(tmp_path / "net.safetensors")
    assert torch.equal(ed.load(tmp_path / "net.safetensors")(x), ours(x))
    assert torch.equal(ed.load(tmp_path / "net.safetensors", into=net)(x), ours(x))


def test_a_transposed_linear_is_known_by_its_class_and_its_forward():
    namesake = type("Conv1D", (Conv1D,), {"__module__": "elsewhere", "forward": Doubled.forward})
    stranger = type("Conv1D", (nn.Module,), {"__module__": "elsewhere"})()
    stranger.weight = nn.Parameter(torch.ones(2, 3))
    net = nn.ModuleDict({"a": Conv1D(2, 3), "b": Doubled(2, 3), "c": namesake(2, 3), "d": stranger})
    covered, skipped = select(net)
    assert list(covered) == ["a"]
    assert skipped == {
        "b": "Doubled has a forward of its own",
        "c": "Conv1D has a forward of its own",
        "d": "Conv1D holds weight itself; only what a Conv1d, Conv2d or Linear multiplies by is covered",
    }
