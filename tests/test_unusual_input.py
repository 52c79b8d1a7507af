"""Models and arguments that are not quite what is expected: hooks, another dtype, wrong types."""

import sys

import pytest
import torch
from torch import nn

import eigendamage_ext as ed

X = torch.zeros(1, 3, 8, 8)


def net():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip


def loader(dtype=torch.float32):
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return [(x.to(dtype), torch.arange(8) % 4)]


def l1(model, **keywords):
    return ed.plan(model, **{"target": {"flops": 0.5}, "method": "l1", "example_inputs": X, **keywords})


def test_backward_hooks_of_the_user_change_no_plan():
    model = net()
    expected = l1(model).record()
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
        module.register_full_backward_pre_hook(lambda *_: None)
    assert l1(model).record() == expected
    assert all(len(module._backward_hooks) == 1 for module in model.modules())


@pytest.mark.parametrize("method", ["l1", "eigendamage"])
def test_a_plan_goes_to_the_same_model_in_another_dtype(method):
    model = net()
    factors = None if method == "l1" else ed.estimate_factors(model, loader(), progress=False)
    plan = l1(model, factors=factors, method=method)
    result, other = plan.apply(model), plan.apply(net().double())
    assert (result.flops_after, result.params_after) == (other.flops_after, other.params_after)
    assert {p.dtype for p in other.model.parameters()} == {torch.float64}


def test_where_nothing_may_be_cut_the_error_says_why():
    message = r"filters that method='nn-slimming' may cut, got none \('0': no batch norm scales its channels"
    with pytest.raises(ValueError, match=message):
        l1(net(), method="nn-slimming")
    with pytest.raises(ValueError, match=r"may cut, got none \('0': in ignored_layers; '2': in ignored"):
        l1(net(), ignored_layers=nn.Conv2d)
    assert l1(net(), ignored_layers="*", target={"flops": 1.0}).flops_after == l1(net()).flops_before


def test_plans_name_the_nearest_layers_in_the_name_of_what_was_called():
    model = net()
    factors = ed.estimate_factors(model, loader(), progress=False)
    filters, directions = l1(model), l1(model, factors=factors, method="eigendamage")
    for plan, call in ((filters, "scores"), (filters, "kept"), (directions, "scores")):
        with pytest.raises(ValueError, match=rf"plan\.{call}: name .* got '7'; the nearest names are '5'"):
            getattr(plan, call)("7")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ed.prune(None, loader(), target={"flops": 0.5}, method="l1"), "prune: model must be"),
        (lambda: l1(None), "plan: model must be an nn.Module, got NoneType"),
        (lambda: l1(net()).apply(None), "apply: model must be an nn.Module, got NoneType"),
        (lambda: l1(net(), factors=loader()), "plan: factors must be Factors or None, got list; call"),
        (lambda: l1(net(), ignored_layers=None), "plan: ignored_layers must hold layer names.* got None;"),
    ],
)
def test_wrong_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_what_is_not_installed_is_missed_before_the_data_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning.dependency", None)
    batches, read = loader(), []

    class Loader:
        def __iter__(self):
            read.append(1)
            return iter(batches)

    with pytest.raises(ImportError, match="torch_pruning must be installed"):
        ed.prune(net(), Loader(), target={"flops": 0.5}, method="kron-obd", progress=False)
    assert not read
    ed.prune(net(), Loader(), target={"flops": 0.9}, progress=False)
    assert read


@pytest.mark.parametrize("method", ["l1", "kron-obs", "eigendamage"])
def test_what_was_pruned_under_inference_mode_can_be_trained(method):
    model = net()
    expected = ed.prune(model, loader(), target={"flops": 0.8}, method=method, progress=False)
    with torch.inference_mode():
        result = ed.prune(model, loader(), target={"flops": 0.8}, method=method, progress=False)
    for one, other in zip(result.model.parameters(), expected.model.parameters(), strict=True):
        assert not one.is_inference() and torch.equal(one, other)
    result.model(loader()[0][0]).sum().backward()
