"""Replacing layers wherever they hang, and the model as it was where that fails."""

import pytest
import torch
from random_factors import random_factors
from small_nets import EXAMPLE, Net, same, snapshot
from torch import nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.surgery import rebuild

PLACES = ("stem.0", "blocks.0", "blocks.1", "branches.pw", "hidden", "head")


def full_rank_plan(net):
    plan = ed.plan(net, random_factors(net, EXAMPLE), target={"flops": 1})
    for name in PLACES:
        plan.set(name, form="both")
    return plan


def test_every_container_is_rebuilt_and_at_full_rank_computes_the_same():
    net = Net().eval()
    x = torch.randn(4, *EXAMPLE)
    expected = net(x)
    result = full_rank_plan(net).apply(net)
    for name in PLACES:
        rebuilt = result.model.get_submodule(name)
        assert [child for child, _ in rebuilt.named_children()] == [
            "input_rotation",
            "core",
            "output_rotation",
        ]
    assert type(result.model.blocks) is nn.ModuleList and len(result.model.stem) == 3
    assert [n for n, _ in result.model.named_children()] == [n for n, _ in net.named_children()]
    assert (result.model(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_original_is_left_as_it_was_and_shares_no_memory():
    net = Net().train()
    net.blocks.eval()
    net.hidden.weight.requires_grad_(False)
    plan = full_rank_plan(net)
    before = snapshot(net)
    model = plan.apply(net).model
    assert same(before, snapshot(net))
    ours = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert not ours & {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert model.training and not model.blocks[0].core.training and model.head.core.training
    assert not model.hidden.core.weight.requires_grad and model.hidden.output_rotation.bias.requires_grad


def test_in_place_the_model_itself_is_rebuilt():
    net = Net().eval()
    norm = net.stem[1]
    result = full_rank_plan(net).apply(net, inplace=True)
    assert result.model is net and net.stem[1] is norm
    assert isinstance(net.head, nn.Sequential)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_builder_that_fails_leaves_the_model_as_it_was(inplace, error):
    net = Net()

    def fail(layer):
        raise error

    before = snapshot(net)
    with pytest.raises(error):
        rebuild(net, {"stem.0": lambda layer: nn.Identity(), "head": fail}, inplace=inplace)
    assert same(before, snapshot(net))


def test_a_forward_that_fails_leaves_the_model_as_it_was():
    net = Net()
    plan = full_rank_plan(net)
    net.up = nn.ConvTranspose2d(7, 7, 1)
    before = snapshot(net)
    with pytest.raises(RuntimeError, match="channels"):
        plan.apply(net, inplace=True)
    assert same(before, snapshot(net))
