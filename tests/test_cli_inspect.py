"""`inspect`: what it says of every kind of file, checked against the file's makers; and of hostile ones."""

import json
import math
import pickle
import random

import pytest
import safetensors.torch
import torch
from random_factors import random_factor, random_factors
from small_nets import EXAMPLE, Net
from torch import nn
from traceable_nets import traceable_net

import eigendamage_ext as ed
from eigendamage_ext import cli
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.artifact import FORMAT, VERSION
from eigendamage_ext.cli.inspect.contents import contents
from eigendamage_ext.cli.inspect.page import page, printable
from eigendamage_ext.cli.inspect.spectra import bars, summary

F64 = torch.float64


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def result():
    model = Net()
    plan = ed.plan(model, random_factors(model, EXAMPLE), target={"flops": 0.6})
    return plan.apply(model)


def numel(module):
    return sum(p.numel() for p in module.parameters())


def test_a_pruned_model(result, tmp_path):
    result.save(tmp_path / "net")
    found = contents(tmp_path / "net", check=True)
    assert (found["kind"], found["format_version"], found["checksum_read"]) == ("model", VERSION, True)
    assert found["network"] == {
        "needs_class": False,
        "class": "Net",
        "modules": len(list(result.model.modules())),
    }
    assert found["provenance"]["parent"] == result.parent and found["plan"]["target"] == {"flops": 0.6}
    assert (found["params_before"], found["params"]) == (result.params_before, result.params_after)
    assert (found["flops_before"], found["flops"]) == (result.flops_before, result.flops_after)
    assert found["factors"]["example_shape"] == list(EXAMPLE)
    forms = set()
    for name, row in result.plan.items():
        layer, module = found["layers"][name], result.model.get_submodule(name)
        forms.add(row.form)
        assert layer["form"] == row.form and layer["predicted_loss"] == row.predicted_loss
        assert (layer["params_before"], layer["params"]) == row.params and numel(module) == row.params.after
        assert (layer["flops_before"], layer["flops"]) == row.flops
        if row.form != "dense":
            assert layer["ranks"] == [row.input_rank, row.output_rank] and layer["widths"] == [*row.widths]
    assert len(forms) > 2, forms
    assert found["layers"]["up"]["kind"] == "ConvTranspose2d" and "up" in found["skipped"]


