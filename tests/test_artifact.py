"""Saving and loading: bit for bit, and every damaged or hostile file refused by name."""

import copy
import itertools
import json
import re

import pytest
import safetensors
import torch
from coupled_nets import NETS, coupled_net
from random_factors import random_factors
from small_nets import EXAMPLE, Net, same, snapshot
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import ArtifactError
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.curvature.layers import is_factored
from eigendamage_ext.pruning.coupling import channel_groups, cuts
from eigendamage_ext.pruning.surgery import slice_channels


def read(path):
    return read_tensors(path, format="eigendamage-model", version=2)


def pruned(dtype=torch.float32):
    torch.manual_seed(1)
    net = Net().to(dtype).eval()
    plan = ed.plan(net, random_factors(net, EXAMPLE, dtype=dtype), target={"flops": 0.5})
    plan.set("hidden", input_rank=8, output_rank=9)
    return plan.apply(net)


@pytest.fixture
def result():
    return pruned()


@pytest.fixture
def path(result, tmp_path):
    path = tmp_path / "net.safetensors"
    result.save(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    result = pruned() if dtype == torch.bfloat16 else pruned(dtype)
    result.model.to(dtype)
    result.save(tmp_path / "net")
    into = Net().to(dtype).eval()
    before = snapshot(into)
    loaded = ed.load(tmp_path / "net", into=into)
    assert same(before, snapshot(into))
    assert type(loaded) is Net and not loaded.training and not loaded.hidden[0].training
    x = torch.randn(3, *EXAMPLE, dtype=dtype)
    assert torch.equal(loaded(x), result.model(x))
    assert loaded.state_dict().keys() == result.model.state_dict().keys()
    loaded.train()(x).sum().backward()


def test_a_model_alone_and_one_that_was_never_pruned(tmp_path, result):
    x = torch.randn(3, *EXAMPLE)
    for model in (result.model, Net().eval(), nn.Linear(3, 2)):
        ed.save(model, tmp_path / "net")
        fresh = nn.Linear(3, 2) if isinstance(model, nn.Linear) else Net().eval()
        loaded = ed.load(tmp_path / "net", into=fresh)
        x = torch.randn(3, 3) if isinstance(model, nn.Linear) else torch.randn(3, *EXAMPLE)
        assert torch.equal(loaded(x), model(x))


def test_the_manifest_tells_where_the_model_came_from(path, result):
    _, manifest = read(path)
    assert set(manifest["layers"]) == {name for name, row in result.plan.items() if row.form != "dense"}
    provenance = manifest["provenance"]
    assert provenance["torch"] == torch.__version__ and provenance["eigendamage_ext"] == ed.__version__
    assert provenance["plan"]["settings"]["target"] == {"flops": 0.5}
    assert provenance["plan"]["settings"]["factors"]["fisher"] == "mc"
    assert provenance["plan"]["flops"] == [result.flops_before, result.flops_after]
    assert provenance["plan"]["layers"]["head"]["note"] == result.plan["head"].note


def cut_thirds(net, x):
    """A third of the units of every group gone."""
    groups = channel_groups(net, x).groups
    return slice_channels(net, cuts([(g, torch.arange(g.units // 3 or 1)) for g in groups]))


@pytest.mark.parametrize("name", NETS)
def test_networks_without_some_filters(tmp_path, name):
    net, x = coupled_net(name)
    smaller = cut_thirds(net, x)
    ed.save(smaller, tmp_path / "net")
    into = coupled_net(name)[0]
    into.requires_grad_(False)
    before = snapshot(into)
    loaded = ed.load(tmp_path / "net", into=into)
    assert same(before, snapshot(into))
    assert torch.equal(loaded(x), smaller(x))
    assert [m.extra_repr() for m in loaded.modules()] == [m.extra_repr() for m in smaller.modules()]
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(ed.load(tmp_path / "net", into=loaded)(x), smaller(x))


@pytest.mark.parametrize("name", ["residual", "mobile", "dense", "flattened"])
def test_networks_without_some_filters_and_with_factored_layers(tmp_path, name):
    net, x = coupled_net(name)
    smaller = cut_thirds(net, x)
    factors = random_factors(smaller, tuple(x.shape[1:]), dtype=torch.float64)
    plan = ed.plan(smaller, factors, target={"params": 1}, example_inputs=x)
    forms = itertools.cycle(("both", "input", "output"))
    for layer, row in plan.items():
        if row.spec.groups == 1 and row.spec.stride == (1, 1):
            plan.set(layer, form=next(forms), input_rank=None, output_rank=None)
    result = plan.apply(smaller)
    assert sum(is_factored(module) for module in result.model.modules()) >= 3
    result.save(tmp_path / "net")
    loaded = ed.load(tmp_path / "net", into=coupled_net(name)[0])
    assert torch.equal(loaded(x), result.model(x))


def test_a_narrower_layer_keeps_what_is_not_in_the_file(tmp_path):
    net, x = coupled_net("residual")
    ed.save(cut_thirds(net, x), tmp_path / "net")
    into = coupled_net("residual")[0].to(memory_format=torch.channels_last).train()
    into.layer1[0].bn1.eps, into.layer1[0].bn1.momentum = 1e-2, None
    seen = []
    into.linear.register_forward_hook(lambda *_: seen.append(1))
    loaded = ed.load(tmp_path / "net", into=into)
    norm = loaded.layer1[0].bn1
    assert (norm.eps, norm.momentum, norm.num_features) == (1e-2, None, 3)
    assert loaded.training and not loaded.layer1[0].conv1.weight.is_contiguous()
    loaded.eval()(x)
    assert not seen  # the head is a new module, narrower than the old one
    loaded.linear.register_forward_hook(lambda *_: seen.append(1))
    ed.load(tmp_path / "net", into=loaded)(x)
    assert seen == [1]  # as narrow already, it is left alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"bn1.running_mean": torch.zeros(2)}), "bn1.running_mean of shape (2,) for (3,)"),
        (lambda t: t.update({"bn1.weight": torch.zeros(0)}), "bn1.weight of shape (0,) for (4,)"),
        (lambda t: t.update({"bn1.weight": torch.zeros(())}), "bn1.weight of shape () for (4,)"),
        (
            lambda t: t.update({"conv1.weight": torch.zeros(3, 4, 3, 3)}),
            "conv1.weight of shape (3, 4, 3, 3) for (4, 3, 3, 3)",
        ),
        (
            lambda t: t.update({"conv1.weight": torch.zeros(3, 3, 5, 5)}),
            "conv1.weight of shape (3, 3, 5, 5) for (3, 3, 3, 3)",
        ),
        (lambda t: t.update({"conv1.weight": torch.zeros(3)}), "conv1.weight of shape (3,) for (3, 3, 3, 3)"),
        (lambda t: t.update({"linear.bias": torch.zeros(4)}), "linear.bias of shape (4,) for (5,)"),
        (
            lambda t: t.update({"linear.weight": torch.zeros(2**20, 6)}),
            "linear.weight of shape (1048576, 6) for (5, 8)",
        ),
        (lambda t: t.pop("bn1.weight"), "bn1.weight only in `into`"),
    ],
)
def test_shapes_that_do_not_fit_together(tmp_path, change, message):
    net, x = coupled_net("residual")
    ed.save(cut_thirds(net, x), tmp_path / "net")
    tensors, manifest = read(tmp_path / "net")
    change(tensors)
    write_tensors(tmp_path / "net", tensors, manifest, format="eigendamage-model", version=2)
    into = coupled_net("residual")[0]
    before = snapshot(into)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        ed.load(tmp_path / "net", into=into)
    assert same(before, snapshot(into))


def narrow(tensors, *names):
    """Takes the last channel of tensors away."""
    tensors.update({name: tensors[name][:-1].clone() for name in names})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"], r"in layer 'bn1'"),
        (["layer1.0.conv1.weight"], r"in layer 'layer1.0.bn1'"),
        (["linear.weight", "linear.bias"], None),
    ],
)
def test_layers_that_do_not_fit_each_other_are_named(tmp_path, names, message):
    net, x = coupled_net("residual")
    result = ed.plan(net, random_factors(net, x.shape[1:], dtype=x.dtype), target={"params": 1}).apply(net)
    result.save(tmp_path / "net")
    tensors, manifest = read(tmp_path / "net")
    narrow(tensors, *names)
    write_tensors(tmp_path / "net", tensors, manifest, format="eigendamage-model", version=2)
    into = coupled_net("residual")[0]
    into.conv1.register_forward_hook(lambda *_: pytest.fail("its hooks ran"))
    before = snapshot(into)
    if message:
        with pytest.raises(
            ArtifactError, match=f"^load: layers in the file must fit each other, got .*{message}"
        ):
            ed.load(tmp_path / "net", into=into)
    else:
        assert ed.load(tmp_path / "net", into=into).linear.out_features == 4
    assert same(before, snapshot(into))


@pytest.mark.parametrize("stated", [7, {}, {"example": []}, {"example": {"": [[3, 8], "float32"]}}])
def test_without_a_likely_example_nothing_is_refused(tmp_path, stated):
    net, _ = coupled_net("residual")
    ed.save(net, tmp_path / "net")
    tensors, manifest = read(tmp_path / "net")
    narrow(tensors, "layer1.0.conv1.weight")
    manifest["provenance"]["plan"] = stated
    write_tensors(tmp_path / "net", tensors, manifest, format="eigendamage-model", version=2)
    assert ed.load(tmp_path / "net", into=net).layer1[0].conv1.out_channels == 3


def test_tied_tensors_are_one_again_and_never_two(tmp_path):
    def net():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    ed.save(model, tmp_path / "net")
    loaded = ed.load(tmp_path / "net", into=net())
    assert loaded[1].weight is loaded[0].weight
    ed.save(nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)), tmp_path / "net")
    with pytest.raises(ArtifactError, match=r"^load: '1.weight' and '0.weight' of the file must be equal"):
        ed.load(tmp_path / "net", into=net())


