"""Factors against dense algebra that shares nothing with them: unfolded patches, torch.func's Jacobians."""

import pytest
import torch
import torch.nn.functional as F
from dense_fisher import GEOMETRIES, fisher_of, weight_fisher
from nets import convnet, images, labels, mlp, resnet
from torch import Tensor, nn

from eigendamage_ext import curvature
from eigendamage_ext._files import ArtifactError, write_tensors
from eigendamage_ext.curvature import Factors
from eigendamage_ext.curvature.fisher import FISHERS, LOSSES


def estimate_factors(*args, **keywords) -> Factors:
    return curvature.estimate_factors(*args, progress=False, **keywords)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """1e-10 of the largest entry."""
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


def assert_same(one: Factors, other: Factors) -> None:
    assert one.keys() == other.keys() and len(one)
    for name in one:
        assert_close(one[name].A, other[name].A)
        assert_close(one[name].G, other[name].G)


def unfolded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Patches ``(g, N, c_in/g, K, T)`` by padding as the module says and `F.unfold`."""
    borders = [0, 0, 0, 0] if conv.padding == "valid" else conv._reversed_padding_repeated_twice
    padded = F.pad(x, borders, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    patches = F.unfold(padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
    examples, positions = patches.shape[0], patches.shape[2]
    split = (examples, conv.groups, conv.in_channels // conv.groups, -1, positions)
    return patches.reshape(split).movedim(1, 0)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution_factors_are_those_of_unfolded_patches_and_dense_jacobians(geometry, weight_sharing):
    conv = nn.Conv2d(4, 8, **GEOMETRIES[geometry]).double()
    x, y = torch.randn(3, 4, 6, 7, dtype=torch.float64), torch.tensor([0, 2, 1])
    out = conv(x).detach()
    tail = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(out[0].numel(), 3)).double()
    settings = {"fisher": "exact", "weight_sharing": weight_sharing, "layers": "0"}
    channel = estimate_factors(nn.Sequential(conv, tail), [(x, y)], kind="channel", **settings)["0"]
    patch = estimate_factors(nn.Sequential(conv, tail), [(x, y)], kind="patch", **settings)["0"]

    a = unfolded(conv, x)
    if weight_sharing == "reduce":
        a = a.mean(dim=-1, keepdim=True)
    groups, examples, _, offsets, positions = a.shape
    by_pixel = a.movedim(2, 1).flatten(2)
    Ac = by_pixel @ by_pixel.mT / (examples * positions * offsets)
    by_patch = a.flatten(2, 3).movedim(1, 2).flatten(2)
    if conv.bias is not None:
        by_patch = torch.cat([by_patch, torch.ones_like(by_patch[:, :1])], dim=1)
    A = by_patch @ by_patch.mT / (examples * positions)

    G = torch.zeros(groups, 8 // groups, 8 // groups, dtype=torch.float64)
    for n in range(examples):
        dense = fisher_of(lambda out: tail(out[None])[0], out[n], "cross_entropy", "exact", y[n])
        dense = dense.reshape(groups, 8 // groups, out[0, 0].numel(), groups, 8 // groups, out[0, 0].numel())
        for g in range(groups):
            block = dense[g, :, :, g]
            # Expand keeps the positions apart and adds their blocks; reduce adds the gradients first.
            G[g] += (
                block.diagonal(dim1=1, dim2=3).sum(-1) if weight_sharing == "expand" else block.sum((1, 3))
            )
    G /= examples

    if groups == 1:
        Ac, A, G = Ac[0], A[0], G[0]
    assert_close(channel.A, Ac)
    assert_close(patch.A, A)
    assert_close(channel.G, G)
    assert torch.equal(channel.G, patch.G)
    if conv.bias is not None:
        assert_close(patch.A[..., -1, -1], torch.ones_like(patch.A[..., -1, -1]))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_one_example_gives_the_exact_block_of_every_linear(loss, fisher):
    model = mlp(5, 4, 3, 4)
    x, y = torch.randn(1, 5, dtype=torch.float64), labels(loss, 1)
    factors = estimate_factors(model, [(x, y)], loss=loss, fisher=fisher, kind="patch")
    assert list(factors) == ["0", "2", "4"]
    for name, layer in factors.items():
        assert_close(torch.kron(layer.G, layer.A), weight_fisher(model, name, x, y, loss, fisher))


@pytest.mark.parametrize("bias", [True, False])
def test_a_deep_linear_net_under_mse_has_the_exact_block_for_any_number_of_examples(bias):
    model = mlp(5, 4, 3, 4, bias=bias, activation=None)
    x, y = torch.randn(17, 5, dtype=torch.float64), labels("mse", 17)
    factors = estimate_factors(model, [x], loss="mse", fisher="exact", kind="patch")
    for name, layer in factors.items():
        assert_close(torch.kron(layer.G, layer.A), weight_fisher(model, name, x, y, "mse", "exact"))


class MeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def test_reduce_is_exact_for_linears_before_mean_pooling_and_expand_is_not():
    model = nn.Sequential(*mlp(5, 4, 3, activation=None), MeanPool(), nn.Linear(3, 4).double())
    x, y = torch.randn(6, 7, 5, dtype=torch.float64), labels("mse", 6)
    factors = {
        sharing: estimate_factors(
            model, [x], loss="mse", fisher="exact", kind="patch", weight_sharing=sharing
        )
        for sharing in ("expand", "reduce")
    }
    for name in ("0", "1", "3"):
        exact = weight_fisher(model, name, x, y, "mse", "exact")
        reduced, expanded = (
            torch.kron(factors[key][name].G, factors[key][name].A) for key in ("reduce", "expand")
        )
        assert_close(reduced, exact)
        if name == "3":
            assert_close(expanded, exact)
        else:
            assert torch.linalg.norm(expanded - exact) > 0.1 * torch.linalg.norm(exact)


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_a_linear_takes_any_leading_shape(kind):
    x, y = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.tensor([0, 1])
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Flatten(), nn.Linear(72, 3)).double()
    rows = estimate_factors(net, [(x, y)], fisher="exact", kind=kind)["0"]
    # The same function with a 1×1 convolution, whose factors are tested above.
    conv = nn.Conv2d(5, 6, 1).double()
    conv.load_state_dict({"weight": net[0].weight[:, :, None, None], "bias": net[0].bias})
    flat = nn.Linear(72, 3).double()
    flat.load_state_dict({"weight": net[3].weight.reshape(3, 12, 6).mT.reshape(3, 72), "bias": net[3].bias})
    same = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), flat)
    other = estimate_factors(same, [(x.movedim(3, 1), y)], fisher="exact", kind=kind)["0"]
    assert_close(rows.A, other.A)
    assert_close(rows.G, other.G)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_and_depthwise_blocks_are_exact_where_there_is_one_example_and_one_position(groups, fisher):
    conv = nn.Conv2d(4, 8, (3, 2), groups=groups).double()
    model = nn.Sequential(conv, nn.Flatten(), nn.Tanh(), nn.Linear(8, 3).double())
    x, y = torch.randn(1, 4, 3, 2, dtype=torch.float64), torch.tensor([1])
    layer = estimate_factors(model, [(x, y)], fisher=fisher, kind="patch")["0"]
    exact = weight_fisher(model, "0", x, y, "cross_entropy", fisher)
    size = exact.shape[0] // groups
    for g in range(groups):
        block = exact[g * size : (g + 1) * size, g * size : (g + 1) * size]
        assert_close(torch.kron(layer.G[g], layer.A[g]), block)


@pytest.mark.parametrize("weight_sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["channel", "patch"])
@pytest.mark.parametrize("fisher", FISHERS)
def test_splitting_into_batches_changes_nothing(fisher, kind, weight_sharing):
    model, x, y = convnet(), images(9), labels("cross_entropy", 9)
    settings = {"fisher": fisher, "kind": kind, "weight_sharing": weight_sharing, "samples": 2}
    whole = estimate_factors(model, [(x, y)], **settings)
    for sizes in ([4, 5], [1] * 9, [0, 9]):
        assert_same(
            whole, estimate_factors(model, list(zip(x.split(sizes), y.split(sizes), strict=True)), **settings)
        )


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_examples_changes_nothing(loss, fisher):
    model, x, y = convnet(), images(8), labels(loss, 8)
    order = torch.randperm(8)
    assert_same(
        estimate_factors(model, [(x, y)], loss=loss, fisher=fisher),
        estimate_factors(model, [(x[order], y[order])], loss=loss, fisher=fisher),
    )


def test_max_examples_takes_exactly_that_many():
    model, x, y = convnet(), images(9), labels("cross_entropy", 9)
    drawn = []

    def loader():
        for index in range(3):
            drawn.append(index)
            yield x[3 * index : 3 * index + 3], y[3 * index : 3 * index + 3]

    for wanted, batches in ((1, 1), (3, 1), (5, 2), (6, 2), (9, 3), (100, 3)):
        drawn.clear()
        seen = min(wanted, 9)
        factors = estimate_factors(model, loader(), fisher="empirical", max_examples=wanted)
        assert factors.settings.count == seen
        assert all(layer.count == seen for layer in factors.values())
        assert len(drawn) == batches
        assert_same(factors, estimate_factors(model, [(x[:seen], y[:seen])], fisher="empirical"))


def test_batches_of_images_of_different_sizes_are_weighted_by_their_positions():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    small, large = images(2, 5, 5), images(3, 8, 6)
    factors = estimate_factors(net, [small, large], fisher="exact", kind="patch")
    patches = torch.cat([F.unfold(x, 3).movedim(1, 2).reshape(-1, 27) for x in (small, large)])
    patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    assert_close(factors["0"].A, patches.mT @ patches / (2 * 9 + 3 * 24))
    assert factors.settings.example_shape == (3, 5, 5)
    parts = [estimate_factors(net, [x], fisher="exact")["0"].G for x in (small, large)]
    assert_close(factors["0"].G, (2 * parts[0] + 3 * parts[1]) / 5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("samples", "runs"), [(1, 200), (10, 60), (100, 12)])
def test_drawn_factors_are_unbiased(loss, samples, runs):
    model, x = mlp(2, 2, 3), torch.randn(3, 2, dtype=torch.float64)
    exact = estimate_factors(model, [x], loss=loss, fisher="exact")
    drawn = [estimate_factors(model, [x], loss=loss, samples=samples, seed=seed) for seed in range(runs)]
    for name in exact:
        G = torch.stack([factors[name].G for factors in drawn]).flatten(1)
        # The deviation of a run and of the mean of all, each pooled over the entries.
        spread = (G - exact[name].G.flatten()).square().mean().sqrt()
        bias = (G.mean(dim=0) - exact[name].G.flatten()).square().mean().sqrt()
        assert bias < 2.5 * spread / runs**0.5
        assert spread < 2.5 * exact[name].G.square().mean().sqrt() / samples**0.5
        assert_close(drawn[0][name].A, exact[name].A)


def test_the_same_seed_gives_the_same_factors_and_another_one_others():
    model, x = convnet(), images(5)
    first, again, other = (estimate_factors(model, [x], seed=seed) for seed in (3, 3, 4))
    for name in first:
        assert torch.equal(first[name].A, again[name].A) and torch.equal(first[name].G, again[name].G)
        assert not torch.allclose(first[name].G, other[name].G, rtol=1e-3)


def test_in_place_activations_and_shortcuts_are_followed():
    x, y = images(4, 8, 8), labels("cross_entropy", 4)
    model = resnet().eval()
    factors = estimate_factors(model, [(x, y)], fisher="empirical", kind="patch")
    assert not factors.skipped
    for name, layer in factors.items():
        module = model.get_submodule(name)
        kept: dict[str, Tensor] = {}

        def shift(module, args, output, kept=kept):
            kept["shift"] = torch.zeros_like(output, requires_grad=True)
            return output + kept["shift"]

        handle = module.register_forward_hook(shift)
        F.cross_entropy(model(x), y, reduction="sum").backward()
        handle.remove()
        g = kept["shift"].grad.movedim(1, -1).reshape(-1, layer.G.shape[0])
        assert_close(layer.G, g.mT @ g / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_gives_float32_factors_near_the_exact_ones(dtype):
    model, x, y = convnet().to(dtype), images(8).to(dtype), labels("cross_entropy", 8)
    factors = estimate_factors(model, [(x, y)], fisher="empirical")
    exact = estimate_factors(model.double(), [(x.double(), y)], fisher="empirical")
    for name, layer in factors.items():
        for ours, expected in ((layer.A, exact[name].A), (layer.G, exact[name].G)):
            assert ours.dtype == torch.float32
            assert torch.linalg.norm(ours - expected) <= 30 * torch.finfo(dtype).eps * torch.linalg.norm(
                expected
            )


def test_settings_specs_and_counts_say_what_was_done():
    factors = estimate_factors(convnet(), [images(4), images(3)], samples=2, seed=9, layers=["0", "8"])
    assert factors.settings == curvature.FactorSettings(
        "cross_entropy", "mc", 2, "channel", "expand", 9, 7, (3, 6, 7), "float64"
    )
    assert list(factors) == ["0", "8"] == list(factors.specs)
    assert factors.specs["0"].kernel_size == (3, 3) and factors["8"].count == 7
    assert factors.skipped == {"3": "not in `layers`", "5": "not in `layers`"}
    assert "2 layers, 2 skipped" in repr(factors)


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_saving_and_loading_gives_the_same_bits(tmp_path, kind):
    factors = estimate_factors(convnet(), [images(4)], kind=kind, layers=["0", "3", "8"])
    factors.save(tmp_path / "factors")
    loaded = Factors.load(tmp_path / "factors")
    assert (loaded.settings, loaded.specs, loaded.skipped) == (
        factors.settings,
        factors.specs,
        factors.skipped,
    )
    assert list(loaded) == list(factors)
    for name, layer in factors.items():
        assert loaded[name].count == layer.count
        for ours, expected in ((loaded[name].A, layer.A), (loaded[name].G, layer.G)):
            assert ours.dtype == expected.dtype and torch.equal(ours, expected)


@pytest.mark.parametrize("damage", ["truncated", "corrupted", "missing", "incomplete", "misshapen"])
def test_a_damaged_file_is_an_artifact_error_that_names_it(tmp_path, damage):
    path = tmp_path / "factors.safetensors"
    factors = estimate_factors(convnet(), [images(2)])
    factors.save(path)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "corrupted":
        path.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    elif damage == "missing":
        path.unlink()
    elif damage == "incomplete":
        write_tensors(path, {}, {"settings": {}, "layers": [], "skipped": {}}, format="eigendamage-factors")
    else:
        factors.layers["0"] = factors.layers["3"]
        factors.save(path)
    with pytest.raises(ArtifactError, match=r"factors\.safetensors"):
        Factors.load(path)
