"""``eigendamage prune``: what it makes, and that it is what the library makes."""

import json
import tomllib
from dataclasses import fields
from inspect import signature

import pytest
import tiny_case
import torch

import eigendamage_ext as ed
from eigendamage_ext import cli
from eigendamage_ext.curvature.fisher import FISHERS
from eigendamage_ext.curvature.moments import WEIGHT_SHARINGS
from eigendamage_ext.data import TensorLoader
from eigendamage_ext.pruning import methods
from eigendamage_ext.pruning import settings as pruning
from eigendamage_ext.runs import candidate
from eigendamage_ext.runs import settings as runs
from eigendamage_ext.runs.events import read_events
from eigendamage_ext.training import SCHEDULES

PRUNE = "prune --model tiny_case:net --data tiny_case:data --batch-size 16".split()
TUNED = "--flops 60% --epochs 3 --lr 0.05 --ignore 0 --seed 3".split()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    assert cli.main([*PRUNE, *TUNED, "-o", str(out), "--quiet"]) == 0
    return out


def loader(part, **more):
    return TensorLoader(*part, batch_size=16, **more)


def by_hand(path):
    """What the run of `TUNED` is in Python."""
    (train, test), torch_seed = tiny_case.data(), torch.random.get_rng_state()
    torch.manual_seed(3)
    model = tiny_case.net().eval()
    torch.random.set_rng_state(torch_seed)
    result = ed.prune(model, loader(train), target={"flops": 0.6}, ignored_layers="0", seed=3, progress=False)
    loss = ed.mean_loss(result.model, loader(train))
    ed.recalibrate_bn(result.model, loader(train))
    before = ed.evaluate(result.model, loader(test))
    ed.finetune(result.model, loader(train, shuffle=True, seed=3), epochs=3, lr=0.05, seed=3, progress=False)
    ed.save(result, path)
    return (
        model,
        result,
        {"accuracy_cut": before, "loss": loss, "accuracy": ed.evaluate(result.model, loader(test))},
    )


def test_a_run_is_what_the_library_does(tuned, tmp_path):
    model, result, found = by_hand(tmp_path / "net.safetensors")
    assert json.loads((tuned / "plan.json").read_text()) == json.loads(json.dumps(result.plan.record()))
    ours, theirs = ed.load(tuned / "net.safetensors"), ed.load(tmp_path / "net.safetensors")
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    told = json.loads((tuned / "result.json").read_text())
    assert {name: told[name] for name in found} == found
    assert told["flops"] == result.flops_after <= 0.6 * result.flops_before
    assert told["params"] == sum(p.numel() for p in ours.parameters())
    test = tiny_case.data()[1]
    dense = json.loads((tuned / "stages/dense.json").read_text())
    assert dense["accuracy"] == ed.evaluate(model, loader(test)) and dense["flops"] == result.flops_before
    factors = ed.Factors.load(tuned / "factors.safetensors")
    assert factors.settings.count == 48 and factors.settings.seed == 3


def test_a_run_says_what_it_was_and_what_happened(tuned, capsys):
    config = tomllib.loads((tuned / "config.toml").read_text())
    assert config["flops"] == 0.6 and config["ignored_layers"] == ["0"] and config["max_ratio"] == 0.95
    environment = json.loads((tuned / "env.json").read_text())
    assert environment["torch"] == torch.__version__ and environment["threads"] == 1
    events = read_events(tuned / "events.jsonl")
    begun = [event["stage"] for event in events if event["event"] == "begun"]
    assert begun[:2] == ["the network as it is", "factors"] and begun[2:5] == ["plan", "cut", "fine-tune"]
    assert begun[5:] == ["measure", "time", "report"]
    times = json.loads((tuned / "times.json").read_text())
    assert list(times) == ["1", "64"] and all(len(t) == 2 and min(t) > 0 for t in times.values())
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3]
    assert [event["lr"] for event in events if event["event"] == "epoch"] == pytest.approx(
        [0.05, 0.0375, 0.0125]
    )
    ended = [event for event in events if event["event"] == "ended"]
    assert [event["stage"] for event in ended] == begun and all(event["seconds"] >= 0 for event in ended)
    assert (tuned / "report.html").read_text().startswith("<!")
    assert not list(tuned.rglob("tuning.safetensors")) and not list(tuned.rglob("*.tmp"))


def test_the_same_command_again_changes_nothing(tuned, capsys):
    before = {path: path.read_bytes() for path in tuned.rglob("*") if path.is_file()}
    assert cli.main([*PRUNE, *TUNED, "-o", str(tuned)]) == 0
    out, err = capsys.readouterr()
    assert err == f"prune: all of {tuned} is done already\n"
    told, dense = (json.loads((tuned / name).read_text()) for name in ("result.json", "stages/dense.json"))
    assert f"{100 * told['accuracy']:.1f} %" in out and f"({told['flops'] / dense['flops']:.1%})" in out
    assert str(tuned / "net.safetensors") in out and str(tuned / "report.html") in out
    for path, content in before.items():
        assert path.read_bytes() == content or path.name == "events.jsonl"