def test_a_layer_with_a_forward_of_its_own_is_never_replaced(tmp_path):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    ed.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "net")
    with pytest.raises(ArtifactError, match=r"0.weight of shape \(2, 3\) for \(4, 3\)"):
        ed.load(tmp_path / "net", into=nn.Sequential(Scaled(3, 4)))


def test_depthwise_layers_shrink_by_whole_inputs(tmp_path):
    conv = nn.Conv2d(4, 8, 3, groups=4)
    ed.save(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), tmp_path / "net")
    loaded = ed.load(tmp_path / "net", into=nn.Sequential(conv))
    assert (loaded[0].groups, loaded[0].in_channels) == (3, 3)
    ed.save(nn.Sequential(nn.Conv2d(1, 7, 3)), tmp_path / "net")
    with pytest.raises(ArtifactError, match=r"0.weight of shape \(7, 1, 3, 3\) for \(8, 1, 3, 3\)"):
        ed.load(tmp_path / "net", into=nn.Sequential(conv))


def edit_net(change):
    net = Net()
    change(net)
    return net


@pytest.mark.parametrize(
    ("into", "message"),
    [
        (
            lambda: edit_net(lambda n: setattr(n, "hidden", nn.Linear(32, 20))),
            r"hidden.output_rotation.weight of shape \(24, 9\) for \(20, 9\)",
        ),
        (lambda: edit_net(lambda n: delattr(n, "hidden")), "'hidden', got no such layer"),
        (lambda: edit_net(lambda n: setattr(n, "hidden", nn.Identity())), "'hidden', got a Identity"),
        (lambda: edit_net(lambda n: setattr(n, "more", nn.Linear(2, 2))), "more.weight only in `into`"),
        (lambda: edit_net(lambda n: delattr(n, "up")), "up.weight only in the file"),
        (
            lambda: edit_net(lambda n: setattr(n, "head", nn.Linear(24, 4))),
            r"head.weight of shape \(5, 24\) for \(4, 24\)",
        ),
        (lambda: Net().double(), "of dtype torch.float32 for torch.float64"),
        (lambda: nn.Linear(3, 3), "got no such layer"),
    ],
)
def test_another_network_is_refused_by_layer_and_left_as_it_was(path, into, message):
    into = into()
    before = snapshot(into)
    with pytest.raises(ArtifactError, match=message):
        ed.load(path, into=into)
    assert same(before, snapshot(into))


