"""Whatever goes wrong inside the user's model or loader, and wherever, the model is as it was."""

import pytest
import torch
from test_state import Snapshot
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.pruning.methods import METHODS
from eigendamage_ext.pruning.methods.directions import DirectionMethod

X, Y = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
LOADER = [(X[:4], Y[:4]), (X[4:], Y[4:])]
errors = pytest.mark.parametrize(
    "error", [RuntimeError("stop"), KeyboardInterrupt("stop")], ids=["error", "interrupt"]
)


class Trap(nn.Module):
    """Raises at a call, counted from 1 over all copies, by any name."""

    calls, at = 0, 0
    error: BaseException

    def forward(self, x: Tensor) -> Tensor:
        Trap.calls += 1
        if Trap.calls == Trap.at:
            raise Trap.error
        return x


class Loader:
    """Draws random numbers, and fails at a batch, counted from 1 over all passes."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        self.at, self.error, self.count = at, error, 0

    def __iter__(self):
        for batch in LOADER:
            self.count += 1
            torch.rand(1)
            if self.count == self.at:
                raise self.error
            yield batch


def network() -> nn.Sequential:
    """In the middle of training: mixed modes, a frozen layer, gradients, hooks."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), Trap(), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 4),
    )  # fmt: skip
    Trap.at = 0
    nn.functional.cross_entropy(model(X), Y).backward()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda module, args, output: None)
    model[10].register_full_backward_hook(lambda module, inputs, outputs: None)
    return model


def prune(model: nn.Module, loader: Loader, method: str, inplace: bool) -> None:
    ed.prune(model, loader, target={"flops": 0.6}, method=method, inplace=inplace, progress=False)


def some(count: int) -> set[int]:
    """The first, the last, and some between."""
    return {*range(1, count + 1, max(1, count // 3)), count}


@errors
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_pruning_that_breaks_off_anywhere_leaves_no_trace(method, inplace, error):
    model, other, loader = network(), network(), Loader()
    Trap.calls, Trap.error = 0, error
    prune(other, loader, method, inplace)
    before, calls = Snapshot(model), Trap.calls
    assert calls >= 3
    # Where filters are cut on trial, a model that raises is one in which they cannot be cut.
    everywhere = isinstance(error, KeyboardInterrupt) or isinstance(METHODS[method], DirectionMethod)
    trials = [(at, Loader()) for at in (some(calls) if everywhere else [1])]
    trials += [(0, Loader(at, error)) for at in some(loader.count) if loader.count]
    for at, failing in trials:
        Trap.calls, Trap.at = 0, at
        with pytest.raises(type(error), match="stop"):
            prune(model, failing, method, inplace)
        Trap.at = 0
        before.check()


@errors
def test_a_round_that_breaks_off_leaves_the_rounds_before(error, tmp_path):
    def rounds(checkpoint):
        return ed.Pruner(
            original, LOADER, target={"flops": 0.5}, steps=2, checkpoint=checkpoint, progress=False
        )

    original = network()
    Trap.calls, Trap.error = 0, error
    pruner = rounds(None)
    next(iter(pruner))
    first, snapshot = Trap.calls, Snapshot(original)
    next(iter(pruner))
    expected = pruner.model.state_dict()
    for at in some(Trap.calls - first):
        path = tmp_path / f"{at}.safetensors"
        stopped = rounds(path)
        step = next(iter(stopped))
        left = Snapshot(step.model)
        Trap.calls, Trap.at = 0, at
        with pytest.raises(type(error), match="stop"):
            next(iter(stopped))
        Trap.at = 0
        left.check()
        snapshot.check()
        assert stopped.model is step.model and len(stopped.history) == 1
        for again in (stopped, rounds(path)):
            next(iter(again))
            assert all(map(torch.equal, again.model.state_dict().values(), expected.values()))


@errors
@pytest.mark.parametrize("call", [ed.evaluate, ed.mean_loss, ed.recalibrate_bn, ed.finetune])
def test_modes_and_random_numbers_come_back_from_training_and_measuring(call, error):
    model = network()
    more = {"epochs": 1, "progress": False} if call is ed.finetune else {}
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()
    hooks = Snapshot(model).hooks
    for at, loader in ((2, Loader()), (0, Loader(2, error))):
        Trap.calls, Trap.at, Trap.error = 0, at, error
        with pytest.raises(type(error), match="stop"):
            call(model, loader, **more)
        Trap.at = 0
        assert [m.training for m in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random) and Snapshot(model).hooks == hooks
