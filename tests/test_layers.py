"""Which layers are covered and why the others are not, patterns, and layers in numbers."""

import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import eigendamage_ext as ed
from eigendamage_ext.curvature.layers import LayerSpec, check_patterns, is_factored, matches, select


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class OwnProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(1, 2, 2))
        self.scale, self.token = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1, 1, 3))


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def patched() -> nn.Linear:
    layer = nn.Linear(2, 3)
    layer.forward = lambda x: x
    return layer


def parametrized() -> nn.Linear:
    layer = nn.Linear(2, 3)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def old_weight_norm() -> nn.Linear:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(2, 3))


def pruned() -> nn.Linear:
    layer = nn.Linear(2, 3)
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


REFUSED = {
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(2, 3, 3),
        "",
        "ConvTranspose2d is not covered, only Conv1d, Conv2d and",
    ),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 3), "", "Conv3d is not covered: kernels move along one or two"),
    "Embedding": (lambda: nn.Embedding(2, 3), "", "Embedding is a table, not a product"),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(2, 3), "", "EmbeddingBag is a table, not a product"),
    "RNN": (lambda: nn.RNN(1, 1), "", "RNN is not covered"),
    "own product": (OwnProduct, "", "OwnProduct holds left, right itself; only what a Conv1d, Conv2d or"),
    "list of parameters": (lambda: nn.ParameterList([torch.ones(2, 2)]), "", "ParameterList holds 0 itself"),
    "Bilinear": (lambda: nn.Bilinear(2, 3, 4), "", "Bilinear is not covered"),
    "LSTM": (lambda: nn.LSTM(2, 3), "", "LSTM is not covered"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "", "MultiheadAttention is not covered"),
    "attention's projection": (lambda: nn.MultiheadAttention(4, 2), ".out_proj", "inside MultiheadAttention"),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        ".linear1",
        "inside TransformerEncoderLayer",
    ),
    "encoder's attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        ".self_attn.out_proj",
        "inside MultiheadAttention",
    ),
    "decoder's attention": (
        lambda: nn.TransformerDecoderLayer(4, 2, 8),
        ".multihead_attn.out_proj",
        "inside MultiheadAttention",
    ),
    "own forward": (lambda: OwnForward(2, 3), "", "OwnForward has a forward of its own"),
    "own convolution": (lambda: OwnConvForward(2, 3, 1), "", "OwnConvForward has a _conv_forward of its own"),
    "patched forward": (patched, "", "Linear has a forward of its own"),
    "parametrized": (parametrized, "", "parametrized; call parametrize.remove_parametrizations"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(2, 3)), "", "parametrized"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 1)), "", "parametrized"),
    "old weight norm": (old_weight_norm, "", "its weight is computed from other parameters"),
    "old spectral norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(2, 3)),
        "",
        "computed from other parameters",
    ),
    "pruning mask": (
        pruned,
        "",
        "computed from other parameters (weight_norm, spectral_norm or a pruning mask)",
    ),
    "complex": (
        lambda: nn.Linear(2, 3, dtype=torch.complex64),
        "",
        "its weight is torch.complex64, not floating",
    ),
    "quantised": (lambda: torch.ao.nn.quantized.Linear(2, 3), "", "Linear is quantised"),
    "dynamically quantised": (lambda: torch.ao.nn.quantized.dynamic.Linear(2, 3), "", "Linear is quantised"),
    "quantisation-aware": (
        lambda: torch.ao.nn.qat.Linear(2, 3, qconfig=torch.ao.quantization.default_qconfig),
        "",
        "Linear is quantised",
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_covered_is_named_with_its_reason(case):
    make, child, reason = REFUSED[case]
    model = nn.ModuleDict({"before": nn.Linear(2, 3), "odd": make(), "after": nn.Conv2d(2, 3, 1)})
    covered, skipped = select(model)
    assert "odd" + child not in covered
    assert reason in skipped["odd" + child]
    assert "before" in covered and "after" in covered
    assert not covered.keys() & skipped.keys()


def test_everything_else_with_a_weight_matrix_is_covered_in_the_order_of_the_model():
    model = nn.ModuleDict(
        {
            "subclass": Renamed(2, 3),
            "norm": nn.BatchNorm2d(3),
            "norm of images": nn.LayerNorm([3, 2, 2]),
            "scales": nn.PReLU(3),
            "block": nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3)),
            "sequence": nn.Conv1d(2, 3, 1),
            "decoder": nn.TransformerDecoderLayer(4, 2, 8),
            "frozen": nn.Linear(2, 3).requires_grad_(False),
        }
    )
    covered, _ = select(model)
    expected = ["subclass", "block.0", "block.2", "sequence", "decoder.linear1", "decoder.linear2", "frozen"]
    assert list(covered) == expected
    assert all(covered[name] is model.get_submodule(name) for name in expected)


def test_a_weight_in_two_modules_is_skipped_in_both():
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5), "other": nn.Linear(4, 4)}
    )
    model["head"].weight = model["embedding"].weight
    covered, skipped = select(model)
    assert list(covered) == ["other"]
    assert skipped["head"] == "its weight is shared with 'embedding'"
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].bias = model[0].bias
    assert select(model)[1] == {"0": "its bias is shared with '2'", "2": "its bias is shared with '0'"}


def test_a_module_under_two_names_is_skipped():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["c"] = model["a"]
    covered, skipped = select(model)
    assert list(covered) == ["b"]
    assert skipped == {"a": "the same module is also called 'c'"}