def rewrite(path, change):
    """The same file with a manifest somebody tampered with, checksum included."""
    tensors, manifest = read(path)
    manifest = copy.deepcopy(manifest)
    change(manifest)
    write_tensors(path, tensors, manifest, format="eigendamage-model", version=2)


def layer(manifest):
    return manifest["layers"]["blocks.0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("layers"), "layers in the manifest must be an object, got None"),
        (lambda m: m.update(layers=[]), "must be an object"),
        (
            lambda m: m["layers"].update({"hidden": 7}),
            "layer 'hidden' in the manifest must be an object, got 7",
        ),
        (lambda m: m["layers"].update({"nowhere": {}}), "'nowhere', got no such layer"),
        (lambda m: m["layers"].update({"": layer(m)}), "'', got no such layer"),
        (lambda m: m["layers"].update({"blocks.0.core": layer(m)}), "'blocks.0.core', got no such layer"),
        (lambda m: m["layers"].update({"stem.1": layer(m)}), "'stem.1', got a BatchNorm2d"),
        (lambda m: m["layers"].update({"up": layer(m)}), "'up', got a ConvTranspose2d"),
        (
            lambda m: layer(m).update(form="tucker"),
            "form of layer 'blocks.0' must be input or output or both or depthwise, got 'tucker'",
        ),
        (lambda m: layer(m).update(form=["both"]), "must be input or output or both"),
        (
            lambda m: layer(m).update(form="dense"),
            "must be input or output or both or depthwise, got 'dense'",
        ),
        (lambda m: layer(m).pop("input_rank"), "input_rank of layer 'blocks.0' .* got None"),
        (lambda m: layer(m).update(input_rank=0), "must lie in 1…16 .* got 0"),
        (lambda m: layer(m).update(input_rank=-3), "got -3"),
        (lambda m: layer(m).update(output_rank=10**15), "got 1000000000000000"),
        (lambda m: layer(m).update(output_rank=4.0), "got 4.0"),
        (lambda m: layer(m).update(output_rank=True), "got True"),
        (lambda m: layer(m).update(output_rank="4"), "got '4'"),
        (
            lambda m: layer(m).update(form="input", output_rank=3),
            "output_rank of layer 'blocks.0' must lie in",
        ),
        (lambda m: layer(m).update(input_rank=layer(m)["input_rank"] + 1), r"blocks.0.core.weight of shape"),
        (lambda m: m["layers"].pop("blocks.0"), "blocks.0.core.weight only in the file"),
    ],
)
def test_hostile_manifests(path, change, message):
    rewrite(path, change)
    with pytest.raises(ArtifactError, match=message):
        ed.load(path, into=Net())


