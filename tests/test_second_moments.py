"""EKFAC's second moments against the Fisher written out: property 6 of the method, in float64."""

import gc
import weakref

import pytest
import torch
from dense_fisher import GEOMETRIES, weight_fisher
from nets import convnet, images, labels, mlp
from torch import Tensor, nn

from eigendamage_ext import _files, curvature
from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext.curvature import Factors, ekfac
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES, draw

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def estimate(model: nn.Module, data: list, **keywords) -> Factors:
    """Factors with their second moments."""
    factors = curvature.estimate_factors(model, data, progress=False, **keywords)
    factors.second_moments(model, data, progress=False)
    return factors


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def dense_fisher(model: nn.Module, name: str, x: Tensor, y: Tensor, settings) -> Tensor:
    """Of a layer's rows [w_o | b_o]; for "mc" with the labels that the package draws."""
    if settings.fisher != "mc":
        return weight_fisher(model, name, x, y, settings.loss, settings.fisher).detach()
    drawn = [draw(settings.loss, model(x).detach(), settings.seed, 0, i) for i in range(settings.samples)]
    fishers = [weight_fisher(model, name, x, y, settings.loss, "empirical").detach() for y in drawn]
    return sum(fishers) / len(fishers)


def bases(factors: Factors, name: str) -> list[Tensor]:
    """Of every group: columns Q_G ⊗ Q_A (or Q_G ⊗ Q_A ⊗ I_K) in the order of [w_o | b_o] or of w_o."""
    spec, eigen = factors.specs[name], factors.eigenbasis()[name]
    identity = torch.eye(spec.kernel_positions if factors.settings.kind == "channel" else 1).double()
    Q_A, Q_G = (
        e.vectors.contiguous().reshape(spec.groups, *e.vectors.shape[-2:]) for e in (eigen.A, eigen.G)
    )
    return [torch.kron(q_g, torch.kron(q_a, identity)) for q_a, q_g in zip(Q_A, Q_G, strict=True)]


def blocks(factors: Factors, name: str, fisher: Tensor) -> list[Tensor]:
    """The Fisher of every group's rows; without the bias for "channel"."""
    spec = factors.specs[name]
    rows = spec.out_channels
    wide = fisher.reshape(rows, -1, rows, fisher.shape[0] // rows)
    if factors.settings.kind == "channel" and spec.bias:
        wide = wide[:, :-1, :, :-1]
    per = spec.out_per_group
    groups = [wide[at : at + per, :, at : at + per] for at in range(0, rows, per)]
    return [group.reshape(per * wide.shape[1], -1) for group in groups]


def explicit(factors: Factors, name: str, fisher: Tensor) -> Tensor:
    """The diagonal of the Fisher in the eigenbasis, one entry after the other."""
    pairs = zip(bases(factors, name), blocks(factors, name, fisher), strict=True)
    return torch.cat([(basis.mT @ block @ basis).diagonal() for basis, block in pairs])


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_of_convolutions(geometry, kind, weight_sharing):
    conv = nn.Conv2d(4, 8, **GEOMETRIES[geometry])
    x, y = torch.randn(3, 4, 6, 7, dtype=torch.float64), torch.tensor([0, 2, 1])
    flat = conv(x.float())[0].numel()
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(flat, 3)).double()
    factors = estimate(model, [(x, y)], fisher="exact", kind=kind, weight_sharing=weight_sharing, layers="0")
    S = factors["0"].S
    depth = factors["0"].A.shape[-1]
    assert S.shape == (conv.weight.shape if kind == "channel" else (8, depth))
    assert_close(S.flatten(), explicit(factors, "0", dense_fisher(model, "0", x, y, factors.settings)))


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_of_every_loss_and_fisher(loss, fisher, kind):
    model, x, y = convnet().eval(), images(4), labels(loss, 4)
    factors = estimate(model, [(x, y)], loss=loss, fisher=fisher, kind=kind, samples=2, seed=5)
    for name in ("3", "8"):
        fisher = dense_fisher(model, name, x, y, factors.settings)
        assert_close(factors[name].S.flatten(), explicit(factors, name, fisher))


