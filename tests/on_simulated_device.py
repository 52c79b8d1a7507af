"""The method on a device, compared bit by bit with the CPU; test_simulated_device.py runs this alone."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from simulated_device import DEVICE, SimulatedTensor, Simulation, move, send
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext import _arguments, _eigh, ops
from eigendamage_ext.curvature import layers
from eigendamage_ext.models.resnet import ResNet
from eigendamage_ext.training import Checkpoint, OutOfTime

X = torch.randn(7, 3, 8, 8)
Y = torch.arange(7)
BATCHES = [(X[:3], Y[:3]), (X[3:6], Y[3:6]), (X[6:], Y[6:])]


@pytest.fixture(autouse=True)
def _device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_arguments, "DEVICES", ("cpu", "sim"))
    covered = layers._unsupported  # parameters here are of another class, as they are not on a real device
    reason = "its weight is a SimulatedTensor, not a plain parameter"
    monkeypatch.setattr(
        layers, "_unsupported", lambda *layer: None if covered(*layer) == reason else covered(*layer)
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet(8, (4, 6, 8), shortcut="B")
    model.layer2[0].conv2 = nn.Conv2d(6, 6, 3, padding=1, groups=2, padding_mode="reflect")
    return model.eval()


def same(simulated: Tensor, expected: Tensor) -> bool:
    return isinstance(simulated, SimulatedTensor) and torch.equal(simulated.raw, expected)


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("settings", [{}, {"kind": "patch"}, {"weight_sharing": "reduce"}], ids=str)
def test_factors_stay_on_the_device_and_are_those_of_the_cpu(fisher, settings):
    settings = {**settings, "fisher": fisher, "samples": 2, "progress": False}
    expected = ed.estimate_factors(network(), BATCHES, **settings)
    with Simulation():
        found = ed.estimate_factors(move(network()), BATCHES, **settings)
    assert list(found) == list(expected) and len(found) == 10
    for name in expected:
        assert same(found[name].A, expected[name].A) and same(found[name].G, expected[name].G)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_every_loss_is_computed_on_the_device(loss, fisher):
    batches = [(x, torch.full((len(x), 10), 0.25)) for x, _ in BATCHES]
    settings = {"loss": loss, "fisher": fisher, "progress": False}
    expected = ed.estimate_factors(network(), batches, **settings)
    with Simulation():
        found = ed.estimate_factors(move(network()), batches, **settings)
    assert all(same(found[name].G, expected[name].G) for name in expected)


@pytest.mark.parametrize("kind", ["channel", "patch"])
def test_second_moments_plan_and_surgery_stay_on_the_device(kind):
    with Simulation():
        model = move(network())
        factors = ed.estimate_factors(model, BATCHES, kind=kind, progress=False)
        basis = factors.eigenbasis()
        moments = factors.second_moments(model, BATCHES, progress=False)
    host = ed.Factors(
        {name: ed.curvature.LayerFactors(f.A.raw, f.G.raw, f.count) for name, f in factors.items()},
        factors.specs,
        factors.skipped,
        factors.settings,
        basis=ed.curvature.Eigenbasis(
            {
                name: ed.curvature.LayerEigenbasis(
                    *(ed.curvature.Eigen(e.values.raw, e.vectors.raw) for e in (layer.A, layer.G))
                )
                for name, layer in basis.items()
            }
        ),
    )
    for name, expected in host.second_moments(network(), BATCHES, progress=False).items():
        assert same(moments[name], expected)
    if kind == "patch":
        return
    with Simulation():
        diagonal = factors.diagonal(model, BATCHES, progress=False)
        gradient = factors.gradients(model, BATCHES, progress=False)
    host.diagonal(network(), BATCHES, progress=False)
    host.gradients(network(), BATCHES, progress=False)
    for name, layer in host.items():
        assert same(diagonal[name], layer.diagonal) and same(gradient[name], layer.gradient)
    with Simulation():
        plan = ed.plan(model, factors, target={"flops": 0.5}, scores="ekfac", allocation="least_loss")
        pruned = plan.apply(model).model
        logits, simulated = pruned(send(X)).detach(), pruned.state_dict()
    host_plan = ed.plan(network(), host, target={"flops": 0.5}, scores="ekfac", allocation="least_loss")
    host_pruned = host_plan.apply(network()).model
    assert {row.form for row in plan.values()} > {"dense"} and str(plan) == str(host_plan)
    state = host_pruned.state_dict()
    assert state.keys() == simulated.keys() and all(same(simulated[name], state[name]) for name in state)
    assert same(logits, host_pruned(X).detach())


def test_offloaded_sums_are_kept_by_the_cpu():
    model = network()
    expected = ed.estimate_factors(model, BATCHES, progress=False)
    second_passes = ("second_moments", "diagonal", "gradients")
    for name in second_passes:
        getattr(expected, name)(model, BATCHES, progress=False)
    with Simulation():
        model = move(model)
        found = ed.estimate_factors(model, BATCHES, offload=True, progress=False)
        for name in second_passes:
            getattr(found, name)(model, BATCHES, offload=True, progress=False)
        pruned = ed.plan(model, found, target={"flops": 0.5}, scores="ekfac").apply(model).model
    for name, layer in found.items():
        for field in ("A", "G", "S", "diagonal", "gradient"):
            tensor = getattr(layer, field)
            assert type(tensor) is Tensor and tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, getattr(expected[name], field))
    assert all(p.device == DEVICE for p in pruned.parameters())


def waits(run, batches: int) -> dict[str, int]:
    """What the CPU waits for in a pass over so many batches."""
    with Simulation() as simulation:
        run(BATCHES[:1] * batches)
    return dict(simulation.waits)


def per_batch(run) -> dict[str, int]:
    few, many = waits(run, 1), waits(run, 3)
    return {what: (many[what] - few[what]) / 2 for what in many if many[what] != few[what]}


@pytest.mark.parametrize(("fisher", "expected"), [("mc", 1), ("exact", 1), ("empirical", 2)])
def test_a_batch_waits_for_the_device_once(fisher, expected):
    """To learn that all is finite; with given labels also that each is one of the classes."""
    with Simulation():
        model = move(network())
        factors = ed.estimate_factors(model, BATCHES, fisher=fisher, progress=False)
        factors.eigenbasis()
    settings = {"fisher": fisher, "progress": False}
    assert per_batch(lambda data: ed.estimate_factors(model, data, **settings)) == {"fetched": expected}
    for second_pass, labels in (
        (factors.second_moments, expected),
        (factors.diagonal, expected),
        (factors.gradients, 2),
    ):
        assert per_batch(partial(second_pass, model, progress=False)) == {"fetched": labels}
    on_device = [(send(x), send(y)) for x, y in BATCHES]
    with Simulation() as simulation:
        ed.estimate_factors(model, on_device, **settings)
    assert simulation.waits["fetched"] == len(on_device) * expected and simulation.waits["sent"] == 0


@pytest.mark.parametrize("host", [0, 640])
@pytest.mark.parametrize(("errors", "expected"), [("info", 2), ("raise", 3)])
def test_eigenproblems_wait_once_for_each_size(errors, expected, host, monkeypatch):
    """Whether certificates of a size hold, or for all at once; the codes, where failures are to be raised."""
    monkeypatch.setattr(_eigh, "HOST_SIZE", host)
    expected -= host > 0
    matrices = [torch.randn(n, n + 5, generator=torch.Generator().manual_seed(n)) for n in (9, 9, 70)]
    matrices = [rows @ rows.mT for rows in matrices]
    with Simulation() as simulation:
        values, vectors, info = ops.eigh([send(matrix) for matrix in matrices], errors=errors)
    assert simulation.waits == {"fetched": expected, "number": 0, "of unknown size": 0, "sent": 0}
    assert not info.raw.any()
    for matrix, lam, v in zip(matrices, values, vectors, strict=True):
        torch.testing.assert_close(v.raw * lam.raw @ v.raw.mT, matrix, rtol=1e-4, atol=1e-4)


def test_training_is_that_of_the_cpu_and_waits_once_a_step(tmp_path):
    def run(model: nn.Module, teacher: nn.Module, batches) -> list[dict[str, float]]:
        settings = {"epochs": 2, "lr": 0.1, "teacher": teacher, "progress": False}
        history = ed.finetune(model, batches, **settings)
        ed.recalibrate_bn(model, batches)
        return [*history, {"accuracy": ed.evaluate(model, batches), "loss": ed.mean_loss(model, batches)}]

    model = network()
    expected = run(model, network(), BATCHES)
    with Simulation() as simulation:
        simulated = move(network())
        found = run(simulated, move(network()), BATCHES)
        state = simulated.state_dict()
    assert found == expected
    assert all(same(state[name], value) for name, value in model.state_dict().items())
    assert simulation.waits["fetched"] == 2 * len(BATCHES) + 1 and simulation.waits["number"] == 2
    assert simulation.waits["sent"] == simulation.waits["of unknown size"] == 0


def test_training_on_the_device_goes_on_from_a_checkpoint(tmp_path):
    with Simulation():
        for deadline in (0.0, None):
            model = move(network())
            checkpoint = Checkpoint(tmp_path / "training", deadline=deadline)
            with pytest.raises(OutOfTime) if deadline is not None else nullcontext():
                ed.train(model, BATCHES, epochs=2, lr=0.1, checkpoint=checkpoint, progress=False)
        state = model.state_dict()
    expected = network()
    ed.train(expected, BATCHES, epochs=2, lr=0.1, progress=False)
    assert all(same(state[name], value) for name, value in expected.state_dict().items())


def test_the_simulation_finds_a_tensor_left_on_the_cpu():
    with Simulation() as simulation:
        x = send(X)
        with pytest.raises(AssertionError, match="mixes devices"):
            x + torch.ones(8)
        assert same(x + 1, X + 1) and same(x * torch.tensor(2.0), X * 2)
        assert simulation.waits.total() == 0
        assert bool((x == x).all()) and x.sum().item() == X.sum().item() and x.sum(0).tolist()
        x[x > 0].to("cpu")
        torch.ones(3).to(DEVICE)
        torch.ones(3).to(DEVICE, non_blocking=True)
    assert simulation.waits == {"number": 2, "fetched": 2, "of unknown size": 1, "sent": 1}


def test_a_batch_that_is_not_finite_is_named_on_the_device():
    with Simulation():
        model = move(network())
        for fisher in ("mc", "exact"):
            with pytest.raises(ValueError, match="NaN or infinity in the input of batch 1"):
                ed.estimate_factors(model, [X[:2], X[2:] / 0], fisher=fisher, progress=False)
        broken = copy.deepcopy(model)
        broken.linear.weight.data.mul_(float("inf"))
        with pytest.raises(ValueError, match=r"NaN or infinity in 'linear\.weight'"):
            ed.estimate_factors(broken, [X], progress=False)
