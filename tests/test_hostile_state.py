"""Files of factors, rounds and trainings that are damaged or hostile: each a clear error, nothing changed."""

import contextlib
import copy
import random
import re
import resource

import pytest
import torch
from mutations import damage, damaged_bytes
from random_factors import random_factors
from small_nets import same, snapshot
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import ArtifactError
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.training import Checkpoint, train

FORMATS = {name: f"eigendamage-{name}" for name in ("factors", "pruning", "training")}
BATCHES = [(torch.randn(6, 2, 4, 4), torch.arange(6) % 3)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 3)
    ).eval()


def load(kind, path, model):
    """Goes on with a file."""
    if kind == "factors":
        return ed.Factors.load(path)
    if kind == "training":
        return train(model, BATCHES, epochs=2, lr=0.1, checkpoint=Checkpoint(path), progress=False)
    return ed.Pruner(model, BATCHES, target={"params": 0.6}, steps=2, progress=False, checkpoint=path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each kind, as content."""
    folder = tmp_path_factory.mktemp("files")
    model = net()
    factors = ed.estimate_factors(model, BATCHES, progress=False)
    for measure in (factors.second_moments, factors.diagonal):
        measure(model, BATCHES, progress=False)
    factors.save(folder / "factors")
    load("training", folder / "training", net())
    rounds = iter(load("pruning", folder / "pruning", net()))
    next(rounds), next(rounds)  # it is written before a round
    return {kind: (folder / kind).read_bytes() for kind in FORMATS}


@pytest.fixture
def rewritten(files, tmp_path, monkeypatch):
    """Writes a file with another manifest, or other tensors, checksum included."""
    monkeypatch.setattr("os.fsync", lambda file: None)

    def write(kind, change):
        path = tmp_path / kind
        path.write_bytes(files[kind])
        tensors, manifest = read_tensors(path, format=FORMATS[kind])
        change(manifest, tensors)
        write_tensors(path, tensors, manifest, format=FORMATS[kind])
        return path

    return write


def at(*keys, **values):
    """Changes an object inside of the manifest."""

    def change(manifest, tensors):
        for key in keys:
            manifest = manifest[key]
        manifest.update(values)

    return change


def tensor(name, value):
    return lambda manifest, tensors: tensors.update({name: value})


def layer(**values):
    return at("layers", 0, **values)


def deep(levels):
    return [deep(levels - 1)] if levels else 0


HOSTILE = {
    "factors": [
        (layer(groups=0), "sizes must be at least 1, got (2, 4, 0"),
        (layer(groups=3), "groups must divide (2, 4), got 3"),
        (layer(groups=-1), "sizes must be at least 1"),
        (layer(in_channels=10**9), "'0.A' of torch.float32 and shape (2, 2) for (1000000000, 1000000000)"),
        (layer(in_channels=2**63), "in_channels must be int, got 9223372036854775808"),
        (layer(out_channels=True), "out_channels must be int, got True"),
        (layer(out_channels=4.0), "out_channels must be int, got 4.0"),
        (layer(kernel_size=[3]), "kernel_size must be tuple[int, int], got (3,)"),
        (layer(kernel_size=deep(500)), "kernel_size must be tuple[int, int], got ([[[[["),
        (layer(stride=[0, 1]), "sizes must be at least 1"),
        (layer(padding="twice"), "padding must be one of ('same', 'valid'), got 'twice'"),
        (layer(padding=[-1, 0]), "padding must be at least 0"),
        (layer(padding_mode="import os"), "padding_mode must be one of"),
        (layer(kind="LSTM"), "kind must be one of"),
        (layer(name=7), "name must be str, got 7"),
        (layer(name="other"), "other.A"),
        (layer(code="import os"), "LayerSpec must have the fields name, kind"),
        (lambda m, t: m["layers"][0].pop("name"), "LayerSpec must be complete"),
        (at(layers={}), "'0.A' of torch.float32 and shape (2, 2) for nothing"),
        (at(layers=[7]), "LayerSpec must have the fields"),
        (at(skipped=[1]), "'list' object has no attribute 'items'"),
        (at(settings=[]), "FactorSettings must have the fields"),
        (at("settings", kind="all"), "kind must be one of ('channel', 'patch'), got 'all'"),
        (at("settings", fisher="no"), "fisher must be one of"),
        (at("settings", weight_sharing="no"), "weight_sharing must be one of"),
        (at("settings", autocast="load"), "(None, 'bfloat16', 'float16'), got 'load'"),
        (at("settings", count=0), "count and samples must be at least 1"),
        (at("settings", diagonal_count=-1), "counts must be at least 0"),
        (at("settings", gradient_count=2), "'0.gradient'"),
        (at("settings", moments_count=0), "for nothing"),
        (at("settings", example_dtype="nn.Linear"), "example_dtype must be a dtype, got 'nn.Linear'"),
        (at("settings", example_dtype="load"), "example_dtype must be a dtype, got 'load'"),
        (at("settings", example_shape=[2**20, 2**20]), "must have at most 268,435,456 numbers"),
        (at("settings", example_shape=[2, -4]), "example_shape must be at least 1"),
        (at(example=[7]), "Stated must have the fields kind, keys, values"),
        (at(example={"kind": "code", "keys": [], "values": {}}), "kind must be one of"),
        (at(example={"kind": "Tensor", "keys": ["0"], "values": {}}), "KeyError('example:0')"),
        (at(example={"kind": "Tensor", "keys": ["0"], "values": {"0": 1}}), "must be a tensor, got 1"),
        (at(example={"kind": "dict", "keys": ["0"], "values": {"0": []}}), "and of plain values"),
        (at("settings", seed="0"), "seed must be int, got '0'"),
        (tensor("0.A", torch.zeros(2, 2, dtype=torch.long)), "'0.A' of torch.int64 and shape (2, 2)"),
        (tensor("9.A", torch.zeros(2, 2)), "'9.A' of torch.float32 and shape (2, 2) for nothing"),
        (lambda m, t: t.pop("0.G.vectors"), "0.G.vectors"),
    ],
    "pruning": [
        (lambda m, t: m.pop("layers"), "what state_dict gives, got none of ['layers']"),
        (at(settings=[]), "settings must be dict[str, typing.Any], got ()"),
        (at(weights={"a": 1}), "weights must be dict[str, str], got {'a': 1}"),
        (at(weights={}), "must be of the same original model, got 0.weight None in place of"),
        (at("settings", steps="9" * 10**6), "same settings, got steps " + "9" * 60 + " in place of 2"),
        (at(costs={}), "Costs must be complete, got none of ['flops', 'params']"),
        (at("costs", params=0), "params and flops must be at least 1, got (0, "),
        (at("costs", flops=1.5), "costs must be dict[str, int], got"),
        (at(history=7), "got something else (history must be tuple"),
        (at(history=[7]), "got something else (history must be tuple"),
        (at(history=[{}]), "Round must be complete, got none of ['flops', 'params'"),
        (lambda m, t: m["history"].extend(m["history"] * 9), "must have up to 2 rounds in their order"),
        (at("history", 0, round=2), "must have up to 2 rounds in their order"),
        (at("history", 0, flops=-5), "params and flops must be at least 1"),
        (at("history", 0, target=None), "target must be dict[str, float], got None"),
        (at("history", 0, code=1), "Round must have the fields round, target"),
        (at(training=[7]), "training must be tuple[str, ...], got (7,)"),
        (at(frozen="all"), "frozen must be tuple[str, ...], got 'all'"),
        (at(frozen=deep(500)), "frozen must be tuple[str, ...], got ([[[[["),
        (at(code=1), "Saved must have the fields"),
        (at(layers=[]), "layers must be dict[str, typing.Any], got ()"),
        (at(layers={"0": 7}), "layer '0' in the manifest must be an object, got 7"),
        (at("layers", "3", input_rank=10**15), "input_rank of layer '3' must lie in"),
        (tensor("0.weight", torch.zeros(1)), "0.weight of shape (1,)"),
    ],
    "training": [
        (at(settings=7), "must hold a training, got something else"),
        (lambda m, t: m.pop("settings"), "must hold a training, got something else ('settings')"),
        (at("settings", lr=[0] * 10**6), "got lr [0, 0, 0"),
        (at(history=None), "must hold a training, got something else"),
        (at(history=[[]]), "Epoch must have the fields"),
        (at("history", 0, loss="0"), "loss must be float, got '0'"),
        (at("history", 0, loss=10**400), "loss must be float, got 1000"),
        (at("history", 0, epoch=1.0), "epoch must be int, got 1.0"),
        (at("history", 0, epoch=2), "must hold up to 2 epochs in their order"),
        (lambda m, t: m["history"].extend(m["history"] * 9), "must hold up to 2 epochs in their order"),
        (at("history", 0, code=1), "Epoch must have the fields epoch, lr, loss, accuracy"),
        (lambda m, t: m["history"][0].pop("lr"), "Epoch must be complete, got none of ['lr']"),
        (tensor("model.0.weight", torch.zeros(1)), "torch.float32 of shape (1,) in place of"),
        (tensor("model.more", torch.zeros(1)), "of shape (1,) in place of nothing as 'model.more'"),
        (tensor("model.0.bias", torch.zeros(4, dtype=torch.long)), "torch.int64 of shape (4,) in place of"),
        (lambda m, t: t.pop("model.4.bias"), "nothing in place of torch.float32 of shape (3,)"),
        (tensor("momentum.0", torch.zeros(1)), "in place of torch.float32 of shape (4, 2, 3, 3)"),
        (tensor("momentum.99", torch.zeros(1)), "in place of nothing as 'momentum.99'"),
        (tensor("random.0", torch.zeros(3)), "torch.float32 of shape (3,) in place of torch.uint8"),
        (lambda m, t: t["random.0"].fill_(255), "must be of the same model"),
        (lambda m, t: t.pop("random.0"), "nothing in place of torch.uint8"),
    ],
}  # fmt: skip
CASES = {f"{kind} {i}": (kind, *case) for kind, cases in HOSTILE.items() for i, case in enumerate(cases)}


@pytest.mark.parametrize(("kind", "change", "message"), CASES.values(), ids=CASES)
def test_what_no_file_may_say(rewritten, kind, change, message):
    path, model = rewritten(kind, change), net()
    before = snapshot(model)
    error = ValueError if "same" in message or "got lr" in message else ArtifactError
    with pytest.raises(error, match=f"^(load|train|Pruner): .*{re.escape(message)}") as caught:
        load(kind, path, model)
    assert same(before, snapshot(model)) and len(str(caught.value)) < 1500


def test_a_thousand_damaged_files_take_little_memory(files, rewritten, tmp_path):
    rng, model = random.Random(0), net()
    before, most = snapshot(model), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = 0
    for kind, content in files.items():
        for damaged in damaged_bytes(rng, content, 150):
            (tmp_path / "file").write_bytes(damaged)
            with pytest.raises(ArtifactError, match=r"^load: "):
                load(kind, tmp_path / "file", model)
        assert same(before, snapshot(model))
        for _ in range(200):
            path = rewritten(kind, lambda manifest, tensors: damage(rng, manifest))
            target = copy.deepcopy(model)
            with contextlib.suppress(ArtifactError if kind == "factors" else ValueError):
                load(kind, path, target)
                loaded += 1
    assert 0 < loaded < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 200_000  # kB


def test_what_is_read_is_in_the_order_in_which_it_was_made(files, tmp_path):
    for kind in ("training", "pruning"):
        (tmp_path / kind).write_bytes(files[kind])
    history = load("training", tmp_path / "training", net())
    assert [list(epoch) for epoch in history] == 2 * [["epoch", "lr", "loss", "accuracy"]]
    (first,) = load("pruning", tmp_path / "pruning", net()).history
    assert list(first) == ["round", "target", "params", "flops", "predicted_loss"]


def test_factors_that_a_file_describes_are_those_that_were_saved(files, tmp_path):
    (tmp_path / "factors").write_bytes(files["factors"])
    loaded = ed.Factors.load(tmp_path / "factors")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == files["factors"]
    random_factors(net(), (2, 4, 4)).save(tmp_path / "other")
    assert ed.Factors.load(tmp_path / "other").specs == loaded.specs
