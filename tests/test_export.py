"""Networks for other runtimes: what is written computes what the model does, or is not written."""

import importlib.util
import logging
import warnings
from functools import partial
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch
from random_factors import random_factors
from small_nets import Net, same, snapshot
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext.artifact import export as exporting
from eigendamage_ext.curvature.layers import select
from eigendamage_ext.pruning.coupling import channel_groups, cuts
from eigendamage_ext.pruning.forms import FORMS, build, form_at
from eigendamage_ext.pruning.surgery import rebuild, slice_channels

SUFFIXES = ["pt2", pytest.param("onnx", marks=pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs ONNX"
))]  # fmt: skip


def run(path, *inputs):
    """The outputs of a file in its own runtime."""
    if path.suffix == ".pt2":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", exporting.WARNED, FutureWarning)
            outputs = torch.export.load(path).module()(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    found = session.run(None, dict(zip(names, (x.numpy() for x in inputs), strict=True)))
    return tuple(map(torch.from_numpy, found))


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def all_forms():
    """A network without a third of its filters, whose layers take all forms in turn; examples."""
    widths = (3, *[6] * len(FORMS))
    layers = [[nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()] for i, o in pairwise(widths)]
    net = nn.Sequential(*chain(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    x = torch.randn(3, 3, 8, 8)
    net = slice_channels(net, cuts([(group, torch.arange(2)) for group in channel_groups(net, x).groups]))
    forms = dict(zip(select(net)[0], FORMS, strict=False))
    net = rebuild(
        net, {name: partial(build, form=form, input_rank=2, output_rank=2) for name, form in forms.items()
              if form != "dense"},
    )  # fmt: skip
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert [form_at(net.get_submodule(name)) for name in forms] == list(FORMS) and net[0].out_channels == 4
    return net, x


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_networks_of_all_forms(tmp_path, suffix, capfd, caplog, all_forms):
    net, x = all_forms
    net.train()
    before, path = snapshot(net), tmp_path / f"net.{suffix}"
    ed.export(net, path, example_inputs=x)
    assert same(before, snapshot(net))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    for examples in (1, 2, 7):
        x = torch.randn(examples, 3, 8, 8)
        torch.testing.assert_close(run(path, x), (net.eval()(x),), rtol=1e-4, atol=1e-5)
    assert b"site-packages" not in path.read_bytes()
    assert capfd.readouterr() == ("", "") and not warned(caplog)


X = torch.randn(2, 3)


class Two(nn.Module):
    """Takes two inputs, returns nested outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, a, b, scale=2.0):
        return self.linear(a) - b, [scale * b.sum(1), a > 0]


@pytest.mark.parametrize(("suffix", "loaded"), [("pt2", False), ("pt2", True), ("onnx", False)])
def test_inputs_by_name_and_by_place(tmp_path, suffix, loaded):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    net, path = Two(), tmp_path / f"net.{suffix}"
    if loaded:
        ed.save(net, tmp_path / "net")
        net = ed.load(tmp_path / "net")
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    ed.export(net, path, example_inputs={"b": b, "a": a, "scale": 2.0} if suffix == "onnx" else (a, b))
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    found = run(path, *((b, a) if suffix == "onnx" else (a, b)))
    wanted = net(a, b)
    torch.testing.assert_close(
        list(exporting.tensors_in(list(found))), list(exporting.tensors_in(wanted)), rtol=1e-4, atol=1e-5
    )


def test_what_forward_leaves_in_a_model_stays_out_of_it(tmp_path):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    net = Counting(3, 3)
    ed.export(net, tmp_path / "net.pt2", example_inputs=X)
    assert net.calls == 0


def test_a_network_that_changes_its_input(tmp_path):
    class Halving(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(0.5))

    x = X.clone()
    ed.export(Halving(3, 3), tmp_path / "net.pt2", example_inputs=x)
    assert torch.equal(x, X)


def test_a_file_that_does_not_run_is_refused(tmp_path, monkeypatch):
    def load(file):
        raise RuntimeError("no such operator\nand more")

    class Loaded:
        module = staticmethod(lambda: load)

    monkeypatch.setattr(torch.export, "load", lambda file: Loaded)
    with pytest.raises(NotImplementedError, match="its file, got RuntimeError: no such operator for 2 exa"):
        ed.export(nn.Linear(3, 3), tmp_path / "net.pt2", example_inputs=X)
    assert not list(tmp_path.iterdir())


def test_a_result_is_exported_with_the_example_of_its_plan(tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    result = ed.plan(net, random_factors(net, (6,)), target={"params": 0.7}).apply(net)
    result.model.double()
    result.export(tmp_path / "net.pt2")
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(run(tmp_path / "net.pt2", x), (result.model(x),))
    with FlopCounterMode(display=False) as counter:
        run(tmp_path / "net.pt2", x[:1])
    assert counter.get_total_flops() == result.flops_after < result.flops_before


class Doing(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear, self.does = nn.Linear(3, 3), forward

    def forward(self, x):
        return self.does(self.linear(x))


REFUSED = {
    "suffix": (Net(), "net.pt", X, ValueError, r"path must end in \.pt2 or \.onnx, got .*\.pt'; rename"),
    "no model": (7, "net.pt2", X, TypeError, "model must be an nn.Module, got int"),
    "no example": (Net(), "net.pt2", None, ValueError, "must be given for a model .* got None"),
    "no tensors": (Net(), "net.pt2", (3, 1), TypeError, "a mapping with tensors, got tuple; pass what"),
    "empty": (Net(), "net.pt2", X[:0], ValueError, "with tensors of one example or more, got none"),
    "lengths": (Two(), "net.pt2", (X, X[:1]), ValueError, "with as many, got 2 in '0' and 1 in '1'"),
    "shape": (Net(), "net.pt2", X, ValueError, "what the model takes, .* got RuntimeError: .* for 2; pass"),
    "batch": (Doing(lambda x: x.view(2, 3)), "net.pt2", X, ValueError, "got RuntimeError: .* for 3; pass"),
    "constant batch": (
        Doing(lambda x: x + len(x) if len(x) in (2, 3) else x),
        "net.pt2", X, NotImplementedError, "for any number of examples, got UserError: .*; change its",
    ),
    "branch": (
        Doing(lambda x: x if x.sum() > 0 else -x),
        "net.pt2", X, NotImplementedError, r"GuardOnData\w+ at .*test_export.py:\d+: .*x.sum\(\) > 0",
    ),
    "nothing": (Doing(lambda x: None), "net.pt2", X, ValueError, r"got \[\] in place of \[\]"),
    "operator": (Doing(torch.special.bessel_j0), "net.onnx", X, NotImplementedError,
                 r"ONNX can hold, got DispatchError: No ONNX function .*bessel_j0.*; export it to \.pt2"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_named_and_nothing_written(tmp_path, case, capfd, caplog):
    net, name, inputs, error, message = REFUSED[case]
    if name == "net.onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    before = snapshot(net) if isinstance(net, nn.Module) else None
    path = tmp_path / name
    path.write_bytes(b"before")
    with pytest.raises(error, match=f"^export: .*{message}"):
        ed.export(net, path, example_inputs=inputs)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == [name]
    assert before is None or same(before, snapshot(net))
    assert capfd.readouterr() == ("", "") and not warned(caplog)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * (1 + 1e-2 * (len(x) == 3)), "for 3 examples up to .*e-04, got a difference of "),
        (lambda x: x[:1], r"for 2 examples, got \[\(\(2, 3\), torch.float32\)\] in place of"),
    ],
)
def test_other_outputs_are_refused(tmp_path, monkeypatch, change, message):
    outputs = exporting._outputs
    monkeypatch.setattr(exporting, "_outputs", lambda *args: [change(x) for x in outputs(*args)])
    path = tmp_path / "net.pt2"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=f"^export: .* must give the outputs of the model {message}"):
        ed.export(nn.Linear(3, 3), path, example_inputs=X)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_weights_that_one_file_cannot_hold(tmp_path):
    pytest.importorskip("onnxscript")
    net = nn.Linear(3, 3)
    net.weight = nn.Parameter(torch.zeros(1, 1).expand(2**15, 2**15))
    with pytest.raises(ValueError, match=r"at most 2 GB of weights .* got 4\.3 GB; export it to \.pt2"):
        ed.export(net, tmp_path / "net.onnx", example_inputs=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_what_onnx_needs_is_missed_before_any_work(tmp_path, monkeypatch, name):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == name else found(n))
    with pytest.raises(
        ModuleNotFoundError, match=rf"{name} must be .*pip install \"eigendamage-ext\[onnx\]\""
    ):
        ed.export(nn.Linear(3, 3), tmp_path / "net.onnx")


def writing(monkeypatch, content):
    """Makes the ONNX exporter, which takes a second, give some bytes."""
    program = SimpleNamespace(model_proto=SimpleNamespace(SerializeToString=lambda: content))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **words: program)


def test_what_onnxruntime_cannot_read_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    writing(monkeypatch, b"no network")
    with pytest.raises(NotImplementedError, match=r"onnxruntime can run, got \w+: .*; export it as m"):
        ed.export(nn.Linear(3, 3), tmp_path / "net.onnx", example_inputs=X)
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_it_is_said_that_nothing_was_compared(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    writing(monkeypatch, b"a network")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else found(n))
    with pytest.warns(UserWarning, match="was not compared .* pip install onnxruntime") as caught:
        ed.export(nn.Linear(3, 3), tmp_path / "net.onnx", example_inputs=X)
    assert caught[0].filename == __file__
    assert (tmp_path / "net.onnx").read_bytes() == b"a network"


def test_examples_are_not_in_the_file(tmp_path):
    secret = torch.full((2, 3), 1234.5678)
    ed.export(nn.Linear(3, 3), tmp_path / "net.pt2", example_inputs=secret)
    assert secret[:1].numpy().tobytes() not in (tmp_path / "net.pt2").read_bytes()
