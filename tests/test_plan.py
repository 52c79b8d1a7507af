"""Plans: budgets on whole networks, what is left alone and why, editing, the table, what is refused."""

import copy
import io
import json

import pytest
import torch
from random_factors import eigenbasis, random_factors, random_layer_factors
from rich.console import Console
from small_nets import COVERED, EXAMPLE, Net, same, snapshot
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.pruning.direction_plan import Candidate
from eigendamage_ext.pruning.forms import available
from eigendamage_ext.pruning.measure import measure
from eigendamage_ext.pruning.methods.eigendamage import eigendamage_scores


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def factors(net):
    return random_factors(net, EXAMPLE)


def count(model, x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


NETS = {
    "small": (Net, EXAMPLE),
    "resnet": (lambda: ResNet(depth=8, widths=(8, 16, 24), num_classes=10, shortcut="B"), (3, 16, 16)),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)),
        (20,),
    ),
    "sequence": (
        lambda: nn.Sequential(
            nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.Linear(64, 4), nn.Flatten()
        ),
        (7, 64),
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "target", [{"flops": 0.8}, {"flops": "50%"}, {"params": 0.55}, {"ratio": 0.5}], ids=str
)
def test_the_target_is_met_and_the_plan_tells_the_measured_costs(name, target):
    make, shape = NETS[name]
    model = make().eval()
    plan = ed.plan(model, random_factors(model, shape), target=target)
    result = plan.apply(model)

    x = torch.zeros(1, *shape)
    assert plan.flops_before == result.flops_before == count(model, x)
    assert plan.flops_after == result.flops_after == count(result.model, x)
    assert plan.params_before == result.params_before == sum(p.numel() for p in model.parameters())
    assert plan.params_after == result.params_after == sum(p.numel() for p in result.model.parameters())
    [(key, _)] = target.items()
    if key == "ratio":
        assert plan.flops_after < plan.flops_before
    else:
        share = getattr(plan, f"{key}_after") / getattr(plan, f"{key}_before")
        assert plan.target[key] - 0.01 <= share <= plan.target[key]
    assert result.model(torch.randn(3, *shape)).shape == model(torch.randn(3, *shape)).shape


def test_at_most_one_percent_below_the_target():
    """No step of this net is larger."""
    make, shape = NETS["resnet"]
    model = make().eval()
    factors = random_factors(model, shape)
    for percent in range(20, 100, 5):
        plan = ed.plan(model, factors, target={"flops": percent / 100})
        assert 0 <= percent / 100 - plan.flops_after / plan.flops_before <= 0.01


def test_everything_kept_is_everything_dense(net, factors):
    plan = ed.plan(net, factors, target={"flops": 1.0})
    assert {row.form for row in plan.values()} == {"dense"}
    assert plan.predicted_loss == 0 and plan.flops_after == plan.flops_before
    x = torch.randn(2, *EXAMPLE)
    assert torch.equal(plan.apply(net).model(x), net(x))


def test_unreachable_targets_name_the_nearest_value_and_that_one_works(net, factors):
    before = snapshot(net)
    for key, wanted in (("flops", 0.01), ("params", "1%"), ("ratio", 0.99)):
        with pytest.raises(ValueError, match=f"plan: target must be reachable, got .*{key}") as error:
            ed.plan(net, factors, target={key: wanted})
        nearest = json.loads(str(error.value).split("value is ")[1].split(", with")[0])
        ed.plan(net, factors, target=nearest)
    assert same(before, snapshot(net))


def test_layers_left_alone_and_why(net, factors):
    plan = ed.plan(net, factors, target={"flops": 0.6})
    assert tuple(plan) == COVERED and len(plan) == len(COVERED)
    assert "up" not in plan and "ConvTranspose2d" in plan.skipped["up"]
    assert plan["head"].note == "the head; prune_head=True cuts it"
    assert plan["branches.dw"].note == "one channel in and out of each group: no direction to cut"
    assert plan["down"].note.startswith("strided 1×1")
    assert {plan[name].form for name in ("head", "branches.dw", "down")} == {"dense"}
    cut = [row for row in plan.values() if row.form != "dense"]
    assert cut and not any(row.note for row in cut)
    assert all(row.note for row in plan.values() if row.form == "dense")


