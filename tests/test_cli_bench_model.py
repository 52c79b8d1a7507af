"""`bench-model`: what is timed, what is refused, and what is said of it."""

import json

import pytest
import safetensors.torch
import torch
from random_factors import random_factors
from small_nets import EXAMPLE, Net
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext import _timing, cli
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.artifact import FORMAT, VERSION
from eigendamage_ext.cli.latency import LEAST_ROUNDS, MOST_ROUNDS, latency
from eigendamage_ext.cli.networks import example_input, in_words, load_network
from eigendamage_ext.cli.parsing import input_shape


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a network and of what pruning made of it, and the result."""
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    model = Net().eval()
    result = ed.plan(model, random_factors(model, EXAMPLE), target={"flops": 0.6}).apply(model)
    result.save(folder / "net")
    ed.save(model.train(), folder / "dense")
    return folder / "dense", folder / "net", result


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands unless it is told to go on."""
    now = [0.0]
    monkeypatch.setattr(_timing.time, "perf_counter", lambda: now[0])

    def sleep(seconds):
        now[0] += seconds

    return sleep


class Slow(nn.Module):
    """Takes some time, the next at each call, and its input's shape."""

    def __init__(self, clock, times):
        super().__init__()
        self.clock, self.times, self.shapes = clock, list(times), []

    def forward(self, x):
        self.shapes.append(x.shape)
        self.clock(self.times[(len(self.shapes) - 1) % len(self.times)])
        return x


def test_medians_quarters_and_speedup(clock):
    base, other = Slow(clock, [0.4]), Slow(clock, [0.125] * 4 + [0.0625] * 3 + [0.5] * 3)
    found = latency((base, other), torch.zeros(1, 3), 5, "eager", seconds=0.0)
    assert (found.batch, found.rounds, found.skipped) == (5, LEAST_ROUNDS, None)
    assert set(base.shapes) == {(5, 3)} and len(base.shapes) == len(other.shapes)
    # Of `other` three passes are not counted: 1/8, then 1/16 and 1/2 thrice each.
    assert found.other == pytest.approx((0.125, 0.0625, 0.5)) and found.base.median == pytest.approx(0.4)
    assert found.speedup == pytest.approx(0.4 / 0.125)


def test_rounds_fill_the_time(clock):
    def rounds(seconds):
        networks = Slow(clock, [0.25]), Slow(clock, [0.75])
        return latency(networks, torch.zeros(1, 3), 1, "eager", seconds=seconds).rounds

    assert (rounds(20.0), rounds(1.0), rounds(10.0**6)) == (20, LEAST_ROUNDS, MOST_ROUNDS)


def test_compiled_networks_are_timed(made):
    seen = []

    def backend(graph, inputs):
        seen.append([tuple(x.shape) for x in inputs if x.dim() == 4 and x.shape[-1] == EXAMPLE[-1]])
        return graph

    networks = tuple(ed.load(path).eval() for path in made[:2])
    found = latency(networks, torch.zeros(1, *EXAMPLE), 2, "compiled", seconds=0.0, backend=backend)
    assert found.speedup > 0 and found.rounds >= LEAST_ROUNDS
    assert len(seen) == 2 and all((2, *EXAMPLE) in shapes for shapes in seen)


def test_where_nothing_compiles_the_reason_is_told(made):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nat all")

    networks = tuple(ed.load(path).eval() for path in made[:2])
    found = latency(networks, torch.zeros(1, *EXAMPLE), 2, "compiled", seconds=0.0, backend=broken)
    assert found.speedup is None
    assert found.skipped == "torch.compile fails here with RuntimeError: no compiler"


def test_the_command_compares(made, capsys):
    dense, net, result = made
    command = ["bench-model", str(net), "--vs", str(dense), "--batch", "1", "3", "3", "--seconds", "0"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"] == {
        "path": str(dense),
        "params": result.params_before,
        "flops": result.flops_before,
    }
    assert found["file"] == {"path": str(net), "params": result.params_after, "flops": result.flops_after}
    assert found["input"] == "3×8×8 float32" and found["device"].endswith(", 1 thread")
    assert [(one["batch"], one["mode"]) for one in found["latency_ms"]] == [(1, "eager"), (3, "eager")]
    for one in found["latency_ms"]:
        for times in (one["base"], one["file"]):
            assert 0 < times["lower"] <= times["median"] <= times["upper"]
        assert one["speedup"] == pytest.approx(one["base"]["median"] / one["file"]["median"])
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "input       3×8×8 float32" in text and f"({result.flops_after / result.flops_before:.1%})" in text
    assert len([line for line in text.splitlines() if line.endswith("×") and "eager" in line]) == 2


def test_a_compiler_that_fails_is_no_failure(made, capsys, monkeypatch):
    def broken(*args, **settings):
        raise RuntimeError("Python 4 is not supported")

    monkeypatch.setattr(torch, "compile", broken)
    dense, net, _ = made
    assert cli.main(["bench-model", str(net), "--vs", str(dense), "--seconds", "0", "--compile"]) == 0
    text = capsys.readouterr().out
    assert text.count("compiled: torch.compile fails here with RuntimeError: Python 4") == 1
    assert text.count("eager") == 2