def test_a_manifest_nested_beyond_all_bounds(path, monkeypatch):
    tensors, _ = read(path)
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda x, **words: dumps(x, **words) if x else "[" * 200_000)
    write_tensors(path, tensors, {}, format="eigendamage-model", version=2)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="must hold a JSON object as its manifest"):
        ed.load(path, into=Net())


def test_damaged_files(path, tmp_path):
    content = path.read_bytes()
    for name, damaged in {
        "empty": b"",
        "truncated": content[:-1],
        "head only": content[:40],
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "text": b"not a model",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=name):
            ed.load(tmp_path / name, into=Net())
    with pytest.raises(ArtifactError, match="does not exist"):
        ed.load(tmp_path / "missing", into=Net())


def test_factors_are_not_a_model(tmp_path):
    random_factors(Net(), EXAMPLE).save(tmp_path / "factors")
    with pytest.raises(
        ArtifactError, match="must have the format 'eigendamage-model', got format 'eigendamage-factors'"
    ):
        ed.load(tmp_path / "factors", into=Net())


def test_saving_needs_tensors_and_keeps_the_old_file_if_it_fails(path):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    content = path.read_bytes()
    with pytest.raises(TypeError, match="state of model must be tensors, got dict '_extra_state'"):
        ed.save(Stateful(2, 2), path)
    assert path.read_bytes() == content


def test_the_file_is_plain_safetensors(path, result):
    with safetensors.safe_open(str(path), framework="pt") as file:
        assert set(file.keys()) == set(result.model.state_dict())
        assert json.loads(file.metadata()["manifest"])["layers"]
