"""Plans of filters: which go, what that costs, what is coupled, what stays and why."""

import copy
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from small_nets import same, snapshot
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import eigendamage_ext as ed
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.pruning.filter_plan import FilterPlan
from eigendamage_ext.pruning.methods import METHODS

FILTERS = [name for name, method in METHODS.items() if method.needs != "channel"]


class Chain(nn.Module):
    """Convolutions in a row, batch norms between them, and a hidden Linear that sees flattened pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.c = nn.Linear(12 * 16, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.relu(self.b(x)).flatten(1)
        return self.head(F.relu(self.c(x)))


SHAPE = (3, 8, 8)


def chain():
    net = Chain().eval()
    nn.init.uniform_(net.norm.weight, 0.5, 1.5)
    nn.init.uniform_(net.norm.bias, -0.5, 0.5)
    return net


def residual():
    return ResNet(8, (6, 8, 10), num_classes=5, shortcut="B").eval()


def count(model, shape=SHAPE):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    return counter.get_total_flops()


def loader(classes=4, batches=2):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, *SHAPE, generator=generator), torch.randint(classes, (8,), generator=generator))
        for _ in range(batches)
    ]


def l1(net, **keywords):
    given = {"target": {"flops": 0.5}, "method": "l1", "example_inputs": torch.zeros(1, *SHAPE), **keywords}
    return ed.plan(net, **given)


def costs(plan):
    return {"flops": plan.flops_after, "params": plan.params_after}


@pytest.mark.parametrize("make", [chain, residual])
@pytest.mark.parametrize("target", [{"flops": 0.8}, {"flops": 0.4}, {"params": 0.5}, {"ratio": 0.3}], ids=str)
def test_the_plan_tells_the_measured_costs_and_meets_the_target(make, target):
    net = make()
    before = snapshot(net)
    plan = l1(net, target=target)
    assert isinstance(plan, FilterPlan)
    result = plan.apply(net)
    assert same(before, snapshot(net))
    assert plan.flops_before == result.flops_before == count(net)
    assert plan.flops_after == result.flops_after == count(result.model)
    assert plan.params_before == result.params_before == sum(p.numel() for p in net.parameters())
    assert plan.params_after == result.params_after == sum(p.numel() for p in result.model.parameters())
    [(measure, value)] = target.items()
    if measure == "ratio":
        groups = {name: plan.scores(name) for name in plan if plan.scores(name) is not None}
        units = sum(len(scores) for scores in distinct(groups.values()))
        kept = sum(len(plan.kept(name)) for name in first_of_each(plan))
        assert kept == int(0.7 * units)
    else:
        assert costs(plan)[measure] <= value * getattr(plan, f"{measure}_before")


def distinct(scores):
    """Scores of each group once: coupled layers have the same."""
    seen = []
    for one in scores:
        if not any(len(one) == len(other) and torch.equal(one, other) for other in seen):
            seen.append(one)
    return seen


def first_of_each(plan):
    """One layer of each group."""
    seen, names = [], []
    for name in plan:
        scores = plan.scores(name)
        if scores is not None and not any(len(scores) == len(s) and torch.equal(scores, s) for s in seen):
            seen.append(scores)
            names.append(name)
    return names


@pytest.mark.parametrize("make", [chain, residual])
@pytest.mark.parametrize("measure", ["flops", "params"])
def test_no_group_could_keep_one_unit_more(make, measure):
    net = make()
    for share in (0.75, 0.5, 0.3):
        plan = l1(net, target={measure: share})
        for name in first_of_each(plan):
            more = copy.deepcopy(plan)
            kept = len(plan.kept(name))
            if kept < plan[name].spec.out_channels:
                more.set(name, filters=kept + 1)
                assert costs(more)[measure] > share * getattr(plan, f"{measure}_before")


def test_the_smallest_filters_of_all_layers_go():
    net = chain()
    weights = {name: net.get_submodule(name).weight for name in ("a", "b", "c")}
    with torch.no_grad():
        for weight in weights.values():
            scale = 1 + torch.rand(len(weight))
            weight.mul_((scale / weight.abs().flatten(1).sum(1)).reshape(-1, *[1] * (weight.dim() - 1)))
    norms = {name: w.detach().double().abs().flatten(1).sum(1) for name, w in weights.items()}
    ranked = sorted(torch.cat(list(norms.values())).tolist())
    plan = l1(net, target={"ratio": 9 / 30}, max_ratio=1.0)
    for name, norm in norms.items():
        assert plan.kept(name).tolist() == (norm > ranked[8]).nonzero().flatten().tolist()
        torch.testing.assert_close(plan.scores(name), norm)
    assert sum(len(plan.kept(name)) for name in norms) == 21


def test_coupled_layers_keep_the_same_and_their_scores_add():
    net = residual()
    plan = l1(net, target={"flops": 0.5})
    sums = ("conv1", "layer1.0.conv2")
    norm = sum(net.get_submodule(name).weight.detach().double().abs().flatten(1).sum(1) for name in sums)
    for name in sums:
        torch.testing.assert_close(plan.scores(name), norm)
        assert plan.kept(name).tolist() == plan.kept("conv1").tolist()
    strided = ("layer2.0.conv2", "layer2.0.shortcut.0")
    assert plan.kept(strided[0]).tolist() == plan.kept(strided[1]).tolist()
    small = plan.apply(net).model
    assert small.layer2[0].conv1.in_channels == len(plan.kept("conv1"))
    kept = plan.kept("layer2.0.conv1")
    columns = plan.kept("conv1")
    expected = net.layer2[0].conv1.weight[kept][:, columns]
    assert torch.equal(small.layer2[0].conv1.weight, expected)


def test_cutting_equals_zeros_at_the_inputs_of_what_follows():
    net = chain().double()
    plan = l1(net, target={"flops": 0.4}, example_inputs=torch.zeros(1, *SHAPE, dtype=torch.float64))
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for name, follower, pixels in (("a", "b", 1), ("b", "c", 16), ("c", "head", 1)):
            cut = torch.ones(plan[name].spec.out_channels, dtype=torch.bool)
            cut[plan.kept(name)] = False
            masked.get_submodule(follower).weight[:, cut.repeat_interleave(pixels)] = 0
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(plan.apply(net).model(x), masked(x), rtol=1e-10, atol=1e-12)


def test_what_stays_and_why():
    net = residual()
    plan = l1(net, target={"flops": 0.5}, ignored_layers="layer1.0.conv2")
    assert plan["layer1.0.conv2"].note == "in ignored_layers"
    assert plan["conv1"].note == "coupled with 'layer1.0.conv2': in ignored_layers"
    assert len(plan.kept("conv1")) == 6 and plan.scores("conv1") is None
    assert "output" in plan["linear"].note
    text = str(plan)
    assert text.startswith('l1, target {"flops": 0.5}')
    assert "coupled with 'layer1.0.conv2'" in text and "loss +" in text


def test_round_to_and_max_ratio():
    net = residual()
    for name, row in l1(net, target={"flops": 0.5}, round_to=2).items():
        assert row.filters.after % 2 == 0 or row.filters.after == row.filters.before, name
    for name, row in l1(net, target={"flops": 0.7}, max_ratio=0.25).items():
        assert row.filters.after >= 0.75 * row.filters.before, name
    with pytest.raises(ValueError, match="nearest reachable value") as error:
        l1(net, target={"flops": 0.1}, max_ratio=0.25)
    nearest = json.loads(str(error.value).split("value is ")[1].split(", with")[0])
    assert l1(net, target=nearest, max_ratio=0.25).flops_after <= nearest["flops"] * count(net)


def test_set():
    net = residual()
    plan = l1(net, target={"flops": 1.0})
    assert costs(plan) == {"flops": plan.flops_before, "params": plan.params_before}
    plan.set("layer1.0.conv2", filters=4)
    best = plan.scores("conv1").argsort(descending=True)[:4].sort().values
    assert plan.kept("conv1").tolist() == best.tolist()
    assert {plan[name].note for name in ("conv1", "layer1.0.conv2")} == {"set by hand"}
    assert plan["layer1.0.conv1"].inputs == (6, 4) and plan["layer1.0.conv1"].note == ""
    plan.set("layer3.0.shortcut.0", filters=7)
    assert plan["linear"].inputs == (10, 7) and plan["linear"].filters == (5, 5)
    result = plan.apply(net)
    assert (result.flops_after, result.params_after) == (plan.flops_after, plan.params_after)
    for name, filters, error, message in (
        ("conv", 3, ValueError, r"got 'conv'; the nearest names are 'conv1'"),
        ("linear", 3, ValueError, r"may be cut, got 'linear': .*output"),
        ("conv1", 0, ValueError, r"must lie in 1…6, got 0"),
        ("conv1", 7, ValueError, r"must lie in 1…6, got 7"),
        ("conv1", 2.0, TypeError, r"must be an integer, got 2.0"),
        ("conv1", True, TypeError, r"must be an integer, got True"),
    ):
        with pytest.raises(error, match=f"plan.set: .*{message}"):
            plan.set(name, filters=filters)


def test_the_record_is_json_and_names_the_filters():
    net = chain()
    plan = l1(net, target={"flops": 0.5})
    record = json.loads(json.dumps(plan.record(), allow_nan=False))
    assert record["settings"]["method"] == "l1" and record["settings"]["factors"] is None
    assert record["layers"]["b"]["kept"] == plan.kept("b").tolist()
    assert record["predicted_loss"] is None
    assert record["flops"] == [plan.flops_before, plan.flops_after]


def prune(net, method, classes, **keywords):
    return ed.prune(
        net, loader(classes), method=method, **{"target": {"flops": 0.6}, "progress": False, **keywords}
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("make", "classes"), [(chain, 4), (residual, 5)])
def test_every_method_from_data_to_a_smaller_network_that_can_be_kept(method, make, classes, tmp_path):
    net = make()
    before = snapshot(net)
    first, again = (prune(net, method, classes) for _ in range(2))
    assert same(before, snapshot(net))
    assert 0.4 < first.flops_after / first.flops_before <= 0.6
    x = loader(classes)[0][0]
    assert torch.equal(first.model(x), again.model(x))
    assert (first.plan.predicted_loss is not None) == getattr(METHODS[method], "predicts", True)
    first.save(tmp_path / "net.safetensors")
    assert torch.equal(ed.load(tmp_path / "net.safetensors", into=make())(x), first.model(x))


@pytest.mark.parametrize("method", FILTERS)
def test_one_call_is_the_steps_one_by_one(method):
    net, needs = residual(), METHODS[method].needs
    factors = None
    if needs:
        kind = "patch" if needs == "patch" else "channel"
        factors = ed.estimate_factors(net, loader(5), kind=kind, seed=5, progress=False)
        if needs == "diagonal":
            factors.diagonal(net, loader(5), progress=False)
        if needs == "gradient":
            factors.gradients(net, loader(5), progress=False)
    example = torch.zeros(1, *SHAPE)
    steps = ed.plan(
        net, factors, target={"params": 0.6}, method=method, seed=5, example_inputs=example
    ).apply(net)
    result = prune(net, method, 5, target={"params": 0.6}, seed=5)
    assert str(result) == str(steps)
    for a, b in itertools.zip_longest(result.model.parameters(), steps.model.parameters()):
        assert torch.equal(a, b)


def test_updates_are_made_of_the_weights_at_hand():
    """Kron-OBS: kept rows gain G_KK⁻¹ G_KR W_R, of whichever weights the plan is applied to."""
    net = chain().double()
    factors = ed.estimate_factors(net, loader64(), kind="patch", progress=False)
    plan = ed.plan(net, factors, target={"flops": 0.6}, method="kron-obs", damping=0.1)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.b.weight.mul_(1.5)
        other.b.bias.add_(0.25)
    G = factors["b"].G
    G = G + 0.1 * G.diagonal().mean() * torch.eye(len(G), dtype=G.dtype)
    kept = plan.kept("b")
    gone = torch.tensor([row for row in range(12) if row not in kept.tolist()])
    assert len(gone)
    W = torch.cat([other.b.weight.detach().flatten(1), other.b.bias.detach()[:, None]], 1)
    expected = W[kept] + torch.linalg.solve(G[kept][:, kept], G[kept][:, gone] @ W[gone])
    small = plan.apply(other).model
    columns = plan.kept("a")
    weight = expected[:, :-1].reshape(len(kept), 8, 3, 3)[:, columns]
    torch.testing.assert_close(small.b.weight.detach(), weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(small.b.bias.detach(), expected[:, -1], rtol=1e-9, atol=1e-12)


def loader64():
    return [(x.double(), y) for x, y in loader()]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"method": "kron-obd"}, ValueError, r"factors must be given for method='kron-obd', got None"),
        (
            {"example_inputs": None},
            ValueError,
            "example_inputs must be an input .* no factors are given",
        ),
        ({"scores": "ekfac"}, ValueError, r"scores must be left at 'kfac' for method='l1'"),
        ({"allocation": "least_loss"}, ValueError, r"allocation must be left at 'threshold'"),
        ({"damping": -1.0}, ValueError, "damping must be a number from 0 on, got -1.0"),
        ({"damping": "1"}, TypeError, "damping must be a number, got '1'"),
        ({"reference_compat": "no"}, TypeError, "reference_compat must be True or False, got 'no'"),
        ({"prune_head": 1}, TypeError, "prune_head must be True or False, got 1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
        ({"ignored_layers": "nothing"}, ValueError, "ignored_layers must match layers .*got 'nothing'"),
    ],
)
def test_bad_arguments(keywords, error, message):
    with pytest.raises(error, match=f"plan: {message}"):
        l1(chain(), **keywords)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("c-obs", "factors must be of kind 'patch' for method='c-obs', got 'channel'"),
        ("c-obd", r"factors must have the diagonal .*factors.diagonal\(model, loader\)"),
        ("taylor", r"factors must have the gradient .*factors.gradients\(model, loader\)"),
    ],
)
def test_factors_that_lack_what_the_method_reads(method, message):
    net = chain()
    factors = ed.estimate_factors(net, loader(), progress=False)
    with pytest.raises(ValueError, match=message):
        ed.plan(net, factors, target={"flops": 0.5}, method=method)


def test_layers_without_factors_keep_their_filters():
    net = chain()
    factors = ed.estimate_factors(net, loader(), kind="patch", layers=["a", "c"], progress=False)
    plan = ed.plan(net, factors, target={"flops": 0.8}, method="kron-obd")
    assert plan["b"].note == "no factors: not in `layers`"
    assert len(plan.kept("b")) == 12 and len(plan.kept("a")) < 8