class Sequence(nn.Module):
    """Linears over positions, then a mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).tanh()).mean(dim=(1, 2)))


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_of_linears_over_positions(kind, weight_sharing):
    model, x, y = Sequence(), torch.randn(3, 2, 3, 5, dtype=torch.float64), torch.tensor([0, 1, 3])
    factors = estimate(model, [(x, y)], fisher="exact", kind=kind, weight_sharing=weight_sharing)
    for name in "abc":
        fisher = dense_fisher(model, name, x, y, factors.settings)
        assert_close(factors[name].S.flatten(), explicit(factors, name, fisher))


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_the_corrected_fisher_is_nearer_than_the_product_of_the_factors(kind, fisher):
    for model, x in ((mlp(5, 4, 4), torch.randn(7, 5).double()), (convnet().eval(), images(5))):
        y = labels("cross_entropy", len(x))
        factors = estimate(model, [(x, y)], fisher=fisher, kind=kind)
        ratios = []
        for name, layer in factors.items():
            spec = factors.specs[name]
            identity = torch.eye(spec.kernel_positions if kind == "channel" else 1).double()
            A, G = (f.reshape(spec.groups, *f.shape[-2:]) for f in (layer.A, layer.G))
            S = layer.S.reshape(spec.groups, -1)
            dense = blocks(factors, name, dense_fisher(model, name, x, y, factors.settings))
            for g, (basis, block) in enumerate(zip(bases(factors, name), dense, strict=True)):
                kfac = torch.linalg.norm(torch.kron(G[g], torch.kron(A[g], identity)) - block)
                corrected = torch.linalg.norm(basis @ S[g].diag() @ basis.mT - block)
                assert corrected <= kfac * (1 + 1e-12)
                ratios.append(float(corrected / kfac))
        assert min(ratios) < 0.95


@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("fisher", FISHERS)
def test_splitting_into_batches_and_parts_changes_nothing(fisher, kind, monkeypatch):
    model, x, y = convnet(), images(9), labels("cross_entropy", 9)
    factors = estimate(model, [(x, y)], fisher=fisher, kind=kind, samples=2)
    whole = {name: layer.S for name, layer in factors.items()}
    for sizes, rotated in (([4, 5], ekfac.ROTATED), ([0, 9], 1), ([1] * 9, 1), ([9], 1000)):
        monkeypatch.setattr(ekfac, "ROTATED", rotated)
        data = list(zip(x.split(sizes), y.split(sizes), strict=True))
        for name, S in factors.second_moments(model, data, progress=False).items():
            assert_close(S, whole[name])
    first = factors.second_moments(model, [(x[:4], y[:4]), (x[4:], y[4:])], max_examples=5, progress=False)
    again = factors.second_moments(model, [(x[:5], y[:5])], progress=False)
    assert factors.settings.moments_count == 5
    for name, S in first.items():
        assert_close(S, again[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_lower_precision_gives_float32_near_the_exact_ones(kind, dtype):
    model, x, y = convnet().to(dtype), images(8).to(dtype), labels("cross_entropy", 8)
    factors = estimate(model, [(x, y)], fisher="empirical", kind=kind)
    # The same eigenbasis, since a nearby matrix may have quite another one.
    exact = Factors(factors.layers, factors.specs, {}, factors.settings, factors.eigenbasis())
    moments = exact.second_moments(model.double(), [(x.double(), y)], progress=False)
    for name, expected in moments.items():
        assert factors[name].S.dtype == torch.float32 and expected.dtype == torch.float64
        error = torch.linalg.norm(factors[name].S - expected)
        assert error <= 50 * torch.finfo(dtype).eps * torch.linalg.norm(expected)


def test_channels_last_changes_nothing():
    model, x, y = convnet(), images(4), labels("cross_entropy", 4)
    factors = estimate(model, [(x, y)])
    last = {"memory_format": torch.channels_last}
    moments = factors.second_moments(model.to(**last), [(x.contiguous(**last), y)], progress=False)
    for name, layer in estimate(model, [(x, y)]).items():
        assert_close(moments[name], layer.S)


# What stays, and what is refused


def test_they_stay_with_the_factors_and_the_eigenbasis_carries_them():
    model, data = convnet(), [images(4)]
    factors = curvature.estimate_factors(model, data, progress=False)
    with pytest.raises(ValueError, match=r"eigenbasis: factors must have second moments .*second_moments\("):
        factors.eigenbasis(corrected=True)
    moments = factors.second_moments(model, data, progress=False)
    assert list(moments) == list(factors)
    plain, corrected = factors.eigenbasis(), factors.eigenbasis(corrected=True)
    for name, S in moments.items():
        assert factors[name].S is S and corrected[name].S is S and plain[name].S is None
        assert corrected[name].A is plain[name].A and corrected[name].G is plain[name].G


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_saving_and_loading_gives_the_same_bits_in_the_same_basis(tmp_path, kind, monkeypatch):
    factors = estimate(convnet(), [images(4)], kind=kind)
    factors.save(tmp_path / "factors")
    # Another machine may choose other eigenvectors where eigenvalues are equal.
    monkeypatch.setattr(curvature.Eigenbasis, "of", lambda factors: pytest.fail("decomposed again"))
    loaded = Factors.load(tmp_path / "factors")
    assert loaded.settings == factors.settings and loaded.settings.moments_count == 4
    for name, expected in factors.eigenbasis(corrected=True).items():
        found = loaded.eigenbasis(corrected=True)[name]
        assert torch.equal(found.S, expected.S) and torch.equal(loaded[name].S, expected.S)
        for ours, theirs in ((found.A, expected.A), (found.G, expected.G)):
            assert torch.equal(ours.values, theirs.values) and torch.equal(ours.vectors, theirs.vectors)


def test_files_from_before_there_were_second_moments_load(tmp_path):
    factors = curvature.estimate_factors(convnet(), [images(2)], progress=False)
    factors.save(tmp_path / "new")
    tensors, manifest = read_tensors(tmp_path / "new", format="eigendamage-factors")
    del manifest["settings"]["moments_count"]
    write_tensors(tmp_path / "old", tensors, manifest, format="eigendamage-factors")
    loaded = Factors.load(tmp_path / "old")
    assert loaded.settings == factors.settings and loaded["0"].S is None
    loaded.second_moments(convnet(), [images(2)], progress=False)
    assert _files.FORMAT_VERSION == 1


@pytest.mark.parametrize("missing", ["0.S", "3.A.vectors", "8.G.values"])
@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_a_file_without_all_of_them_is_an_artifact_error(tmp_path, missing, damage):
    factors = estimate(convnet(), [images(2)])
    factors.save(tmp_path / "factors")
    tensors, manifest = read_tensors(tmp_path / "factors", format="eigendamage-factors")
    if damage == "missing":
        del tensors[missing]
    else:
        tensors[missing] = tensors[missing].flatten()[1:]
    write_tensors(tmp_path / "factors", tensors, manifest, format="eigendamage-factors")
    with pytest.raises(ArtifactError, match=rf"'{missing}'"):
        Factors.load(tmp_path / "factors")


class Changes(nn.Module):
    """Changes a layer's input in place after the layer has read it."""

    def __init__(self, late: bool) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.late = late
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.layer(x)
        if self.late:
            x += y
            return self.head(x)
        return self.head(x + y)


