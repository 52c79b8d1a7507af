"""A layer that pruning has factored is one layer under its old name: its core."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from dense_fisher import fisher_of, weight_fisher
from torch import Tensor, nn

from eigendamage_ext import curvature
from eigendamage_ext.curvature import Factors, LayerSpec
from eigendamage_ext.curvature.layers import check_layer, is_factored, layer_at, select
from eigendamage_ext.pruning.measure import measure


def factored(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def linear() -> nn.Sequential:
    return factored(
        input_rotation=nn.Linear(6, 3, bias=False),
        core=nn.Linear(3, 2, bias=False),
        output_rotation=nn.Linear(2, 5),
    )


LAYERS = {
    "both": lambda: factored(
        input_rotation=nn.Conv2d(6, 3, 1, bias=False),
        core=nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False),
        output_rotation=nn.Conv2d(2, 5, 1),
    ),
    "input": lambda: factored(
        input_rotation=nn.Conv2d(6, 4, 1, bias=False), core=nn.Conv2d(4, 6, (3, 2), groups=2)
    ),
    "depthwise": lambda: factored(
        input_rotation=nn.Conv2d(6, 4, 1, bias=False),
        core=nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        output_rotation=nn.Conv2d(4, 5, 1),
    ),
    "output": lambda: factored(
        core=nn.Conv2d(6, 2, 2, dilation=2, padding="same", padding_mode="circular", bias=False),
        output_rotation=nn.Conv2d(2, 5, 1),
    ),
    "linear": linear,
}


def network(name: str) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A factored layer "1" between others, in float64, and a batch for it."""
    layer = LAYERS[name]()
    if name == "linear":
        first, x = nn.Linear(4, 6), torch.randn(3, 4)
    else:
        first, x = nn.Conv2d(2, 6, 2), torch.randn(3, 2, 6, 7)
    width = layer(first(x))[0].numel()
    net = nn.Sequential(first, layer, nn.Tanh(), nn.Flatten(), nn.Linear(width, 3))
    return net.double(), x.double(), torch.tensor([0, 2, 1])


def gram(rows: Tensor, groups: int) -> Tensor:
    """Σ r rᵀ of rows ``(R, c)`` in each group of columns, ``(g, c/g, c/g)``, or ``(c, c)`` for one group."""
    parts = [part.mT @ part for part in rows.chunk(groups, dim=1)]
    return parts[0] if groups == 1 else torch.stack(parts)


@pytest.mark.parametrize("name", LAYERS)
def test_its_factors_are_those_of_what_its_core_reads_and_of_the_gradient_at_what_it_gives(name):
    net, x, y = network(name)
    layer = net[1]
    core = layer.core
    factors = curvature.estimate_factors(net, [(x, y)], fisher="exact", progress=False)
    assert list(factors) == ["0", "1", "4"] and not factors.skipped
    assert factors.specs["1"] == LayerSpec.of("1", core)

    with torch.no_grad():
        read = net[0](x)
        read = layer.input_rotation(read) if hasattr(layer, "input_rotation") else read
        given = core(read)

    def tail(out: Tensor) -> Tensor:
        out = out[None]
        return net[2:](layer.output_rotation(out) if hasattr(layer, "output_rotation") else out)[0]

    if name == "linear":
        rows, positions = read, 1
    else:
        borders = [0] * 4 if core.padding == "valid" else core._reversed_padding_repeated_twice
        padded = F.pad(read, borders, "constant" if core.padding_mode == "zeros" else core.padding_mode)
        patches = F.unfold(padded, core.kernel_size, dilation=core.dilation, stride=core.stride)
        rows = patches.reshape(len(x), core.in_channels, -1).movedim(1, 2).reshape(-1, core.in_channels)
        positions = given[0, 0].numel()
    groups = getattr(core, "groups", 1)
    torch.testing.assert_close(factors["1"].A, gram(rows, groups) / len(rows), rtol=1e-10, atol=1e-12)

    G = torch.zeros_like(factors["1"].G)
    for n, label in enumerate(y):
        dense = fisher_of(tail, given[n], "cross_entropy", "exact", label)
        channels = given.shape[1]
        block = dense.reshape(channels, positions, channels, positions).diagonal(dim1=1, dim2=3).sum(-1)
        per = channels // groups
        blocks = [block[at : at + per, at : at + per] for at in range(0, channels, per)]
        G += (blocks[0] if groups == 1 else torch.stack(blocks)) / len(y)
    torch.testing.assert_close(factors["1"].G, G, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["both", "output", "linear"])
