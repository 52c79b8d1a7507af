"""`export`: the file it writes gives what the network gives; what it refuses."""

import pytest
import torch
from random_factors import random_factors
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import cli


@pytest.fixture
def net(tmp_path):
    """The file of a small pruned network."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3))
    plan = ed.plan(model, random_factors(model, (3, 6, 6)), target={"flops": 0.7})
    plan.apply(model).save(tmp_path / "net")
    return tmp_path / "net"


def test_torch_export(net, tmp_path, capsys):
    out = tmp_path / "net.pt2"
    assert cli.main(["export", str(net), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size:,} bytes, takes batches of 3×6×6 float32\n"
    x = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(torch.export.load(out).module()(x), ed.load(net).eval()(x))


def test_onnx(net, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(net), str(tmp_path / "net.onnx"), "--input", "3x6x6"]) == 0
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 6, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), ed.load(net).eval()(x))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["net", "net.pth"], "export: path must end in .pt2 or .onnx"),
        (["absent", "net.pt2"], "must name a file, got"),
        (["net", "net.pt2", "--input", "5x6x6"], "example_inputs must be what the model takes"),
        (["plain", "net.pt2"], "export: --input must be given where no file tells the input in a plan"),
        (["net", "no/net.pt2"], "must lie in an existing folder"),
    ],
)
def test_what_cannot_be_exported_is_told(arguments, words, net, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ed.save(nn.Sequential(nn.Linear(2, 2)), "plain")
    assert cli.main(["export", *arguments]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.rglob("*.pt*"))