def test_a_configuration_file_says_the_same(tuned, tmp_path, capsys):
    config = ["--config", str(tuned / "config.toml")]
    assert cli.main(["prune", *config, "-o", str(tmp_path / "again"), "--quiet"]) == 0
    assert cli.main(["prune", *config, "--flops", "0.9", "-o", str(tmp_path / "other"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    for name in ("net.safetensors", "plan.json", "config.toml"):
        assert (tmp_path / "again" / name).read_bytes() == (tuned / name).read_bytes()
    other = json.loads((tmp_path / "other" / "result.json").read_text())
    dense = json.loads((tuned / "stages/dense.json").read_text())
    cut = json.loads((tuned / "result.json").read_text())
    assert other["target"] == {"flops": 0.9} and cut["flops"] < other["flops"] <= 0.9 * dense["flops"]


def test_without_tuning_the_network_is_that_of_the_cut(tmp_path):
    out = tmp_path / "cut"
    options = "--params 70% --method l1 --no-recalibrate-bn --quiet".split()
    assert cli.main([*PRUNE, *options, "-o", str(out)]) == 0
    torch.manual_seed(0)
    model = tiny_case.net().eval()
    example = tiny_case.data()[0][0][:1]
    result = ed.plan(model, target={"params": 0.7}, method="l1", example_inputs=example).apply(model)
    ours = ed.load(out / "net.safetensors").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in result.model.state_dict().items())
    assert not (out / "factors.safetensors").exists() and not list(out.rglob("cut.safetensors"))
    told = json.loads((out / "result.json").read_text())
    assert told["accuracy"] == told["accuracy_cut"] and told["predicted_loss"] is None


def test_distillation_and_loaders_of_ones_own(tmp_path, capsys):
    options = "--model tiny_case:net --data tiny_case:loaders --flops 0.8 --epochs 1 --distill".split()
    assert cli.main(["prune", *options, "-o", str(tmp_path / "a"), "--quiet"]) == 0
    assert cli.main(["prune", *options[:-1], "-o", str(tmp_path / "b"), "--quiet"]) == 0
    a, b = (ed.load(tmp_path / name / "net.safetensors").state_dict() for name in "ab")
    assert any(not torch.equal(a[name], b[name]) for name in a)
    told = json.loads((tmp_path / "a" / "result.json").read_text())
    assert told["accuracy"] is None and told["loss"] > 0
    assert capsys.readouterr().out.count("accuracy") == 2


def test_every_option_is_passed_on(tmp_path, monkeypatch):
    """Each argument of the library that a setting names gets its value."""
    asked = {"fisher": "exact", "samples": 2, "weight_sharing": "reduce", "max_examples": 20}
    asked |= {"scores": "ekfac", "allocation": "least_loss", "max_ratio": 0.75, "round_to": 2}
    asked |= {"momentum": 0.5, "weight_decay": 0.01, "schedule": "constant", "autocast": "bfloat16"}
    asked |= {"temperature": 2.0, "distillation": 0.25, "epochs": 1, "lr": 0.5, "flops": 0.9, "seed": 5}
    asked |= {"layers": ["3", "8"], "prune_head": True}
    seen = {}
    tune = candidate.training.finetune

    def finetune(model, loader, **how):
        seen.update(how)
        return tune(model, loader, **how)

    monkeypatch.setattr(candidate.training, "finetune", finetune)
    options = []
    for name, value in asked.items():
        words = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
        options += [f"--{name.replace('_', '-')}", *words]
    out = tmp_path / "out"
    assert cli.main([*PRUNE, *options, "-o", str(out), "--quiet"]) == 0
    plan = json.loads((out / "plan.json").read_text())
    assert set(plan["layers"]) == {"3", "8"}
    told = plan["settings"] | plan["settings"]["factors"] | seen
    told |= {"flops": told["target"]["flops"], "max_examples": told["count"], "autocast": "bfloat16"}
    assert seen["autocast"] == torch.bfloat16 and plan["settings"]["factors"]["autocast"] == "bfloat16"
    assert plan["settings"]["factors"]["moments_count"] == 20
    for name, value in asked.items():
        assert name == "layers" or told[name] == value, name


def test_names_and_defaults_are_those_of_the_library():
    assert tuple(methods.METHODS) == runs.METHODS and runs.SCHEDULES == SCHEDULES
    assert (runs.SCORES, runs.ALLOCATIONS) == (pruning.SCORES, pruning.ALLOCATIONS)
    assert (tuple(FISHERS), tuple(WEIGHT_SHARINGS)) == (runs.FISHERS, runs.WEIGHT_SHARINGS)
    defaults = {}
    for function in (ed.finetune, ed.prune):
        defaults |= {name: parameter.default for name, parameter in signature(function).parameters.items()}
    shared = [entry for entry in fields(runs.PruneSettings) if entry.name in defaults]
    assert len(shared) > 20
    for entry in shared:
        if entry.name not in ("model", "epochs", "autocast"):
            assert entry.default == defaults[entry.name], entry.name
