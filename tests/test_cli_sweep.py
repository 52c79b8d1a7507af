"""``eigendamage sweep`` and ``plan``: several budgets and methods from one pass, and what cannot be met."""

import json
import re

import pytest
import tiny_case
import torch
from test_cli_prune import PRUNE, one_thread, tuned  # noqa: F401  # fixtures

import eigendamage_ext as ed
from eigendamage_ext import cli
from eigendamage_ext.pruning.allocation import UnreachableError
from eigendamage_ext.runs import estimation, page, subject
from eigendamage_ext.runs.events import read_events
from eigendamage_ext.runs.reach import obstacle
from eigendamage_ext.runs.settings import Goal, PruneSettings, Way

TUNING = "--epochs 3 --lr 0.05 --ignore 0 --seed 3".split()
METHODS = ["eigendamage", "l1", "kron-obd", "eigendamage.ekfac.least_loss"]
SWEEP = ["sweep", *PRUNE[1:], *TUNING, "--flops", "60%", "1%", "--methods", *METHODS]
BUDGETS = ["--flops", "60%", "30%", "1%"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of which one network is that of `tuned`."""
    out = tmp_path_factory.mktemp("runs") / "swept"
    assert cli.main([*SWEEP, "-o", str(out), "--quiet"]) == 0
    return out


def read(path):
    return json.loads(path.read_text())


def as_json(value):
    return json.loads(json.dumps(value))


def test_a_network_of_a_sweep_is_that_of_a_run(swept, tuned):  # noqa: F811
    ours = swept / "networks" / "eigendamage-flops-0.6"
    assert read(ours / "plan.json")["layers"] == read(tuned / "plan.json")["layers"]
    weights, alone = (ed.load(folder / "net.safetensors").state_dict() for folder in (ours, tuned))
    assert all(torch.equal(weights[name], alone[name]) for name in alone)
    assert (ours / "result.json").read_bytes() == (tuned / "result.json").read_bytes()


def test_one_pass_serves_all_methods_that_need_the_same(swept):
    events = read_events(swept / "events.jsonl")
    stages = [event["stage"] for event in events if event["event"] == "ended"]
    assert stages[:3] == ["the network as it is", "factors", "patch factors"] and stages[-1] == "report"
    assert stages[3:7] == [
        f"eigendamage, 60 % of FLOPs: {s}" for s in ("plan", "cut", "fine-tune", "measure")
    ]
    assert stages[-2] == "time" and len(stages) == 3 + 4 * len(METHODS) + 2
    assert all(len(times) == 1 + len(METHODS) for times in read(swept / "times.json").values())
    factors = ed.Factors.load(swept / "factors.safetensors").settings
    assert (factors.kind, factors.count, factors.moments_count, factors.diagonal_count) == (
        "channel",
        48,
        48,
        0,
    )
    assert ed.Factors.load(swept / "factors-patch.safetensors").settings.kind == "patch"


def test_every_network_is_what_the_library_plans(swept):
    torch.manual_seed(3)
    model = tiny_case.net().eval()
    how = {"ignored_layers": "0", "seed": 3, "example_inputs": tiny_case.data()[0][0][:1]}
    for name in METHODS:
        folder, way = swept / "networks" / f"{name}-flops-0.6", Way.read(name)
        path = estimation.factors_path(swept, way)
        factors = ed.Factors.load(path) if path else None
        plan = ed.plan(model, factors, target={"flops": 0.6}, **how, **way._asdict())
        assert read(folder / "plan.json") == as_json(plan.record())
        assert read(folder / "result.json")["flops"] == plan.flops_after <= 0.6 * plan.flops_before


def test_what_cannot_be_met_is_named_with_the_nearest(swept, capsys):
    assert cli.main([*SWEEP, "-o", str(swept)]) == 0
    out, err = capsys.readouterr()
    assert "is done already" in err
    named = re.findall(r"^(.*), 1 % of FLOPs: cannot be met; the nearest is [\d.]+ % of FLOPs$", out, re.M)
    assert named == METHODS and not list((swept / "networks").glob("*-flops-0.01"))
    told = read(swept / "networks" / "l1-flops-0.6" / "result.json")
    row = re.search(r"^ l1, 60 % of FLOPs .*$", out, re.M)
    assert row and f"{100 * told['accuracy']:.1f} %" in row[0]
    assert "kron-obd" in (swept / "report.html").read_text()


def test_a_budget_is_refused_before_anything_is_estimated(tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(estimation, "estimate_factors")
    monkeypatch.delattr(subject.training, "evaluate")
    for options in ([*PRUNE, "--flops", "1%"], [*SWEEP, "--flops", "1%", "0.5%"]):
        assert cli.main([*options, "-o", str(tmp_path / "out")]) == 1
        assert 'target must be reachable, got {"flops": 0.01}' in capsys.readouterr().err


@pytest.mark.parametrize("measure", ["flops", "params", "ratio"])
@pytest.mark.parametrize("method", ["eigendamage", "eigendamage-depthwise", "l1", "kron-obd"])
def test_what_is_refused_beforehand_is_what_is_refused_later(method, measure, tmp_path):
    settings = PruneSettings(
        model="tiny_case:net", data="tiny_case:data", flops=0.5, batch_size=16, max_ratio=0.6
    )
    case, way = subject.Subject(settings, tmp_path, "prune", progress=False), Way(method)
    needed = estimation.needs(way)
    factors = needed and ed.estimate_factors(
        case.model, case.data.calibration, kind=needed[0], max_examples=16, progress=False
    )
    far = obstacle(case, Goal(measure, 0.99 if measure == "ratio" else 0.01), way)
    assert far is not None and far.nearest is not None and far.nearest.measure == measure
    nearest, step = far.nearest.value, -0.0002 if measure == "ratio" else 0.0002
    assert obstacle(case, Goal(measure, nearest), way) is None
    subject.planned(case, factors, Goal(measure, nearest), way)
    beyond = Goal(measure, nearest - step)
    with pytest.raises(UnreachableError) as error:
        subject.planned(case, factors, beyond, way)
    assert str(obstacle(case, beyond, way)) == str(error.value)


def test_the_page_is_about_the_smallest_good_network():
    def one(accuracy, flops):
        return {"accuracy": accuracy, "flops": flops}

    dense = {"accuracy": 0.9}
    assert page.choose(dense, [one(0.9, 9), one(0.895, 5), one(0.88, 1)]) == 1
    assert page.choose(dense, [one(0.5, 9), one(0.7, 5), one(0.6, 1)]) == 1
    assert page.choose({"accuracy": None}, [one(None, 9), one(None, 5)]) == 1


def test_plan_shows_what_budgets_would_cut(tuned, tmp_path, capsys):  # noqa: F811
    """From a run's folder, or from the file of its factors."""
    out = tmp_path / "plans.json"
    methods = ["--methods", "eigendamage", "l1", "--full", "--json", str(out)]
    assert cli.main(["plan", str(tuned), *BUDGETS, *methods]) == 0
    text = capsys.readouterr().out
    torch.manual_seed(3)
    model = tiny_case.net().eval()
    factors = ed.Factors.load(tuned / "factors.safetensors")
    plans = [
        ed.plan(model, factors, target={"flops": value}, method=method, ignored_layers="0", seed=3)
        for method in ("eigendamage", "l1")
        for value in (0.6, 0.3)
    ]
    records = read(out)
    assert records == as_json([plan.record() for plan in plans])
    assert records[0]["layers"] == read(tuned / "plan.json")["layers"]
    for plan in plans:
        assert str(plan) in text and f"({plan.flops_after / plan.flops_before:.1%})" in text
    assert f"{plans[1].predicted_loss:.3g}" in text and "1 of 3" in text
    assert len(re.findall(r"^(?:eigendamage|l1), 1 % of FLOPs: cannot be met", text, re.M)) == 2
    ed.save(model, tmp_path / "net.safetensors")
    alone = [
        str(tuned / "factors.safetensors"),
        "--model",
        str(tmp_path / "net.safetensors"),
        "--ignore",
        "0",
    ]
    assert cli.main(["plan", *alone, *BUDGETS]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" eigendamage")]
    assert len(rows) == 2 and all(row in text for row in rows)


def test_plan_says_what_is_wrong(tuned, tmp_path, capsys):  # noqa: F811
    assert cli.main(["plan", str(tuned), "--flops", "1%"]) == 1
    assert capsys.readouterr().out.startswith("eigendamage, 1 % of FLOPs: cannot be met")
    for factors, message in (
        (tmp_path / "absent", "must name a file"),
        (tmp_path, "factors must be a file, or a run's folder"),
        (tuned / "net.safetensors", "must have the format 'eigendamage-factors'"),
    ):
        assert cli.main(["plan", str(factors), "--flops", "50%", "--model", "tiny_case:net"]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["plan", str(tuned), "--flops", "50%", "--seed", "4"]) == 1
    assert "got one with other weights" in capsys.readouterr().err
    assert cli.main(["plan", str(tuned), "--flops", "50%", "--method", "c-obd"]) == 1
    assert "diagonal" in capsys.readouterr().err
    assert cli.main(["plan", str(tuned / "factors.safetensors"), "--flops", "50%"]) == 2
    assert "must have 'model'" in capsys.readouterr().err