def test_a_bare_layer_must_be_wrapped():
    covered, skipped = select(nn.Linear(2, 3))
    assert not covered and skipped == {"": "it is the whole model; wrap it in nn.Sequential"}


def test_a_model_that_holds_a_matrix_itself_is_listed_like_any_other():
    model = OwnProduct()
    model.inside = nn.Linear(2, 3)
    covered, skipped = select(model)
    assert list(covered) == ["inside"]
    assert skipped[""].startswith("OwnProduct holds left, right itself")
    model.forward = lambda x: model.inside(x)
    plan = ed.plan(model, ed.estimate_factors(model, [torch.ones(1, 2)], progress=False), target={"flops": 1})
    assert re.search(r"\n +the model +OwnProduct holds left, right itself", str(plan))


def test_is_factored_needs_a_core_and_a_rotation_and_nothing_else():
    net = nn.Sequential(OrderedDict(core=nn.Conv2d(2, 2, 3, bias=False)))
    assert not is_factored(net) and not is_factored(nn.Sequential())
    net.add_module("output_rotation", nn.Conv2d(2, 4, 1))
    assert is_factored(net) and not is_factored(nn.ModuleDict(net.named_children()))
    net.add_module("norm", nn.BatchNorm2d(4))
    assert not is_factored(net)


def model() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "layer1": nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1))),
            "layer2": nn.Sequential(nn.Conv2d(4, 8, 3)),
            "head": nn.Linear(8, 2),
        }
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("head", ["head"]),
        ("layer1.*", ["layer1.0", "layer1.1.0"]),
        ("layer?.0", ["layer1.0", "layer2.0"]),
        (["stem", "layer2.*"], ["stem", "layer2.0"]),
        (nn.Linear, ["head"]),
        ((nn.Linear, "stem"), ["stem", "head"]),
        (nn.Module, ["stem", "layer1.0", "layer1.1.0", "layer2.0", "head"]),
        ([], []),
    ],
)
def test_layers_selects_by_name_glob_and_type(layers, expected):
    covered, skipped = select(model(), layers)
    assert list(covered) == expected
    assert all(reason == "not in `layers`" for reason in skipped.values())
    assert len(covered) + len(skipped) == 5


def test_an_iterator_of_patterns_is_read_once_and_used_for_every_layer():
    assert list(select(model(), iter(["head", "stem"]))[0]) == ["stem", "head"]


def test_unknown_patterns_name_the_nearest_layers():
    with pytest.raises(
        ValueError, match=r"layers must match .* got 'layer1\.1'; use 'layer1\.1\.\*' for the layers"
    ):
        select(model(), "layer1.1")
    with pytest.raises(ValueError, match=r"got 'laier2\.0'; the nearest names are 'layer2\.0'"):
        select(model(), ["head", "laier2.0"])
    with pytest.raises(
        ValueError, match=r"^plan: ignored_layers must match .* got 'x\*'; the nearest names are"
    ):
        check_patterns("x*", ["stem", "head"], caller="plan", argument="ignored_layers")
    with pytest.raises(ValueError, match="got 'x'; it has none"):
        check_patterns("x", [], caller="plan", argument="ignored_layers")


@pytest.mark.parametrize("pattern", [3, None, int, nn.Linear(1, 1)])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(TypeError, match="layers must hold layer names, globs or module types, got"):
        select(model(), [pattern])


def test_matches_names_with_glob_characters_exactly():
    assert matches("blocks[0]", None, "blocks[0]")
    assert matches("a.b", nn.Linear(1, 1), nn.Linear) and not matches("a.b", None, nn.Linear)
    assert not matches("Head", None, "head")


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "bias": False},
    {"kernel_size": (4, 2), "padding": "same", "dilation": (1, 3), "groups": 2},
    {"kernel_size": 2, "padding": "valid", "groups": 4, "padding_mode": "circular"},
    {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_a_convolution_in_numbers_is_the_convolution(arguments):
    conv = nn.Conv2d(4, 8, **arguments).double()
    spec = LayerSpec.of("name", conv)
    x = torch.randn(2, 4, 9, 10, dtype=torch.float64)
    mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
    padded = F.pad(x, spec.borders, mode)
    ours = F.conv2d(padded, conv.weight, conv.bias, spec.stride, 0, spec.dilation, spec.groups)
    assert torch.equal(ours, conv(x))
    assert conv.weight.shape == (spec.out_channels, spec.in_per_group, *spec.kernel_size)
    assert spec.kernel_positions == conv.weight[0, 0].numel()
    assert (spec.name, spec.kind, spec.bias) == ("name", "Conv2d", conv.bias is not None)
    assert (spec.in_channels, spec.out_per_group * spec.groups) == (4, 8)


def test_a_linear_is_a_convolution_with_one_position():
    spec = LayerSpec.of("head", nn.Linear(5, 3, bias=False))
    assert spec == LayerSpec("head", "Linear", 5, 3)
    assert (spec.kernel_positions, spec.in_per_group, spec.out_per_group, spec.borders) == (
        1,
        5,
        3,
        (0, 0, 0, 0),
    )


def test_nothing_else_has_numbers():
    with pytest.raises(TypeError, match="must be a Conv1d, Conv2d or Linear, got BatchNorm2d 'norm'"):
        LayerSpec.of("norm", nn.BatchNorm2d(3))
