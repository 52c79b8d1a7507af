"""The Fisher's diagonal and the mean loss's gradient, against autograd's gradients of single examples."""

import pytest
import torch
from dense_fisher import GEOMETRIES, LOSS_OF_ONE
from nets import convnet, images, labels, mlp
from torch import Tensor, nn

from eigendamage_ext import curvature
from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext.curvature import Factors
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, draw

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def estimate(model: nn.Module, data: list, **keywords) -> Factors:
    """Factors with both measured on the same data."""
    factors = curvature.estimate_factors(model, data, progress=False, **keywords)
    factors.diagonal(model, data, progress=False)
    factors.gradients(model, data, progress=False)
    return factors


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def example_gradient(model: nn.Module, name: str, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Of one example's loss, by a layer's weight and bias: rows [w_o | b_o]."""
    layer = model.get_submodule(name)
    parts = torch.autograd.grad(LOSS_OF_ONE[loss](model(x[None])[0], y), list(layer.parameters()))
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def weighted_labels(z: Tensor, y: Tensor, settings) -> list[tuple[Tensor, Tensor]]:
    """Labels and their weights ``(N,)``, so that the Fisher is the weighted sum of squared gradients."""
    ones = torch.ones(len(z), dtype=z.dtype)
    if settings.fisher == "empirical":
        return [(ones, y)]
    if settings.fisher == "mc":
        drawn = [draw(settings.loss, z, settings.seed, 0, index) for index in range(settings.samples)]
        return [(ones / settings.samples, y) for y in drawn]
    units = torch.eye(z.shape[1], dtype=z.dtype)
    if settings.loss == "cross_entropy":
        return [(z.softmax(1) @ unit, unit.expand_as(z)) for unit in units]
    if settings.loss == "mse":  # y − z of variance 1/2
        return [(ones, z + unit * 0.5**0.5) for unit in units]
    p = z.sigmoid()
    return [
        (abs(1 - value - p @ unit), p * (1 - unit) + value * unit) for unit in units for value in (0.0, 1.0)
    ]


def explicit_diagonal(model: nn.Module, name: str, x: Tensor, y: Tensor, settings) -> Tensor:
    return sum(
        weight * example_gradient(model, name, example, label, settings.loss) ** 2 / len(x)
        for weights, labels in weighted_labels(model(x).detach(), y, settings)
        for weight, example, label in zip(weights, x, labels, strict=True)
    )


def explicit_gradient(model: nn.Module, name: str, x: Tensor, y: Tensor, loss: str) -> Tensor:
    gradients = [
        example_gradient(model, name, example, label, loss) for example, label in zip(x, y, strict=True)
    ]
    return sum(gradients) / len(x)


def assert_explicit(factors: Factors, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Both, of every layer."""
    for name, layer in factors.items():
        assert_close(layer.diagonal, explicit_diagonal(model, name, x, y, factors.settings))
        assert_close(layer.gradient, explicit_gradient(model, name, x, y, factors.settings.loss))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_of_convolutions(geometry):
    conv = nn.Conv2d(4, 8, **GEOMETRIES[geometry])
    x, y = torch.randn(3, 4, 6, 7, dtype=torch.float64), torch.tensor([0, 2, 1])
    flat = conv(x.float())[0].numel()
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(flat, 3)).double()
    factors = estimate(model, [(x, y)], fisher="exact", layers="0")
    assert factors["0"].diagonal.shape == (8, conv.weight[0].numel() + (conv.bias is not None))
    assert_explicit(factors, model, x, y)


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_of_every_loss_and_fisher(loss, fisher):
    model, x, y = convnet().eval(), images(4), labels(loss, 4)
    factors = estimate(model, [(x, y)], loss=loss, fisher=fisher, samples=2, seed=5)
    assert list(factors) == ["0", "3", "5", "8"]
    assert_explicit(factors, model, x, y)