def test_a_side_without_rotation_keeps_everything_and_loses_nothing_for_it(net, factors):
    plan = ed.plan(net, factors, target={"flops": 0.5})
    forms = {row.form for row in plan.values()}
    assert forms >= {"dense", "both"} and forms & {"input", "output"}
    for row in plan.values():
        if row.form in ("dense", "output"):
            assert row.input_rank == row.spec.in_per_group
        if row.form in ("dense", "input"):
            assert row.output_rank == row.spec.out_per_group
        assert (row.predicted_loss == 0) == (row.form == "dense")
        assert row.form == "dense" or row.flops.after < row.flops.before


@pytest.mark.parametrize(
    ("ignored", "untouched"),
    [
        ("blocks.0", ["blocks.0"]),
        (["blocks.*", "stem.0"], ["blocks.0", "blocks.1", "stem.0"]),
        (nn.Linear, ["hidden", "head"]),
        ((nn.Conv2d, "head"), [name for name in COVERED if name != "hidden"]),
    ],
)
def test_ignored_layers(net, factors, ignored, untouched):
    plan = ed.plan(net, factors, target={"ratio": 0.6}, ignored_layers=ignored, prune_head=True)
    assert [name for name, row in plan.items() if row.note == "in ignored_layers"] == sorted(
        untouched, key=COVERED.index
    )
    assert all(plan[name].form == "dense" for name in untouched)


def test_an_ignored_name_that_does_not_exist_is_refused_with_the_nearest(net, factors):
    with pytest.raises(ValueError, match=r"plan: ignored_layers .*got 'blocks\.7'.*'blocks\.0'"):
        ed.plan(net, factors, target={"flops": 0.5}, ignored_layers="blocks.7")


def test_prune_head(net, factors):
    plan = ed.plan(net, factors, target={"params": 0.45}, prune_head=True)
    assert plan["head"].form != "dense"


def test_the_head_is_found_where_it_is_not_the_last_layer():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits, self.aside = nn.Linear(6, 3), nn.Linear(6, 6)

        def forward(self, x):
            y = self.logits(x).view(-1, 3)
            self.aside(x)
            return y

    class Convolutional(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    assert measure(Odd(), torch.zeros(1, 6)).head == "logits"
    assert measure(Convolutional(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)), torch.zeros(1, 3, 6, 6)).head == "1"


@pytest.mark.parametrize("allocation", ["threshold", "least_loss"])
def test_second_moments_as_scores(net, allocation):
    """Θ of every layer is that of a dense computation, and the plan says what it was made with."""
    data = [torch.randn(8, *EXAMPLE)]
    factors = ed.estimate_factors(net, data, progress=False)
    factors.second_moments(net, data, progress=False)
    settings = {"target": {"flops": 0.5}, "allocation": allocation}
    plan = ed.plan(net, factors, scores="ekfac", **settings)
    basis = factors.eigenbasis()
    for name, row in plan.items():
        scores, spec = plan.scores(name), row.spec
        if scores is None:
            continue
        Q_A, Q_G = (
            e.vectors.double().reshape(spec.groups, *e.vectors.shape[-2:])
            for e in (basis[name].A, basis[name].G)
        )
        weight = net.get_submodule(name).weight.detach().double()
        weight = weight.reshape(spec.groups, spec.out_per_group, spec.in_per_group, -1)
        rotated = torch.einsum("gxo,gxyk,gyi->goik", Q_G, weight, Q_A)
        theta = (factors[name].S.double().reshape(rotated.shape) * rotated**2).sum(-1)
        for g in range(spec.groups):
            outputs, inputs = scores.output_order[g], scores.input_order[g]
            theta[g] = theta[g][outputs][:, inputs]
        torch.testing.assert_close(scores.importance, theta.sum(0), rtol=1e-3, atol=1e-5 * theta.max().item())
        kept = scores.importance[: row.output_rank, : row.input_rank].sum()
        assert row.predicted_loss == pytest.approx(
            0.5 * float(scores.importance.sum() - kept), rel=1e-9, abs=1e-12
        )
    assert plan.settings["scores"] == "ekfac" and plan.settings["factors"]["moments_count"] == 8
    assert str(plan).splitlines()[0].endswith("ekfac scores")
    plain = ed.plan(net, factors, **settings)
    assert str(plain).splitlines()[0].endswith("kfac scores") and plain.settings["scores"] == "kfac"
    assert plain.predicted_loss != plan.predicted_loss


