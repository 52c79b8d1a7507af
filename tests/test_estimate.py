"""What estimate_factors skips at run time, what it refuses, and what it says."""

import re

import pytest
import torch
from nets import Cliff, convnet, images, labels, mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import eigendamage_ext.curvature as curvature
from eigendamage_ext import _progress
from eigendamage_ext.curvature import Factors


def estimate_factors(*args, **keywords) -> Factors:
    return curvature.estimate_factors(*args, progress=False, **keywords)


def assert_same(one: Factors, other: Factors) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name].A, other[name].A) and torch.equal(one[name].G, other[name].G)


class Net(nn.Module):
    """Four Linears 3 → 3; subclasses choose how they are called."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abcd":
            self.add_module(name, nn.Linear(3, 3))
        self.double()


X = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(4, 3)


def test_a_layer_called_twice_is_skipped_and_the_others_are_right():
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.b(self.a(x))).tanh())

    model = Twice()
    factors = estimate_factors(model, [X, X], fisher="exact")
    assert factors.skipped == {
        "b": "called more than once in a forward pass",
        "d": "never called in the forward pass",
    }
    expected = nn.Sequential(model.a, nn.Linear(3, 3), nn.Linear(3, 3), nn.Tanh(), model.c).double()
    expected[1].load_state_dict(model.b.state_dict())
    expected[2].load_state_dict(model.b.state_dict())
    plain = estimate_factors(expected, [X], fisher="exact")
    for ours, theirs in ((factors["a"], plain["0"]), (factors["c"], plain["4"])):
        torch.testing.assert_close(ours.A, theirs.A)
        torch.testing.assert_close(ours.G, theirs.G)


def test_a_layer_whose_output_gets_no_gradient_is_skipped():
    class Dead(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x)
            self.c(x)
            self.d(x).detach().sum()
            return self.b(x)

    factors = estimate_factors(Dead(), [X])
    reason = "its output received no gradient from the logits"
    assert list(factors) == ["b"]
    assert factors.skipped == dict.fromkeys("acd", reason)


def test_a_layer_that_only_some_batches_call_counts_zero_gradient_for_the_others():
    class Sometimes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) if x[0, 0] < 0 else x)

    model = Sometimes()
    both = estimate_factors(model, [X, X + 10], fisher="exact", layers=["a", "b"])
    alone = estimate_factors(model, [X], fisher="exact", layers=["a", "b"])
    torch.testing.assert_close(both["a"].A, alone["a"].A)
    torch.testing.assert_close(both["a"].G, alone["a"].G / 2)


def test_reduce_skips_a_layer_whose_rows_are_not_the_examples():
    class Folded(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(torch.cat([x.flatten(0, 1), x[0, :1]]))[:-1].reshape(x.shape).mean(dim=1))

    x = torch.randn(2, 5, 3, dtype=torch.float64)
    reduced = estimate_factors(Folded(), [x], weight_sharing="reduce", layers=["a", "b"])
    assert list(reduced) == ["b"]
    assert reduced.skipped["a"].startswith("its input starts with 11 rows where the batch has 2 examples")
    assert list(estimate_factors(Folded(), [x], layers=["a", "b"])) == ["a", "b"]


def test_single_examples_inside_a_model_are_layers_too():
    class One(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x[0]))[None]

    class Batched(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    one, batched = One(), Batched()
    batched.load_state_dict(one.state_dict())
    assert_same(*(estimate_factors(model, [X[:1]], layers=["a", "b"]) for model in (one, batched)))


def test_keyword_arguments_in_place_activations_and_branches_are_followed():
    class Keywords(Net):
        def forward(self, x: Tensor) -> Tensor:
            left = torch.relu_(self.a(input=x))
            right = self.b(input=x).add_(1).relu_()
            return self.c(left + right).mul_(2)

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.c(torch.relu(self.a(x)) + torch.relu(self.b(x) + 1))

    ours, plain = Keywords(), Plain()
    plain.load_state_dict(ours.state_dict())
    assert_same(
        *(estimate_factors(model, [X], fisher="exact", layers=list("abc")) for model in (ours, plain))
    )


def test_activation_checkpointing_changes_nothing():
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(
                checkpoint(lambda x: self.c(self.b(self.a(x)).tanh()).tanh(), x, use_reentrant=False)
            )

    class Plain(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x)).tanh()).tanh())

    ours, plain = Checkpointed(), Plain()
    plain.load_state_dict(ours.state_dict())
    assert_same(*(estimate_factors(model, [X, X + 1], fisher="exact") for model in (ours, plain)))


def test_attention_and_encoder_layers_are_passed_through():
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.embed(x)).mean(dim=1))

    factors = estimate_factors(Transformer().double(), [torch.randn(5, 6, 3).double()], fisher="exact")
    assert list(factors) == ["embed", "head"]
    assert list(factors.skipped) == [
        "encoder.self_attn",
        "encoder.self_attn.out_proj",
        "encoder.linear1",
        "encoder.linear2",
    ]


def test_loaders_of_every_shape_give_the_same():
    model, x, y = convnet(), images(6), labels("cross_entropy", 6)
    expected = estimate_factors(model, [(x, y)])

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    for loader in (
        [x],
        [[x, y]],
        iter([(x, y)]),
        [[x]],
        DataLoader(TensorDataset(x, y), batch_size=6),
        DataLoader(TensorDataset(x), batch_size=6),
        DataLoader(Stream(), batch_size=6),
        [x.clone().requires_grad_()],
    ):
        assert_same(expected, estimate_factors(model, loader))


REFUSED_BATCHES = [
    ([], ValueError, "loader must yield at least one example, got none; check the data"),
    ([X[:0]], ValueError, "at least one example, got none"),
    (
        X,
        TypeError,
        "loader must be an iterable of batches, got Tensor; pass a DataLoader or a list of batches",
    ),
    (3, TypeError, "loader must be an iterable of batches, got int"),
    (
        [X, {"y": 1}],
        TypeError,
        "loader must yield tensors, (inputs, target) or a mapping, got a dict of 'y': int",
    ),
    ([(X, X, X)], TypeError, "got a tuple of Tensor, Tensor, Tensor as batch 0; convert its items"),
    ([(X, ["a"])], TypeError, "got a tuple of Tensor, list as batch 0"),
    ([[]], TypeError, "got an empty list as batch 0"),
    ([X, "text"], TypeError, "got a str as batch 1"),
    ([torch.tensor(1.0)], ValueError, "got one number as batch 0; add a batch dimension"),
    (
        [(X, torch.zeros(3))],
        ValueError,
        "as many targets as inputs, got 4 examples and targets (3,) in batch 0",
    ),
    ([(X, torch.tensor(1))], ValueError, "got 4 examples and targets () in batch 0"),
    ([X, X / 0], ValueError, "finite numbers, got NaN or infinity in the input of batch 1; clean the data"),
    ([(X, X), (X, X * float("nan"))], ValueError, "got NaN or infinity in the target of batch 1"),
]


@pytest.mark.parametrize(("loader", "error", "message"), REFUSED_BATCHES)
def test_a_loader_that_yields_something_else_is_refused(loader, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        estimate_factors(mlp(3, 4, 3), loader, loss="mse")
    assert str(caught.value).startswith("estimate_factors: ")


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_a_batch_that_is_not_finite_is_named_rather_than_what_comes_of_it(fisher):
    batches = [(X, torch.tensor([0, 1, 2, 0])), (X / 0, torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(ValueError, match="NaN or infinity in the input of batch 1; clean the data"):
        estimate_factors(mlp(3, 4, 3), batches, fisher=fisher)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"autocast": "bfloat16"},
            ValueError,
            "autocast must be torch.bfloat16, torch.float16 or None, got 'bf",
        ),
        ({"autocast": torch.float32}, ValueError, "or None, got torch.float32; None runs the model in"),
        (
            {"loss": "nll"},
            ValueError,
            "loss must be one of 'cross_entropy', 'mse', 'bce_with_logits' or a function of logits and",
        ),
        (
            {"loss": nn.CrossEntropyLoss()},
            ValueError,
            "fisher must be 'empirical' for a loss of your own, got 'mc'",
        ),
        ({"fisher": "type-2"}, ValueError, "fisher must be one of 'mc', 'exact', 'empirical', got 'type-2'"),
        ({"kind": "pixel"}, ValueError, "kind must be one of 'channel', 'patch', got 'pixel'"),
        ({"weight_sharing": None}, ValueError, "weight_sharing must be one of 'expand', 'reduce', got None"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"samples": 1.5}, TypeError, "samples must be an integer, got 1.5; convert it with int()"),
        ({"max_examples": 0}, ValueError, "max_examples must be at least 1, got 0"),
        ({"max_examples": "all"}, TypeError, "max_examples must be an integer, got 'all'"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        (
            {"layers": "5"},
            ValueError,
            "layers must match layers of the model, got '5'; the nearest names are '0'",
        ),
        (
            {"layers": []},
            ValueError,
            "model must have a layer that can be covered, got none ('0': not in",
        ),
        (
            {"fisher": "empirical"},
            ValueError,
            "must yield (input, target) for fisher='empirical', got inputs alone",
        ),
    ],
)
def test_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        estimate_factors(mlp(3, 4, 3), [X], **arguments)


def nested(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), module)


def compiled_in_place() -> nn.Module:
    layer = nn.Linear(3, 3)
    layer.compile(backend="eager")
    return nested(layer)


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="jit"):
        return torch.jit.script(nn.Linear(3, 3))


def inference_model() -> nn.Module:
    with torch.inference_mode():
        return nested(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lambda x: x, TypeError, "model must be an nn.Module, got function"),
        (
            lambda: nested(scripted()),
            TypeError,
            "model must be eager, got RecursiveScriptModule '1'; pass the model before",
        ),
        (
            lambda: torch.compile(mlp(3, 3), backend="eager"),
            TypeError,
            "model must be eager, got OptimizedModule, which is compiled; pass",
        ),
        (compiled_in_place, TypeError, "model must be eager, got Linear '1', which is compiled"),
        (
            lambda: nn.DataParallel(mlp(3, 3)),
            TypeError,
            "must not be wrapped, got DataParallel; pass its `.module`",
        ),
        (
            lambda: nested(nn.LazyLinear(3)),
            ValueError,
            "must be initialised, got lazy LazyLinear '1'; run one batch",
        ),
        (
            lambda: nested(nn.Linear(3, 3, device="meta")),
            ValueError,
            "must hold its weights, got Linear '1' on 'meta'",
        ),
        (
            lambda: nested(nn.BatchNorm1d(3, track_running_stats=False)),
            ValueError,
            "must treat examples one by one in eval mode, got BatchNorm1d '1' without running statistics",
        ),
        (inference_model, ValueError, "must allow gradients, got Linear '0' made under inference_mode"),
        (
            lambda: nn.Sequential(nn.ReLU()),
            ValueError,
            "a layer that can be covered, got no such layer",
        ),
        (
            lambda: nn.Linear(3, 3),
            ValueError,
            "got none ('': it is the whole model; wrap it in nn.Sequential)",
        ),
        (lambda: nn.Sequential(nn.Conv3d(3, 3, 1)), ValueError, "got none ('0': Conv3d is not covered"),
    ],
)
def test_models_that_cannot_be_watched_are_refused(make, error, message):
    model = make()
    with pytest.raises(error, match=re.escape(message)):
        estimate_factors(model, [X.float()])


class Returns(nn.Module):
    """A Linear whose output becomes something else."""

    def __init__(self, change) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(3, 3).double(), change

    def forward(self, x: Tensor):
        return self.change(self.layer(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda z: [z, z],
            TypeError,
            "must return logits, as a tensor, as .logits, under 'logits' or first in",
        ),
        (lambda z: z.mean(), ValueError, "a row of logits for each of 4 examples, got ()"),
        (
            lambda z: z.T,
            ValueError,
            "a row of logits for each of 4 examples, got (3, 4); put the batch first",
        ),
        (
            lambda z: z[:, :, None, None],
            ValueError,
            "logits for loss='cross_entropy' must have the shape (N, C) or (N, T, C), got (4, 3, 1, 1)",
        ),
        (
            lambda z: z[:, 0],
            ValueError,
            "logits for loss='cross_entropy' must have the shape (N, C) or (N, T, C), got (4,)",
        ),
        (lambda z: z / 0, ValueError, "model must give finite logits, got NaN or infinity in batch 0"),
        (lambda z: z.detach(), ValueError, "logits must depend on a covered layer, got none that does"),
        (
            lambda z: z.expand(3, 4, 3)[0].repeat(1, 500),
            ValueError,
            "at most 1,000 backward vectors, got 1,500",
        ),
    ],
)
def test_logits_are_refused_with_what_they_are(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        estimate_factors(Returns(change), [X], fisher="exact")


def test_a_pass_without_gradients_says_so():
    class NoGrad(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    with pytest.raises(ValueError, match="neither detaches them nor runs under no_grad"):
        estimate_factors(NoGrad(), [X])

    class Elsewhere(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x)))

    with pytest.raises(ValueError, match=r"got none .*'a': called more than once in a forward pass"):
        estimate_factors(Elsewhere(), [X], layers="a")


@pytest.mark.parametrize(
    ("layer", "value", "message"),
    [
        (
            0,
            1e160,
            "the input of layer '1' must be finite, squares too, got NaN or infinity in batch 1; check",
        ),
        (
            1,
            torch.nan,
            "weights and statistics of model must be finite, got NaN or infinity in '1.weight'; load",
        ),
        (
            2,
            torch.inf,
            "weights and statistics of model must be finite, got NaN or infinity in '2.weight'; load",
        ),
    ],
)
def test_numbers_that_are_not_finite_name_the_layer_and_the_batch(layer, value, message):
    model = mlp(3, 4, 3, 3, activation=None, bias=False)
    model[layer].weight.data.fill_(value)
    with pytest.raises(ValueError, match=re.escape(message)):
        estimate_factors(model, [torch.zeros_like(X), X.abs() + 1])


def test_logits_that_are_not_finite_are_named():
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) + torch.inf

    with pytest.raises(
        ValueError, match="model must give finite logits, got NaN or infinity in batch 0; check"
    ):
        estimate_factors(Model(), [X])


def test_a_gradient_that_is_not_finite_names_the_layer_and_the_batch():
    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(Cliff()(self.a(x)))

    with pytest.raises(ValueError, match=r"the output gradient of layer 'a' must be finite.* in batch 0"):
        estimate_factors(Model(), [X])


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(capsys, monkeypatch):
    curvature.estimate_factors(mlp(3, 3), [X] * 3)
    assert capsys.readouterr() == ("", ""), "a short pass says nothing in a log"
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    curvature.estimate_factors(mlp(3, 3), [X] * 3)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and len(lines) == 3
    assert re.fullmatch(r"Kronecker factors: 2/3, about \d+ s left", lines[1])
    assert list(_progress.track(iter("ab"), total=None, description="x")) == ["a", "b"]
    assert capsys.readouterr().err == "x: 1\nx: 2\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    curvature.estimate_factors(mlp(3, 3), DataLoader(X, batch_size=1), max_examples=3)
    out, err = capsys.readouterr()
    assert not out and "Kronecker factors" in err and "3/3" in err