def refused(arguments, capsys):
    assert cli.main(["bench-model", *map(str, arguments), "--seconds", "0"]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_networks_that_cannot_be_compared(made, tmp_path, capsys):
    dense, net, _ = made
    ed.save(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), tmp_path / "other")
    ed.save(nn.Sequential(nn.Conv2d(7, 4, 1)), tmp_path / "seven")
    message = refused([net, "--vs", tmp_path / "other"], capsys)
    assert "FILE must give outputs of the shapes of BASE, got [(1, 5)] in place of [(1, 256)]" in message
    assert "BASE must take 3×8×8 float32, got RuntimeError" in refused(
        [net, "--vs", tmp_path / "seven"], capsys
    )
    assert "--input must be given" in refused([dense, "--vs", dense], capsys)
    assert "FILE must take" not in refused([dense, "--vs", dense, "--input", "4x8x8"], capsys)
    assert "must be usable here, got 'tpu'" in refused([net, "--vs", dense, "--device", "tpu"], capsys)
    assert (
        cli.main(["bench-model", str(dense), "--vs", str(dense), "--input", "3x9x9", "--seconds", "0"]) == 0
    )


def test_files_that_need_a_class(made, tmp_path, capsys, monkeypatch):
    dense, net, result = made
    monkeypatch.chdir(tmp_path)
    safetensors.torch.save_file(ed.load(dense).state_dict(), "weights")
    assert "--model must be given for a file that does not say" in refused([net, "--vs", "weights"], capsys)
    command = ["bench-model", str(net), "--vs", "weights", "--model", "small_nets:Net", "--seconds", "0"]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["base"]["params"], found["file"]["params"]) == (result.params_before, result.params_after)
    assert cli.main([*command[:-3], "small_nets:Nest"]) == 1
    assert "there is no 'Nest' in it; the nearest name is 'Net'" in capsys.readouterr().err


def test_networks_get_the_weights_of_their_files(made, tmp_path):
    dense, net, result = made
    safetensors.torch.save_file(ed.load(dense).state_dict(), tmp_path / "weights")
    x = torch.randn(2, *EXAMPLE)
    for path, model in (
        (net, None),
        (dense, None),
        (net, "small_nets:Net"),
        (tmp_path / "weights", "small_nets:Net"),
    ):
        network = load_network(path, model, caller="f")
        expected = result.model if path == net else ed.load(dense)
        assert not network.training and torch.equal(network(x), expected.eval()(x))


def test_the_example_is_that_of_the_plan(made):
    dense, net, _ = made
    x = example_input(None, [dense, net], Net().double(), caller="f")
    assert x.shape == (1, *EXAMPLE) and x.dtype == torch.float64 and x.std() > 0.5
    assert torch.equal(x, example_input(None, [net], Net().double(), caller="f"))
    assert example_input((4,), [net], Net(), caller="f").shape == (1, 4)


def with_example(path, example):
    """The file beside, with another example in its plan."""
    tensors, manifest = read_tensors(path, format=FORMAT, version=VERSION)
    manifest["provenance"]["plan"]["example"] = example
    write_tensors(path.with_name("other"), tensors, manifest, format=FORMAT, version=VERSION)
    return path.with_name("other")


@pytest.mark.parametrize(
    "kind", [[[10**6, 10**6], "float32"], [[3], "object"], [[-1], "int64"], [["a"], "bool"], 7]
)
def test_an_example_that_nothing_could_take_is_refused(kind, made):
    with pytest.raises(ed.ArtifactError, match="must have at most 67,108,864 numbers of a known dtype"):
        example_input(None, [with_example(made[1], {"": kind})], Net(), caller="f")


def test_examples_of_several_tensors(made):
    ids, half = [[7], "int64"], [[2, 3], "float16"]
    found = example_input(None, [with_example(made[1], {"ids": ids, "x": half})], Net(), caller="f")
    assert torch.equal(found["ids"], torch.ones(1, 7, dtype=torch.int64))
    assert found["x"].shape == (1, 2, 3) and found["x"].dtype == torch.float32
    assert in_words(found) == "ids 7 int64, x 2×3 float32"
    found = example_input(None, [with_example(made[1], {"0": half, "1": ids})], Net(), caller="f")
    assert [x.shape for x in found] == [(1, 2, 3), (1, 7)]


def test_plans_tell_their_example(made, monkeypatch):
    plan = made[2].plan
    assert plan.record()["example"] == {"": [[*EXAMPLE], "float32"]}
    several = {"ids": torch.ones(1, 7, dtype=torch.int64), "x": torch.zeros(1, 2, 3).half()}
    monkeypatch.setattr(plan, "_example", several)
    assert plan.record()["example"] == {"ids": [[7], "int64"], "x": [[2, 3], "float16"]}


def test_networks_of_several_inputs(clock):
    class Two(Slow):
        def forward(self, x, *, mask):
            assert mask.shape == (4, 2) and mask.dtype == torch.bool
            return super().forward(x)

    example = {"x": torch.zeros(1, 3), "mask": torch.ones(1, 2, dtype=torch.bool)}
    found = latency((Two(clock, [2.0]), Two(clock, [1.0])), example, 4, "eager", seconds=0.0)
    assert found.speedup == pytest.approx(2)


@pytest.mark.parametrize(("text", "shape"), [("3x32x32", (3, 32, 32)), ("1×8×8", (1, 8, 8)), ("16", (16,))])
def test_shapes_on_the_command_line(text, shape):
    assert input_shape(text) == shape


@pytest.mark.parametrize("text", ["", "3x", "3,32", "0x3", "3x-1", "x"])
def test_shapes_that_are_none(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench-model", "a", "--vs", "b", "--input", text])
    assert "must be numbers like 3x32x32" in capsys.readouterr().err
