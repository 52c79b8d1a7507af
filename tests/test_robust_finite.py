"""NaN and infinity, planted anywhere, are found where they are and named before they spread."""

import copy
import math

import pytest
import torch
from nets import Cliff
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.methods import METHODS

X, Y = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
LOADER = [(X[:4], Y[:4]), (X[4:], Y[4:])]
HALF = {"target": {"flops": 0.5}, "example_inputs": X}
PASSES = ("second_moments", "diagonal", "gradients")
bad_numbers = pytest.mark.parametrize("bad", [math.nan, math.inf])


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def planted(name: str, bad: float) -> nn.Sequential:
    model = network()
    model.state_dict()[name].view(-1)[0] = bad
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(value.nan_to_num(7), before[name].nan_to_num(7))
        for name, value in model.state_dict().items()
    )


@pytest.fixture(scope="module")
def factors():
    """For every method, what it needs."""
    found = {}
    for kind in ("channel", "patch"):
        found[kind] = ed.estimate_factors(network(), LOADER, kind=kind, progress=False)
        for second_pass in PASSES:
            getattr(found[kind], second_pass)(network(), LOADER, progress=False)
    return {
        name: found["patch" if method.needs == "patch" else "channel"] for name, method in METHODS.items()
    }


@bad_numbers
@pytest.mark.parametrize("name", ["0.bias", "3.weight", "4.running_var"])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_plans_or_applies_with_a_weight_that_is_not_finite(method, name, bad, factors):
    model, good = planted(name, bad), ed.plan(network(), factors[method], method=method, **HALF)
    before = state(model)
    message = rf"model must be finite, got NaN or infinity in '{name}'; load"
    with pytest.raises(ValueError, match="plan: .*" + message):
        ed.plan(model, factors[method], method=method, **HALF)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="apply: .*" + message):
            good.apply(model, inplace=inplace)
    with pytest.raises(ValueError, match="prune: .*" + message):
        ed.prune(model, iter(()), method=method, target={"flops": 0.5}, factors=factors[method])
    assert unchanged(model, before)


@bad_numbers
@pytest.mark.parametrize("part", ["A", "G"])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs == "patch"])
def test_a_factor_that_is_not_finite_is_named(method, part, bad, factors):
    broken = copy.deepcopy(factors[method])
    getattr(broken["3"], part)[0, 0] = bad
    with pytest.raises(ValueError, match="weight and factors of '3' must be finite"):
        ed.plan(network(), broken, method=method, **HALF)


@bad_numbers
@pytest.mark.parametrize("part", ["A", "G"])
def test_a_factor_without_an_eigenbasis_is_named(part, bad):
    broken = ed.estimate_factors(network(), LOADER, progress=False)
    getattr(broken["3"], part)[0, 0] = bad
    with pytest.raises(ValueError, match=rf"3.*{part}.*not finite"):
        ed.plan(network(), broken, **HALF)


@bad_numbers
@pytest.mark.parametrize("call", ["estimate_factors", *PASSES])
def test_a_pass_names_the_batch_and_where_it_was_seen(call, bad, factors):
    def run(model, loader):
        if call == "estimate_factors":
            return ed.estimate_factors(model, loader, progress=False)
        return getattr(copy.deepcopy(factors["eigendamage"]), call)(model, loader, progress=False)

    spoilt = X[4:].clone()
    spoilt[1, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=rf"{call}: loader .* in the input of batch 1; clean the data"):
        run(network(), [LOADER[0], (spoilt, Y[4:])])
    with pytest.raises(ValueError, match=rf"{call}: weights .* got NaN or infinity in '3.weight'; load"):
        run(planted("3.weight", bad), LOADER)


@pytest.mark.parametrize("autocast", [None, torch.float16])
def test_overflow_in_half_precision_is_found(autocast):
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(2e5)  # of a range that half precision has
    dtype = torch.float32 if autocast else torch.float16
    model, loader = model.to(dtype), [(x.to(dtype), y) for x, y in LOADER]
    with pytest.raises(ValueError, match=r"the input of layer '3' must be finite, .* in batch 0"):
        ed.estimate_factors(model, loader, autocast=autocast, progress=False)


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_tuning_stops_before_the_step_that_would_spoil_the_weights(what):
    model = planted("8.bias", math.inf) if what == "loss" else network().append(Cliff())
    parameters = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=rf"train: {what} must be finite, got nan in epoch 1, step 1 \("):
        ed.finetune(model, LOADER, epochs=1, progress=False)
    assert all(map(torch.equal, model.parameters(), parameters))
    assert all(p.grad is None for p in model.parameters())


def test_statistics_that_are_not_finite_are_refused_and_the_old_ones_come_back():
    model, spoilt = network(), X.clone()
    spoilt[0, 0, 0, 0] = math.nan
    before = state(model)
    with pytest.raises(ValueError, match=r"recalibrate_bn: .* in '1\.running_mean'"):
        ed.recalibrate_bn(model, [LOADER[0], (spoilt, Y)])
    assert unchanged(model, before)


@bad_numbers
def test_rounds_stop_where_tuning_left_numbers_that_are_not_finite(bad):
    pruner = ed.Pruner(network(), LOADER, target={"flops": 0.5}, steps=2, method="l1", progress=False)
    rounds = iter(pruner)
    next(rounds).model[0].bias.data[0] = bad
    with pytest.raises(ValueError, match=r"prune: .* in '0\.bias'"):
        next(rounds)
    assert len(pruner.history) == 1


@bad_numbers
def test_a_file_keeps_what_is_not_finite(bad, tmp_path):
    ed.save(planted("3.weight", bad).eval(), tmp_path / "net")
    loaded = ed.load(tmp_path / "net").state_dict()["3.weight"].view(-1)
    assert not loaded[0].isfinite() and loaded[1:].isfinite().all()