class Sequence(nn.Module):
    """Linears over positions, then a mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).mean(dim=tuple(range(1, x.dim() - 1))))


@pytest.mark.parametrize("shape", [(3, 7, 5), (3, 2, 3, 5), (3, 2, 1, 3, 5)])
@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_of_linears_over_positions_whatever_the_factors_are(shape, kind):
    model, x, y = Sequence(), torch.randn(shape, dtype=torch.float64), torch.tensor([0, 1, 3])
    factors = estimate(model, [(x, y)], fisher="exact", kind=kind, weight_sharing="reduce")
    assert_explicit(factors, model, x, y)


def test_of_a_factored_layer_they_are_its_cores():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(), nn.Tanh(), nn.Linear(6, 4))
    model[1].add_module("input_rotation", nn.Linear(126, 5, bias=False))
    model[1].add_module("core", nn.Linear(5, 6))
    x, y = images(4), labels("cross_entropy", 4)
    factors = estimate(model.double(), [(x, y)], layers="1")
    assert_close(factors["1"].diagonal, explicit_diagonal(model, "1.core", x, y, factors.settings))
    assert_close(factors["1"].gradient, explicit_gradient(model, "1.core", x, y, "cross_entropy"))


@pytest.mark.parametrize("fisher", FISHERS)
def test_splitting_into_batches_changes_nothing(fisher):
    model, x, y = convnet(), images(9), labels("cross_entropy", 9)
    factors = estimate(model, [(x, y)], fisher=fisher, samples=2)
    whole = factors.layers
    for sizes in ([4, 5], [0, 9], [1] * 9):
        data = list(zip(x.split(sizes), y.split(sizes), strict=True))
        for name, layer in estimate(model, data, fisher=fisher, samples=2).items():
            assert_close(layer.diagonal, whole[name].diagonal)
            assert_close(layer.gradient, whole[name].gradient)
    for pass_, field in ((factors.diagonal, "diagonal"), (factors.gradients, "gradient")):
        first = pass_(model, [(x[:4], y[:4]), (x[4:], y[4:])], max_examples=5, progress=False)
        again = pass_(model, [(x[:5], y[:5])], progress=False)
        assert getattr(factors.settings, f"{field}_count") == 5
        for name, found in first.items():
            assert_close(found, again[name])
            assert getattr(factors[name], field) is again[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_float32_near_the_exact_ones(dtype, device):
    model, x, y = convnet().to(dtype), images(8).to(dtype), labels("cross_entropy", 8)
    found = estimate(model.to(device), [(x, y)], fisher="empirical")
    exact = estimate(model.cpu().double(), [(x.double(), y)], fisher="empirical")
    for name in found:
        for field in ("diagonal", "gradient"):
            ours, expected = getattr(found[name], field), getattr(exact[name], field)
            assert ours.dtype == torch.float32 and expected.dtype == torch.float64
            assert ours.device.type == device
            error = torch.linalg.norm(ours.cpu() - expected)
            assert error <= 50 * torch.finfo(dtype).eps * torch.linalg.norm(expected)


def test_they_follow_the_autocast_of_the_factors():
    model, x, y = convnet().float(), images(32).float(), labels("cross_entropy", 32)
    keywords = {"fisher": "empirical", "layers": ["0", "3"]}  # "0" reads float32, its gradients are halves
    plain = estimate(model, [(x, y)], **keywords)
    found = estimate(model, [(x, y)], autocast=torch.bfloat16, **keywords)
    for name, layer in found.items():
        for field in ("diagonal", "gradient"):
            ours, expected = getattr(layer, field), getattr(plain[name], field)
            assert ours.dtype == torch.float32
            assert 1e-4 < torch.linalg.norm(ours - expected) / torch.linalg.norm(expected) < 0.05


def test_channels_last_changes_nothing():
    model, x, y = convnet(), images(4), labels("cross_entropy", 4)
    expected = estimate(model, [(x, y)])
    last = {"memory_format": torch.channels_last}
    found = estimate(model.to(**last), [(x.contiguous(**last), y)])
    for name in expected:
        assert_close(found[name].diagonal, expected[name].diagonal)
        assert_close(found[name].gradient, expected[name].gradient)


def test_saving_and_loading_gives_the_same_bits(tmp_path):
    data = [(images(4), labels("cross_entropy", 4))]
    factors = estimate(convnet(), data)
    factors.save(tmp_path / "factors")
    loaded = Factors.load(tmp_path / "factors")
    assert loaded.settings == factors.settings
    assert (loaded.settings.diagonal_count, loaded.settings.gradient_count) == (4, 4)
    for name, layer in factors.items():
        assert torch.equal(loaded[name].diagonal, layer.diagonal) and loaded[name].S is None
        assert torch.equal(loaded[name].gradient, layer.gradient)
    one = curvature.estimate_factors(convnet(), data, progress=False)
    one.gradients(convnet(), data, max_examples=3, progress=False)
    one.save(tmp_path / "one")
    loaded = Factors.load(tmp_path / "one")
    assert (loaded.settings.diagonal_count, loaded.settings.gradient_count) == (0, 3)
    assert loaded["0"].diagonal is None and torch.equal(loaded["0"].gradient, one["0"].gradient)


def test_files_from_before_they_were_there_load(tmp_path):
    factors = curvature.estimate_factors(convnet(), [images(2)], progress=False)
    factors.save(tmp_path / "new")
    tensors, manifest = read_tensors(tmp_path / "new", format="eigendamage-factors")
    del manifest["settings"]["diagonal_count"], manifest["settings"]["gradient_count"]
    write_tensors(tmp_path / "old", tensors, manifest, format="eigendamage-factors")
    loaded = Factors.load(tmp_path / "old")
    assert loaded.settings == factors.settings
    assert loaded["0"].diagonal is None and loaded["0"].gradient is None


@pytest.mark.parametrize("field", ["diagonal", "gradient"])
@pytest.mark.parametrize("damage", ["missing", "misshapen", "not counted"])
def test_a_file_that_does_not_hold_what_it_counts_is_an_artifact_error(tmp_path, field, damage):
    factors = estimate(convnet(), [(images(2), labels("cross_entropy", 2))])
    factors.save(tmp_path / "factors")
    tensors, manifest = read_tensors(tmp_path / "factors", format="eigendamage-factors")
    if damage == "missing":
        del tensors[f"8.{field}"]
    elif damage == "misshapen":
        tensors[f"8.{field}"] = tensors[f"8.{field}"][:, :-1]
    else:
        manifest["settings"][f"{field}_count"] = 0
    write_tensors(tmp_path / "factors", tensors, manifest, format="eigendamage-factors")
    with pytest.raises(ArtifactError, match=rf"'\d\.{field}'.*save it again"):
        Factors.load(tmp_path / "factors")


X, Y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("caller", ["diagonal", "gradients"])
@pytest.mark.parametrize(
    ("model", "data", "keywords", "error", "message"),
    [
        (mlp(3, 4, 2).float(), [], {}, ValueError, "loader must yield at least one example"),
        (mlp(3, 4, 2).float(), [(X / 0, Y)], {}, ValueError, "loader must yield finite"),
        (mlp(3, 4, 2).float(), [(X, Y)], {"max_examples": 0}, ValueError, "max_examples must be at least 1"),
        (mlp(3, 4, 2).float(), [X], {}, ValueError, r"loader must yield \(input, target\)"),
        (mlp(3, 4, 2).float(), [(X, Y + 5)], {}, ValueError, r"targets for loss='cross_entropy' must lie"),
        (mlp(3, 5, 2).float(), [(X, Y)], {}, ValueError, "layer '0' of model must be as in the factors"),
        (nn.ReLU(), [(X, Y)], {}, ValueError, "model must have the Linear '0' of the factors"),
        (len, [X], {}, TypeError, "model must be an nn.Module"),
    ],
)
def test_errors_carry_their_name(model, data, keywords, error, message, caller):
    factors = curvature.estimate_factors(mlp(3, 4, 2).float(), [(X, Y)], fisher="empirical", progress=False)
    with pytest.raises(error, match=f"^{caller}: {message}"):
        getattr(factors, caller)(model, data, progress=False, **keywords)
    assert factors["0"].diagonal is None and factors["0"].gradient is None
    assert (factors.settings.diagonal_count, factors.settings.gradient_count) == (0, 0)


def test_gradients_need_labels_whatever_the_fisher_is():
    model = mlp(3, 4, 2).float()
    factors = curvature.estimate_factors(model, [X], fisher="exact", progress=False)
    with pytest.raises(ValueError, match=r"gradients: loader must yield .*inputs alone in batch 1; add the"):
        factors.gradients(model, [(X, Y), X], progress=False)
    factors.diagonal(model, [X], progress=False)


class Folded(nn.Module):
    """The first layer sees the positions of all examples as rows, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.cat([x.flatten(0, 1), x[0, :1]]))[:-1].tanh().reshape(x.shape).mean(dim=1))


def test_only_the_gradient_is_known_of_a_layer_whose_rows_are_not_the_examples():
    model, x, y = Folded(), torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([0, 2])
    factors = curvature.estimate_factors(model, [x], progress=False)
    with pytest.raises(
        ValueError, match=r"diagonal: every layer .*'a': its input starts with 11 rows where .* 2 examples"
    ):
        factors.diagonal(model, [x], progress=False)
    assert factors["a"].diagonal is None
    for name, found in factors.gradients(model, [(x, y)], progress=False).items():
        assert_close(found, explicit_gradient(model, name, x, y, "cross_entropy"))


@pytest.mark.parametrize("caller", ["diagonal", "gradients"])
def test_an_input_changed_in_place_is_an_error_that_names_the_layer(caller):
    class Changes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            y = self[1](x)
            x += y
            return self[2](x)

    model = Changes(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    factors = curvature.estimate_factors(model, [X], progress=False)
    with pytest.raises(ValueError, match=rf"{caller}: the input of layer '1' must stay as it is"):
        getattr(factors, caller)(model, [(X, Y)], progress=False)
