"""`prune` from data to a smaller network, and what it leaves untouched."""

import pytest
import torch
from small_nets import COVERED, EXAMPLE, Net, same, snapshot
from torch import nn

import eigendamage_ext as ed


def loader(batches=2):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(8, *EXAMPLE, generator=generator), torch.randint(5, (8,), generator=generator))
        for _ in range(batches)
    ]


@pytest.fixture
def net():
    return Net().eval()


def prune(net, batches=None, **keywords):
    return ed.prune(net, batches or loader(), **{"target": {"flops": 0.5}, "progress": False, **keywords})


def test_from_data_to_a_smaller_network_that_still_works(net):
    before = snapshot(net)
    result = prune(net)
    assert same(before, snapshot(net))
    assert 0.49 <= result.flops_after / result.flops_before <= 0.5
    assert result.model(loader()[0][0]).shape == (8, 5)
    assert str(result).startswith('eigendamage, target {"flops": 0.5}')
    assert set(result.plan) == set(COVERED)


def test_it_is_the_three_steps_in_one(net):
    factors = ed.estimate_factors(net, loader(), fisher="exact", progress=False)
    steps = ed.plan(net, factors, target={"params": 0.6}, round_to=2).apply(net)
    for result in (
        prune(net, target={"params": 0.6}, round_to=2, fisher="exact"),
        ed.prune(net, None, target={"params": 0.6}, round_to=2, factors=factors),
    ):
        assert str(result) == str(steps)
        expected = steps.model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in result.model.state_dict().items())


def test_layers_to_be_ignored_are_looked_for_before_the_data_is_read(net):
    def unread():
        pytest.fail("the loader was read")
        yield

    with pytest.raises(ValueError, match=r"ignored_layers must match layers .*got 'stem\.1'"):
        prune(net, unread(), ignored_layers="stem.1")
    names = (name for name in ("stem.0", "down"))  # which can be read once
    plan = prune(net, ignored_layers=names, prune_head=True).plan
    assert [name for name, row in plan.items() if row.note == "in ignored_layers"] == ["stem.0", "down"]


def test_the_same_seed_gives_the_same_network_and_another_one_does_not(net):
    a, b, c = (prune(net, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert a.keys() != c.keys() or any(a[n].shape != c[n].shape or not torch.equal(a[n], c[n]) for n in a)


def test_a_small_cut_hurts_less_than_random_directions_would():
    """On a net that has learned something, the planned directions beat as many random ones."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 3, 8, 8, generator=generator)
    y = torch.randint(5, (256,), generator=generator)
    x = centres[y] + 0.7 * torch.randn(256, 3, 8, 8, generator=generator)
    net = Net()
    batches = list(zip(x.split(64), y.split(64), strict=True))
    ed.train(net, batches, epochs=8, lr=0.05, progress=False)
    dense = ed.mean_loss(net, batches)
    result = prune(net, batches, target={"flops": 0.4}, fisher="exact")
    planned = ed.mean_loss(result.model, batches) - dense

    losses = []
    for _ in range(5):
        for row in result.plan.values():
            scores = result.plan.scores(row.name)
            for basis in (scores.input_basis, scores.output_basis) if row.form != "dense" else ():
                noise = torch.randn(basis.shape, dtype=basis.dtype, generator=generator)
                basis.copy_(torch.linalg.qr(noise).Q)
        losses.append(ed.mean_loss(result.plan.apply(net).model, batches) - dense)
    assert planned < 0.5 * sum(losses) / len(losses)


def test_in_place(net):
    result = prune(net, inplace=True)
    assert result.model is net and any(
        isinstance(m, nn.Sequential) and hasattr(m, "core") for m in net.modules()
    )


@pytest.mark.parametrize("inplace", [False, True])
def test_an_exception_leaves_the_model_as_it_was(net, inplace):
    def interrupted():
        yield loader()[0]
        raise KeyboardInterrupt

    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        prune(net, interrupted(), inplace=inplace)
    with pytest.raises(ValueError, match="nearest reachable value"):
        prune(net, target={"flops": 1e-6}, inplace=inplace)
    assert same(before, snapshot(net))


@pytest.mark.parametrize(
    "wrong",
    [{"target": {"flops": 2}}, {"method": "magic"}, {"max_ratio": 2}, {"round_to": 0}, {"scores": "fisher"}],
    ids=str,
)
def test_settings_are_checked_before_the_data_is_read(net, wrong):
    def unread():
        pytest.fail("the loader was read")
        yield

    with pytest.raises(ValueError, match="plan: "):
        prune(net, unread(), **wrong)


def test_second_moments_are_measured_by_a_second_pass(net):
    settings = {"target": {"flops": 0.6}, "scores": "ekfac", "progress": False}
    result = ed.prune(net, loader(), max_examples=12, **settings)
    factors = ed.estimate_factors(net, loader(), max_examples=12, progress=False)
    with pytest.raises(ValueError, match="plan: factors must have second moments"):
        ed.prune(net, None, factors=factors, **settings)
    later = ed.prune(net, loader(), factors=factors, max_examples=12, **settings)
    again = ed.prune(net, None, factors=factors, **settings)
    assert factors.settings.moments_count == 12
    assert str(result) == str(later) == str(again) != str(prune(net, target={"flops": 0.6}, max_examples=12))


def test_a_loader_that_is_over_after_one_pass_is_refused_before_it_is_read(net):
    def unread():
        pytest.fail("the loader was read")
        yield

    with pytest.raises(TypeError, match=r"prune: loader must be readable twice .*got a generator"):
        prune(net, unread(), scores="ekfac")


def test_without_factors_a_loader_is_needed(net):
    with pytest.raises(ValueError, match="prune: loader must yield batches"):
        ed.prune(net, None, target={"flops": 0.5})


def test_a_model_that_is_one_layer_is_refused_with_the_remedy():
    batches = [(torch.randn(4, 6), torch.randint(3, (4,)))]
    with pytest.raises(ValueError, match=r"it is the whole model; wrap it in nn\.Sequential"):
        prune(nn.Linear(6, 3), batches)


def test_layers_chosen_for_the_factors_limit_what_is_cut(net):
    result = prune(net, target={"flops": 0.9}, layers="blocks.*")
    assert list(result.plan) == ["blocks.0", "blocks.1"]
    assert result.plan.skipped["hidden"] == "not in `layers`"


@pytest.mark.cuda
def test_on_a_gpu_the_smaller_network_stays_there(net, tmp_path):
    net = net.cuda().to(memory_format=torch.channels_last)
    result = prune(net)
    assert all(p.is_cuda for p in result.model.parameters())
    assert result.flops_after <= 0.5 * result.flops_before
    result.save(tmp_path / "net")
    loaded = ed.load(tmp_path / "net", into=net)
    x = torch.randn(4, *EXAMPLE, device="cuda")
    assert torch.equal(loaded(x), result.model(x))