@pytest.mark.parametrize("max_ratio", [0.0, 0.3, 0.5])
def test_max_ratio(net, factors, max_ratio):
    plan = ed.plan(net, factors, target={"ratio": 0.85 * max_ratio}, max_ratio=max_ratio, prune_head=True)
    for row in plan.values():
        assert row.spec.in_per_group - row.input_rank <= max_ratio * row.spec.in_per_group
        assert row.spec.out_per_group - row.output_rank <= max_ratio * row.spec.out_per_group


def test_round_to(net, factors):
    plan = ed.plan(net, factors, target={"flops": 0.6}, round_to=4)
    assert any(row.form != "dense" for row in plan.values())
    for row in plan.values():
        assert row.input_rank % 4 == 0 or row.input_rank == row.spec.in_per_group
        assert row.output_rank % 4 == 0 or row.output_rank == row.spec.out_per_group
    grouped = plan["blocks.1"]
    assert grouped.spec.groups == 2 and grouped.spec.in_per_group == 8


def test_where_all_rotations_pay_the_ratio_is_the_share_of_directions_cut():
    model = nn.Sequential(*(nn.Conv2d(20, 20, 3, padding=1) for _ in range(3))).eval()
    plan = ed.plan(model, random_factors(model, (20, 6, 6)), target={"ratio": 0.6}, prune_head=True)
    assert {row.form for row in plan.values()} == {"both"}
    assert sum(40 - row.input_rank - row.output_rank for row in plan.values()) == 0.6 * 3 * 40
    kept, cut = [], []
    for name, row in plan.items():
        scores = plan.scores(name)
        kept += scores.input_scores[: row.input_rank] + scores.output_scores[: row.output_rank]
        cut += scores.input_scores[row.input_rank :] + scores.output_scores[row.output_rank :]
    assert min(kept) >= max(cut)


def test_plans_are_deterministic_and_nothing_is_disturbed(net, factors):
    net.train()
    before = snapshot(net)
    texts = {str(ed.plan(net, factors, target={"flops": 0.5})) for _ in range(2)}
    assert len(texts) == 1
    assert same(before, snapshot(net))


def test_example_inputs_set_the_resolution(net, factors):
    small = ed.plan(net, factors, target={"flops": 0.5})
    large = ed.plan(net, factors, target={"flops": 0.5}, example_inputs=torch.randn(3, 3, 16, 16))
    assert large.flops_before > 3.5 * small.flops_before
    assert large.flops_before == count(net, torch.zeros(1, 3, 16, 16))
    assert large.apply(net).flops_after == large.flops_after


def test_layers_the_example_does_not_reach_once_are_skipped():
    class Branchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.never, self.head = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            return self.head(self.twice(self.twice(self.once(x))))

    model = Branchy().eval()
    plan = ed.plan(model, random_factors(model, (8,)), target={"flops": 0.9})
    assert list(plan) == ["once", "head"]
    assert "several times" in plan.skipped["twice"] and "not called" in plan.skipped["never"]