@pytest.mark.parametrize("form", ["input", "output", "both", "depthwise"])
@pytest.mark.parametrize("groups", [1, 2])
def test_ranks_and_widths_come_from_shapes(form, groups, tmp_path):
    if form == "depthwise" and groups > 1:
        return
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups, bias=True))
    method = "eigendamage-depthwise" if form == "depthwise" else "eigendamage"
    plan = ed.plan(
        model, random_factors(model, (4, 5, 5)), target={"flops": 0.9}, method=method, prune_head=True
    )
    ranks = {"input": {"input_rank": 1}, "output": {"output_rank": 3}}.get(
        form, {"input_rank": 2, "output_rank": 2}
    )
    plan.set("0", form=form, **ranks)
    pruned = plan.apply(model).model
    ed.save(pruned, tmp_path / "net")  # without a plan
    found = contents(tmp_path / "net")
    layer, row = found["layers"]["0"], plan["0"]
    assert list(found["layers"]) == ["0"] and "plan" not in found
    assert layer["form"] == form and layer["kernel"] == [3, 3]
    assert layer["ranks"] == [row.input_rank, row.output_rank]
    assert layer["widths"] == ([4, 8] if form == "depthwise" else [4 // groups, 8 // groups])
    assert layer["params"] == numel(pruned) == found["params"]


def test_filters_that_are_gone(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    pytest.importorskip("torch_pruning")
    plan = ed.plan(model, None, target={"flops": 0.6}, method="l1", example_inputs=torch.zeros(1, 3, 6, 6))
    plan.apply(model).save(tmp_path / "net")
    filters = plan["0"].filters
    layers = contents(tmp_path / "net")["layers"]
    assert layers["0"]["form"] == "filters" and filters.after < filters.before
    assert layers["0"]["widths"] == [3, filters.before] and layers["0"]["ranks"] == [3, filters.after]
    assert layers["3"]["widths"] == [filters.before, 4] and layers["3"]["ranks"] == [filters.after, 4]


@pytest.mark.parametrize("name", ["tied", "gated"])
def test_parameters_are_counted_once_and_buffers_not(name, tmp_path):
    model = traceable_net(name)[0]
    ed.save(model, tmp_path / "net")
    assert contents(tmp_path / "net")["params"] == numel(model)


def test_a_model_that_needs_its_class(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.layer(x)) if x.sum() > 0 else x

    with pytest.warns(UserWarning, match="into"):
        ed.save(Own(), tmp_path / "net")
    found = contents(tmp_path / "net")
    assert found["network"]["needs_class"] and "control flow" in found["network"]["reason"]
    assert found["params"] == numel(Own())
    assert "loads with ed.load(path, into=MyNet()) alone, as" in page(found)


def test_files_of_version_1(request):
    for path in (request.config.rootpath / "tests" / "fixtures").glob("v1_[df]*.safetensors"):
        found = contents(path, check=True)
        assert found["format_version"] == 1 and found["network"]["needs_class"] and found["layers"]


def test_a_plan(result, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(result.plan.record()))
    found = contents(tmp_path / "plan.json")
    assert (found["flops_before"], found["flops"]) == (result.plan.flops_before, result.plan.flops_after)
    assert found["plan"]["predicted_loss"] == result.plan.predicted_loss
    assert found["skipped"] == result.plan.skipped and [*found["layers"]] == [*result.plan]
    for name, row in result.plan.items():
        assert found["layers"][name]["ranks"] == [row.input_rank, row.output_rank]
        assert found["layers"][name]["note"] == row.note


def test_factors(tmp_path):
    factors = random_factors(Net(), EXAMPLE)
    factors.save(tmp_path / "factors")
    found = contents(tmp_path / "factors")
    assert found["factors"]["kind"] == "channel" and found["factors"]["count"] == 1
    assert [*found["layers"]] == [*factors] and found["skipped"] == factors.skipped
    for name, layer in found["layers"].items():
        for side in "AG":
            factor = getattr(factors[name], side).double()
            trace = float(factor.diagonal(dim1=-2, dim2=-1).sum())
            assert math.isclose(layer[side]["trace"], trace, rel_tol=1e-4)
    text = page(found)
    assert "2·8" in text and "effective rank" in text and "checksum right" in text


@pytest.mark.parametrize("groups", [1, 3])
def test_the_summary_of_a_spectrum(groups):
    factor = random_factor(groups, 40)
    found = summary(factor)
    λ = torch.linalg.svdvals(factor).reshape(-1).sort(descending=True).values  # symmetric, positive
    p = λ / λ.sum()
    assert (found["size"], found["groups"]) == (40 * groups, groups)
    assert math.isclose(found["trace"], float(λ.sum()), rel_tol=1e-9)
    assert math.isclose(found["effective_rank"], float((p**-p).prod()), rel_tol=1e-6)
    assert math.isclose(found["condition"], float(λ[0] / λ[-1]), rel_tol=1e-6)
    assert len(found["decades"]) == 12 and found["decades"][0] == 0
    assert math.isclose(found["decades"][-1], float((λ[-1] / λ[0]).log10()), rel_tol=1e-6)


def test_spectra_at_the_edges():
    equal = summary(torch.eye(5))
    assert math.isclose(equal["effective_rank"], 5, rel_tol=1e-6) and equal["decades"] == [0] * 5
    rank_one = summary(torch.ones(4, 4))
    assert rank_one["condition"] is None and math.isclose(rank_one["effective_rank"], 1, rel_tol=1e-5)
    assert summary(torch.zeros(3, 3)) | {"decades": 0} == {
        "size": 3,
        "groups": 1,
        "trace": 0,
        "effective_rank": 0,
        "condition": None,
        "decades": 0,
    }
    resolved, rounded = (
        summary(torch.diag(torch.tensor([1.0, 1e-9], dtype=d))) for d in (F64, torch.float32)
    )
    assert math.isclose(resolved["condition"], 1e9, rel_tol=1e-6) and rounded["condition"] is None
    negative = summary(torch.diag(torch.tensor([1.0, -1e-3], dtype=F64)))
    assert negative["condition"] is None and math.isclose(negative["trace"], 0.999)
    assert negative["decades"] == [0, -8]
    assert summary(torch.tensor([[math.nan]]))["trace"] is None
    assert bars([0.0, -0.4, -0.6, -1.0, -6.6, -7.0, -300.0]) == "██▇▇▁▁▁"


def test_checkpoints(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
    data = [(torch.randn(6, 3, 2, 2), torch.randint(5, (6,)))]
    from eigendamage_ext.training import Checkpoint

    ed.train(model, data, epochs=2, lr=0.1, checkpoint=Checkpoint(tmp_path / "train"), progress=False)
    found = contents(tmp_path / "train")
    assert (found["kind"], found["epochs"], len(found["history"])) == ("training", 2, 2)
    assert found["history"][1]["epoch"] == 2 and math.isfinite(found["history"][1]["loss"])
    assert found["params"] == numel(model) and [*found["layers"]] == ["1", "3"]

    pruner = ed.Pruner(
        model, data, target={"params": 0.6}, steps=2, checkpoint=tmp_path / "rounds", progress=False
    )
    list(pruner)
    found = contents(tmp_path / "rounds")
    assert (found["kind"], found["steps"], found["schedule"]) == ("pruning", 2, "constant-ratio")
    assert found["history"] == [{key: pruner.history[0][key] for key in found["history"][0]}]
    assert found["plan"]["target"] == {"params": 0.6}
    assert "1 of 2 done" in page(found)


def test_tensors_of_another_program(tmp_path):
    tensors = {
        "embed.weight": torch.zeros(7, 4),
        "norm.weight": torch.ones(4),
        "head.weight": torch.ones(2, 4),
    }
    tensors |= {"head.bias": torch.ones(2), "places.weight": torch.zeros(2, 3, dtype=torch.int64)}
    safetensors.torch.save_file(tensors, tmp_path / "t", {"format": "pt"})
    found = contents(tmp_path / "t", check=True)
    assert (found["kind"], found["metadata"], found["params"]) == ("tensors", {"format": "pt"}, 42)
    assert {name: layer["params"] for name, layer in found["layers"].items()} == {
        "embed": 28,
        "head": 10,
    }


def test_a_length_that_looks_like_json_is_none(tmp_path):
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    header += b" " * (0x7B20 - len(header))  # the file begins with a space and a brace
    content = len(header).to_bytes(8, "little") + header + bytes(20_000)
    (tmp_path / "t").write_bytes(content[: 8 + len(header) + 1])
    assert contents(tmp_path / "t")["kind"] == "tensors"


def test_tensors_are_not_read_unless_asked_for(result, tmp_path):
    result.save(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    (tmp_path / "net").write_bytes(content[:-8] + bytes(byte ^ 255 for byte in content[-8:]))
    assert contents(tmp_path / "net")["checksum_read"] is False
    with pytest.raises(ed.ArtifactError, match="checksum"):
        contents(tmp_path / "net", check=True)


def test_the_command_prints_a_page_or_json(result, tmp_path, capsys):
    result.save(tmp_path / "net")
    assert cli.main(["inspect", str(tmp_path / "net")]) == 0
    text = capsys.readouterr().out
    for name, row in result.plan.items():
        line = next(line for line in text.splitlines() if line.startswith(f" {name} "))
        assert row.form in line.split()
    assert f"parent      {result.parent}" in text and "Net, " in text
    assert cli.main(["inspect", str(tmp_path / "net"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == contents(tmp_path / "net")


def failed(path, capsys):
    """The sentence on standard error, which is one line."""
    assert cli.main(["inspect", str(path)]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.endswith("\n")
    return err


def test_files_that_are_none(tmp_path, capsys):
    (tmp_path / "pickle").write_bytes(pickle.dumps(print))
    torch.save({}, tmp_path / "net.pt")
    (tmp_path / "other.json").write_text('{"settings": 1}')
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    for name, words in {
        "": "FILE must be a file, got a folder",
        "absent": "got nothing of that name",
        "pickle": "got a pickle",
        "net.pt": "got a pickle or an archive",
        "other.json": "must be a plan in JSON",
        "deep.json": "must be a plan in JSON",
        "empty": "must be a complete safetensors file",
        "text": "must be a complete safetensors file",
    }.items():
        assert words in failed(tmp_path / name, capsys)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"provenance": [1]}, "'provenance' in the file must be an object, got [1]"),
        ({"provenance": {"torch": 2}}, "'torch' in the file must be text, got 2"),
        ({"provenance": {"plan": {"params": [1, -2]}}}, "'params' in the file must be a list of 2 counts"),
        ({"provenance": {"plan": {"params": [1, 2, 3]}}}, "'params' in the file must be a list of 2 counts"),
        ({"provenance": {"plan": {"layers": {"a": 1}}}}, "'a' in the file must be an object, got 1"),
        (
            {"provenance": {"plan": {"predicted_loss": 10**99}}},
            "'predicted_loss' in the file must be a finite",
        ),
        ({"network": {"modules": [{}]}}, "the network must have modules, frozen, tied and strides"),
    ],
)
def test_hostile_manifests(change, words, tmp_path, capsys):
    ed.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "net")
    tensors, manifest = read_tensors(tmp_path / "net", format=FORMAT, version=VERSION)
    write_tensors(tmp_path / "net", tensors, manifest | change, format=FORMAT, version=VERSION)
    assert words in failed(tmp_path / "net", capsys)


def test_a_class_that_is_no_layer_is_not_made(tmp_path, capsys):
    ed.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "net")
    tensors, manifest = read_tensors(tmp_path / "net", format=FORMAT, version=VERSION)
    manifest["network"]["modules"][1]["class"] = "os.system"
    write_tensors(tmp_path / "net", tensors, manifest, format=FORMAT, version=VERSION)
    assert "the class of '0' must be one that this version knows" in failed(tmp_path / "net", capsys)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_refused(value, result, tmp_path, capsys):
    record = json.dumps(result.plan.record() | {"predicted_loss": 7.25})
    (tmp_path / "plan.json").write_text(record.replace("7.25", value))
    assert "'predicted_loss' in the file must be a finite number" in failed(tmp_path / "plan.json", capsys)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": 0},
        {"name": 5},
        {"kernel_size": "ab"},
        {"in_channels": 2.5},
        {"in_channels": -1},
        {"kernel_size": [1, None]},
    ],
)
def test_factors_with_wrong_numbers(change, tmp_path, capsys):
    random_factors(nn.Sequential(nn.Linear(2, 3)), (2,)).save(tmp_path / "f")
    tensors, manifest = read_tensors(tmp_path / "f", format="eigendamage-factors")
    manifest["layers"][0] |= change
    write_tensors(tmp_path / "f", tensors, manifest, format="eigendamage-factors")
    assert "must describe all its factors" in failed(tmp_path / "f", capsys)


def test_names_cannot_command_a_terminal(tmp_path, capsys):
    name = "\x1b[2J[bold]\u202e\nlayer" + "x" * 500
    safetensors.torch.save_file({f"{name}.weight": torch.zeros(2, 2)}, tmp_path / "t", {"\x07": "\x1b]0;"})
    assert cli.main(["inspect", str(tmp_path / "t")]) == 0
    text = capsys.readouterr().out
    assert "\\x1b[2J[bold]\\u202e\\nlayerxx" in text and "\\x07: \\x1b]0;" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) < 200
    assert printable("é–×█") == "é–×█"


def test_damaged_files_are_told_or_read(result, tmp_path, capsys):
    result.save(tmp_path / "net")
    content = (tmp_path / "net").read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        damaged = bytearray(content[: draw.choice([len(content), draw.randrange(len(content))])])
        for _ in range(draw.randrange(3)):
            if damaged:
                damaged[draw.randrange(min(len(damaged), 20_000))] = draw.randrange(256)
        (tmp_path / "new").write_bytes(damaged)
        code = cli.main(["inspect", str(tmp_path / "new")])
        error = capsys.readouterr().err
        assert code == 0 or (code == 1 and error.count("\n") == 1 and "--debug" not in error), error