def test_an_input_changed_in_place_is_an_error_that_names_the_layer():
    x = torch.randn(5, 3, dtype=torch.float64)
    model = Changes(late=True)
    factors = curvature.estimate_factors(model, [x], progress=False)
    message = (
        r"second_moments: the input of layer 'layer' must stay as it is .*got one that was changed in place"
    )
    with pytest.raises(ValueError, match=message):
        factors.second_moments(model, [x], progress=False)
    assert factors["layer"].S is None and factors.settings.moments_count == 0
    same = Changes(late=False)
    same.load_state_dict(model.state_dict())
    expected = explicit(factors, "layer", dense_fisher(same, "layer", x, x, factors.settings))
    assert_close(factors.second_moments(same, [x], progress=False)["layer"].flatten(), expected)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)


class Folded(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.cat([x.flatten(0, 1), x[0, :1]]))[:-1].reshape(x.shape).mean(dim=1))


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(self.a(x.mean(dim=1))))


class Once(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.mean(dim=1)))


class Never(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x.mean(dim=1))


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.mean(dim=1)).detach())


@pytest.mark.parametrize(
    ("analysed", "now", "message"),
    [
        (Folded, Folded, "'a': its input starts with 11 rows where the batch has 2 examples"),
        (Once, Twice, "'b': called more than once in a forward pass"),
        (Once, Never, "'a': never called in the forward pass"),
        (Once, Detached, "'a': its output received no gradient from the logits"),
    ],
)
def test_a_layer_without_a_gradient_for_each_example_is_refused(analysed, now, message):
    x = torch.randn(2, 5, 3)
    factors = curvature.estimate_factors(analysed(), [x], progress=False)
    with pytest.raises(ValueError, match=rf"every layer of the factors must have .*{message}.*layers=…"):
        factors.second_moments(now(), [x], progress=False)
    assert factors["a"].S is None