def test_its_second_moments_are_the_diagonal_of_the_cores_fisher_in_the_eigenbasis(name):
    net, x, y = network(name)
    factors = curvature.estimate_factors(net, [(x, y)], fisher="exact", progress=False)
    S = factors.second_moments(net, [(x, y)], progress=False)["1"]
    core, eigen = net[1].core, factors.eigenbasis()["1"]
    fisher = weight_fisher(net, "1.core", x, y, "cross_entropy", "exact").detach()
    offsets = torch.eye(core.weight[0, 0].numel(), dtype=torch.float64)
    Q_A, Q_G = eigen.A.vectors.contiguous(), eigen.G.vectors.contiguous()
    basis = torch.kron(Q_G, torch.kron(Q_A, offsets))
    expected = (basis.mT @ fisher @ basis).diagonal().reshape(core.weight.shape)
    torch.testing.assert_close(S, expected, rtol=1e-9, atol=1e-12)


def test_files_call_it_by_its_name(tmp_path):
    net, x, _ = network("both")
    factors = curvature.estimate_factors(net, [x], progress=False)
    factors.second_moments(net, [x], progress=False)
    factors.save(tmp_path / "factors.safetensors")
    loaded = Factors.load(tmp_path / "factors.safetensors")
    assert loaded.specs == factors.specs and not loaded.skipped
    for side in ("A", "G", "S"):
        assert torch.equal(getattr(loaded["1"], side), getattr(factors["1"], side))
    assert check_layer(net, loaded.specs["1"], caller="plan", origin="the factors") is net[1].core