def test_among_equally_cheap_forms_the_one_that_loses_less_is_taken():
    model = nn.Linear(12, 12)
    spec = LayerSpec.of("layer", model)
    scores = eigendamage_scores(spec, model, eigenbasis(random_layer_factors(spec)))
    candidate = Candidate(spec, (1, 1), scores, available(spec))
    for rank in range(1, 6):
        row = candidate.cheapest(rank, rank, "flops")
        losses = {"input": scores.predicted_loss(rank, 12), "output": scores.predicted_loss(12, rank)}
        assert row.predicted_loss == losses[row.form] == min(losses.values())


# Editing


def test_set_recomputes_costs_and_loss(net, factors):
    plan = ed.plan(net, factors, target={"flops": 1.0})
    plan.set("blocks.0", input_rank=4, output_rank=6)
    row = plan["blocks.0"]
    assert (row.form, row.input_rank, row.output_rank, row.note) == ("both", 4, 6, "set by hand")
    assert row.params.after == 16 * 4 + 9 * 4 * 6 + 6 * 16 + 16
    assert row.predicted_loss > 0
    plan.set("blocks.0", output_rank=16)
    assert (plan["blocks.0"].form, plan["blocks.0"].input_rank) == ("input", 4)
    assert plan["blocks.0"].predicted_loss < row.predicted_loss
    plan.set("head", form="both")
    assert (plan["head"].form, plan["head"].input_rank, plan["head"].output_rank) == ("both", 24, 5)
    result = plan.apply(net)
    assert (result.params_after, result.flops_after) == (plan.params_after, plan.flops_after)
    plan.set("blocks.0", form="dense")
    plan.set("head", form="dense")
    assert plan.flops_after == plan.flops_before and plan.predicted_loss == 0


@pytest.mark.parametrize(
    ("name", "edit", "error", "message"),
    [
        (
            "block.0",
            {"form": "dense"},
            ValueError,
            "must be a layer of the plan, got 'block.0'; .*'blocks.0'",
        ),
        ("up", {"form": "dense"}, ValueError, "got 'up'; it was skipped: ConvTranspose2d"),
        (
            "blocks.0",
            {"form": "tucker"},
            ValueError,
            "form must be one of dense, input, output, both, depthwise, got 'tucker'",
        ),
        ("blocks.0", {"input_rank": 0}, ValueError, r"input_rank of 'blocks.0' must lie in 1…16, got 0"),
        ("blocks.0", {"output_rank": 17}, ValueError, r"1…16, got 17"),
        ("blocks.1", {"output_rank": 9}, ValueError, r"1…8, got 9"),
        ("blocks.0", {"input_rank": 2.0}, TypeError, "input_rank must be an integer, got 2.0"),
        ("blocks.0", {"input_rank": True}, TypeError, "must be an integer, got True"),
        (
            "blocks.0",
            {"form": "output", "input_rank": 4},
            ValueError,
            "left out for form 'output', which keeps all 16",
        ),
        ("branches.dw", {"form": "both"}, ValueError, "must be dense, got 'both'; one channel in and out"),
        ("down", {"input_rank": 4}, ValueError, "must be dense, got 'input'; strided 1×1"),
    ],
)
def test_bad_edits_are_refused_and_change_nothing(net, factors, name, edit, error, message):
    plan = ed.plan(net, factors, target={"flops": 0.6})
    before = dict(plan)
    with pytest.raises(error, match=message):
        plan.set(name, **edit)
    assert dict(plan) == before


# The table


def test_the_table_names_every_layer_form_and_reason(net, factors):
    plan = ed.plan(net, factors, target={"flops": 0.5})
    lines = str(plan).splitlines()
    assert "\x1b" not in str(plan) and "…" not in str(plan)
    for name, row in plan.items():
        [line] = [line for line in lines if line.split() and line.split()[0] == name]
        assert row.form in line and line.endswith(row.note)
        assert f"{row.input_rank}/{row.spec.in_per_group}" in line
        assert f"{row.output_rank}/{row.spec.out_per_group}" in line
    assert any("ConvTranspose2d" in line for line in lines)
    assert f"({plan.flops_after / plan.flops_before:.1%})" in lines[-1]
    result = plan.apply(net)
    measured = f"parameters {result.params_before:,} → {result.params_after:,}"
    assert str(result).startswith(str(plan)) and measured in str(result).splitlines()[-1]