X = torch.randn(4, 3)


@pytest.mark.parametrize(
    ("model", "data", "keywords", "error", "message"),
    [
        (mlp(3, 4, 2).float(), [], {}, ValueError, "loader must yield at least one example"),
        (mlp(3, 4, 2).float(), X, {}, TypeError, "loader must be an iterable of batches, got Tensor"),
        (mlp(3, 4, 2).float(), [(X / 0, X.new_zeros(4).long())], {}, ValueError, "loader must yield finite"),
        (mlp(3, 4, 2).float(), [X], {"max_examples": 0}, ValueError, "max_examples must be at least 1"),
        (mlp(3, 4, 2).float(), [X], {}, ValueError, r"loader must yield \(input, target\) for fisher="),
        (mlp(3, 5, 2).float(), [X], {}, ValueError, "layer '0' of model must be as in the factors"),
        (nn.ReLU(), [X], {}, ValueError, "model must have the Linear '0' of the factors"),
        (len, [X], {}, TypeError, "model must be an nn.Module"),
    ],
)
def test_errors_carry_its_name(model, data, keywords, error, message):
    targets = torch.tensor([0, 1, 1, 0])
    factors = curvature.estimate_factors(
        mlp(3, 4, 2).float(), [(X, targets)], fisher="empirical", progress=False
    )
    with pytest.raises(error, match=f"second_moments: {message}"):
        factors.second_moments(model, data, progress=False, **keywords)


def test_squares_that_are_not_finite_name_the_layer_and_the_batch():
    model = mlp(3, 4, 4, 2, activation=None, bias=False)
    factors = curvature.estimate_factors(model, [X.double()], loss="mse", fisher="exact", progress=False)
    with torch.no_grad():
        for layer, scale in zip(model, (1e90, 1e-170, 1e90), strict=True):
            layer.weight.mul_(scale)
    with pytest.raises(ValueError, match=r"the gradient of layer '1' must be finite, squares too.* batch 0"):
        factors.second_moments(model, [1e80 * X.double()], progress=False)


@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_an_input_is_kept_until_its_last_gradient_and_no_longer(fisher):
    inputs: list[weakref.ref] = []
    alive: list[bool] = []

    class Probe(torch.autograd.Function):
        """Looks, once the gradient has passed the layer, whether its input still lives."""

        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            gc.collect()
            alive.append(inputs[-1]() is not None)
            return gradient

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = Probe.apply(self.first(x))
            x = x * 1
            inputs.append(weakref.ref(x.untyped_storage()))
            return self.second(x)

    model = Model()
    factors = curvature.estimate_factors(model, [X], fisher=fisher, progress=False)
    alive.clear()
    factors.second_moments(model, [X] * 2, progress=False)
    assert alive == [False] * 2 if fisher == "mc" else [True, False] * 2