class Blocks(nn.Module):
    """A factored layer beside Sequentials that only look like one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 6, 1)
        self.conv = LAYERS["both"]()
        self.nested = factored(core=LAYERS["both"]())
        self.around = factored(
            input_rotation=nn.Conv2d(6, 6, 1), core=LAYERS["both"](), output_rotation=nn.Conv2d(6, 6, 1)
        )
        self.alone = factored(core=nn.Conv2d(6, 6, 1))
        self.mixed = factored(input_rotation=nn.Linear(6, 6), core=nn.Conv2d(6, 6, 1))
        self.swapped = factored(core=nn.Conv2d(6, 6, 1), input_rotation=nn.Conv2d(6, 6, 1))
        self.biased = factored(core=nn.Conv2d(6, 6, 1), output_rotation=nn.Conv2d(6, 6, 1))
        self.wide = factored(core=nn.Conv2d(6, 6, 1, bias=False), output_rotation=nn.Conv2d(6, 6, 3))
        self.strided = factored(input_rotation=nn.Conv2d(6, 6, 1, 2, bias=False), core=nn.Conv2d(6, 6, 1))
        self.padded = factored(
            input_rotation=nn.Conv2d(6, 6, 1, padding=1, bias=False), core=nn.Conv2d(6, 6, 1)
        )
        self.head = linear()


NAMES = [
    "stem",
    "conv",
    "nested.core",
    "around.input_rotation",
    "around.core",
    "around.output_rotation",
    "alone.core",
    "mixed.input_rotation",
    "mixed.core",
    "swapped.core",
    "swapped.input_rotation",
    "biased.core",
    "biased.output_rotation",
    "wide.core",
    "wide.output_rotation",
    "strided.input_rotation",
    "strided.core",
    "padded.input_rotation",
    "padded.core",
    "head",
]


def test_it_is_one_layer_by_its_own_name_and_its_rotations_are_none():
    model = Blocks()
    covered, skipped = select(model)
    assert list(covered) == NAMES and not skipped
    for name in ("conv", "nested.core", "around.core", "head"):
        whole = model.get_submodule(name)
        assert is_factored(whole) and covered[name] is whole.core and layer_at(model, name) is whole.core
    for name in ("stem", "alone.core", "mixed.core", "nested"):
        assert layer_at(model, name) is model.get_submodule(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv", ["conv"]),
        ("*.core", [name for name in NAMES if name.endswith(".core")]),
        (nn.Linear, ["mixed.input_rotation", "head"]),
        (["head", "ste*"], ["stem", "head"]),
        (nn.Sequential, []),
    ],
)
def test_patterns_know_it_by_its_name_and_by_the_type_of_its_core(pattern, expected):
    covered, skipped = select(Blocks(), pattern)
    assert list(covered) == expected
    assert skipped == {name: "not in `layers`" for name in NAMES if name not in expected}


def test_a_pattern_for_its_core_alone_is_refused():
    with pytest.raises(ValueError, match=r"layers must match layers of the model, got 'conv\.core'.*'conv'"):
        select(Blocks(), "conv.core")


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def tied(what: str) -> nn.Module:
    model = nn.ModuleDict({"a": linear(), "b": linear()})
    if what == "layer":
        model["b"] = model["a"]
    elif what == "core elsewhere":
        model = nn.ModuleDict({"first": model["a"].core, "a": model["a"]})
    elif what == "own forward":
        model["a"].output_rotation = Own(2, 5)
    elif what == "weight":
        model["b"].core.weight = model["a"].core.weight
    else:
        setattr(model["b"], what, getattr(model["a"], what))
    return model


@pytest.mark.parametrize(
    ("what", "reasons"),
    [
        ("layer", {"a": "the same module is also called 'b'"}),
        (
            "core",
            {
                "a": "core: the same module is also called 'b.core'",
                "b": "core: the same module is also called 'a.core'",
            },
        ),
        (
            "input_rotation",
            {
                "a": "input_rotation: the same module is also called 'b.input_rotation'",
                "b": "input_rotation: the same module is also called 'a.input_rotation'",
            },
        ),
        (
            "core elsewhere",
            {
                "first": "the same module is also called 'a.core'",
                "a": "core: the same module is also called 'first'",
            },
        ),
        (
            "weight",
            {
                "a": "core: its weight is shared with 'b.core'",
                "b": "core: its weight is shared with 'a.core'",
            },
        ),
        ("own forward", {"a": "output_rotation: Own has a forward of its own"}),
    ],
)
def test_with_a_part_that_is_not_its_own_it_is_skipped(what, reasons):
    covered, skipped = select(tied(what))
    assert skipped == reasons
    assert set(covered) == {"a", "b"} - set(reasons) - (
        {"b"} if what in ("layer", "core elsewhere") else set()
    )


def test_a_whole_model_must_be_wrapped():
    covered, skipped = select(linear())
    assert not covered and skipped == {"": "it is the whole model; wrap it in nn.Sequential"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = factored(core=nn.Linear(6, 2, bias=False), output_rotation=nn.Linear(2, 6))
        self.head = linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(self.first(x)))


def test_called_twice_it_is_skipped_under_its_name():
    x = torch.randn(4, 6)
    factors = curvature.estimate_factors(Twice(), [x], progress=False)
    assert list(factors) == ["head"]
    assert factors.skipped == {"first": "called more than once in a forward pass"}
    measured = measure(Twice(), x[:1])
    assert measured.calls == {"first": 2, "head": 1}
    assert measured.positions == {"first": (2, 2), "head": (1, 1)}


def test_factors_of_the_dense_layer_do_not_fit_it():
    dense = LayerSpec.of("0", nn.Linear(6, 5))
    message = "in_channels 3 instead of 6, out_channels 2 instead of 5, bias False instead of True"
    with pytest.raises(
        ValueError, match=f"plan: layer '0' of model must be as in the factors, got {message}"
    ):
        check_layer(nn.Sequential(linear()), dense, caller="plan", origin="the factors")


def test_it_runs_where_its_core_does_and_is_the_head_by_what_its_last_part_gives():
    net, x, _ = network("both")
    measured = measure(net, x[:1])
    assert measured.calls == {"0": 1, "1": 1, "4": 1}
    assert measured.positions == {"0": (6 * 7, 5 * 6), "1": (5 * 6, 3 * 3), "4": (1, 1)}
    assert measured.head == "4"

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.aside = linear(), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.logits(x)
            self.aside(y)
            return y.view(-1, 5)

    assert measure(Odd(), torch.zeros(1, 6)).head == "logits"