def test_long_names_are_not_cut_off():
    name = "a_very_long_name_" * 10
    model = nn.Sequential()
    model.add_module(name, nn.Linear(8, 8))
    model.add_module("[bold]", nn.Linear(8, 2))
    text = str(ed.plan(model, random_factors(model, (8,)), target={"flops": 1}))
    assert name in text and "[bold]" in text
    Console(file=io.StringIO(), width=40).print(text)


# What a plan refuses


def test_factors_of_another_kind(net):
    with pytest.raises(
        ValueError, match=r"factors must be of kind 'channel' .*got 'patch'; .*kind='channel'"
    ):
        ed.plan(net, random_factors(net, EXAMPLE, kind="patch"), target={"flops": 0.5})


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"target": {"flops": 2}}, ValueError, "target"),
        ({"method": "magic"}, ValueError, "method must be one of eigendamage.*, got 'magic'"),
        ({"scores": "fisher"}, ValueError, "scores must be one of kfac, ekfac, got 'fisher'"),
        (
            {"scores": "ekfac"},
            ValueError,
            r"factors must have second moments .*got none; call factors\.second_moments\(model, loader\)",
        ),
        ({"max_ratio": 1.5}, ValueError, r"max_ratio must lie in \[0, 1\]"),
        ({"max_ratio": float("nan")}, ValueError, r"max_ratio must lie in \[0, 1\]"),
        ({"max_ratio": "half"}, TypeError, "max_ratio must be a number, got 'half'"),
        ({"round_to": 0}, ValueError, "round_to must be at least 1, got 0"),
        ({"round_to": 2.5}, TypeError, "round_to must be an integer, got 2.5"),
        (
            {"ignored_layers": [3]},
            TypeError,
            "ignored_layers must hold layer names, globs or module types, got 3",
        ),
        ({"example_inputs": [1]}, TypeError, "example_inputs must be a tensor, a tuple or .*, got list"),
        (
            {"example_inputs": torch.zeros(0, 3, 8, 8)},
            ValueError,
            "must hold an example, got none; pass a batch that is not empty",
        ),
    ],
)
def test_bad_arguments(net, factors, keywords, error, message):
    with pytest.raises(error, match=f"plan: .*{message}"):
        ed.plan(net, factors, **{"target": {"flops": 0.5}, **keywords})


def test_another_model_is_refused_by_layer(net, factors):
    plan = ed.plan(net, factors, target={"flops": 0.6})
    wider, renamed = copy.deepcopy(net), copy.deepcopy(net)
    wider.hidden = nn.Linear(32, 48)
    del renamed.hidden
    for call in (lambda m: plan.apply(m), lambda m: ed.plan(m, factors, target={"flops": 0.6})):
        with pytest.raises(ValueError, match=r"layer 'hidden' of model .*out_channels 48 instead of 24"):
            call(wider)
        with pytest.raises(ValueError, match=r"model must have the Linear 'hidden' of .*got no such layer"):
            call(renamed)
    applied = plan.apply(net).model
    with pytest.raises(
        ValueError, match=r"layer 'stem\.0' of model must be as in the plan, got out_channels 9"
    ):
        plan.apply(applied)


def test_whole_networks_of_the_paper():
    for classes, params, flops in ((10, 7_427_914, 2_201_359_360), (100, 7_451_044, 2_201_405_440)):
        model = ResNet(depth=32, widths=(64, 128, 256), num_classes=classes, shortcut="B")
        measured = measure(model, torch.zeros(1, 3, 32, 32))
        assert (measured.params, measured.flops) == (params, flops)
