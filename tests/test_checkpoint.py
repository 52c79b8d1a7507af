"""A training that stops between epochs, for whatever reason, and goes on to the very same result."""

import copy
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eigendamage_ext import ArtifactError
from eigendamage_ext.data import TensorLoader, crop_flip
from eigendamage_ext.training import Checkpoint, OutOfTime, finetune, train

EPOCHS = 4
X, Y = torch.randn(20, 1, 4, 4), torch.arange(20) % 3
SETTINGS = {"epochs": EPOCHS, "lr": 0.1, "progress": False}


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    frozen = nn.Conv2d(1, width, 3).requires_grad_(False)
    norm = nn.BatchNorm2d(width)
    return nn.Sequential(frozen, norm, nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * width, 3))


class Stops:
    """A loader that fails in the middle of an epoch, once."""

    def __init__(self, loader, at: int) -> None:
        self.loader, self.at, self.epoch = loader, at, 0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        getattr(self.loader, "set_epoch", lambda epoch: None)(epoch)

    def __iter__(self):
        for step, batch in enumerate(self.loader):
            if self.epoch == self.at and step == 1:
                self.at = -1
                raise KeyboardInterrupt
            yield batch


def state(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


LOADERS = [
    TensorLoader(X, Y, batch_size=6, shuffle=True, transform=crop_flip(1)),
    DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True),
]


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: type(loader).__name__)
@pytest.mark.parametrize("at", range(EPOCHS))
def test_an_interrupted_training_ends_as_if_nothing_had_been(tmp_path: Path, loader, at: int) -> None:
    whole = network()
    history = train(whole, loader, **SETTINGS)
    checkpoint = Checkpoint(tmp_path / "training")
    with pytest.raises(KeyboardInterrupt):
        train(network(), Stops(loader, at), checkpoint=checkpoint, **SETTINGS)
    assert checkpoint.path.exists() == (at > 0)
    resumed, before = network(), torch.get_rng_state()
    assert train(resumed, loader, checkpoint=checkpoint, **SETTINGS) == history
    assert equal(state(resumed), state(whole))
    assert torch.equal(torch.get_rng_state(), before)
    again = network()
    assert train(again, loader, checkpoint=checkpoint, **SETTINGS) == history and len(history) == EPOCHS
    assert equal(state(again), state(whole))


def test_a_training_without_time_advances_by_an_epoch_a_call(tmp_path: Path) -> None:
    loader, teacher = TensorLoader(X, Y, batch_size=6, shuffle=True), network(1)
    whole = network()
    history = finetune(whole, loader, teacher=teacher, **SETTINGS)
    for done in range(1, EPOCHS):
        model = network()
        checkpoint = Checkpoint(tmp_path / "training", seconds=1e9, deadline=time.monotonic())
        with pytest.raises(OutOfTime, match=f"{EPOCHS - done} are left"):
            finetune(model, loader, teacher=teacher, checkpoint=checkpoint, **SETTINGS)
        assert not equal(state(model), state(whole))
    assert finetune(model, loader, teacher=teacher, checkpoint=checkpoint, **SETTINGS) == history
    assert equal(state(model), state(whole))


@pytest.mark.parametrize(("deadline", "left"), [(19.0, 3), (20.0, 2), (39.0, 1), (40.0, 0)])
def test_the_next_epoch_must_end_before_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deadline: float, left: int
) -> None:
    clock = iter(range(0, 1000, 10))  # an epoch takes 10 seconds
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    checkpoint = Checkpoint(tmp_path / "training", seconds=1e9, deadline=deadline)
    loader = TensorLoader(X, Y, batch_size=20)
    if left:
        with pytest.raises(OutOfTime, match=f"{left} are left"):
            train(network(), loader, checkpoint=checkpoint, **SETTINGS)
    else:
        assert len(train(network(), loader, checkpoint=checkpoint, **SETTINGS)) == EPOCHS


def test_writes_are_apart_but_the_last_is_made(tmp_path: Path) -> None:
    written = []

    class Recorder(Stops):
        def set_epoch(self, epoch: int) -> None:
            written.append(path.exists())

    loader = Recorder(TensorLoader(X, Y, batch_size=20), at=-1)
    for seconds, expected in ((1e9, [False] * EPOCHS), (0.0, [False, True, True, True])):
        path = tmp_path / str(seconds)
        train(network(), loader, checkpoint=Checkpoint(path, seconds=seconds), **SETTINGS)
        assert written == expected and path.exists()
        written.clear()


def test_another_training_is_refused(tmp_path: Path) -> None:
    loader = TensorLoader(X, Y, batch_size=20)
    checkpoint = Checkpoint(tmp_path / "training")
    train(network(), loader, checkpoint=checkpoint, **SETTINGS)
    content = checkpoint.path.read_bytes()
    for changed, message in [
        ({"lr": 0.2}, r"got lr 0\.1 in place of 0\.2; remove .*training to start anew"),
        ({"epochs": 5}, "got epochs 4 in place of 5"),
        ({"seed": 1}, "got seed 0 in place of 1"),
        ({"teacher": network(1)}, r"got teacher None in place of \[4\.0, 0\.9\]"),
        ({"autocast": torch.bfloat16}, "got autocast None in place of torch.bfloat16"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(network(), loader, checkpoint=checkpoint, **{**SETTINGS, **changed})
    for other in (network(width=5), network()[1:]):
        with pytest.raises(ValueError, match="checkpoint must be of the same model, got another in"):
            train(other, loader, checkpoint=checkpoint, **SETTINGS)
    checkpoint.path.write_bytes(content[:-3])
    with pytest.raises(ArtifactError, match="truncated or corrupted"):
        train(network(), loader, checkpoint=checkpoint, **SETTINGS)


def test_training_under_autocast_equals_sgd_written_out() -> None:
    model, teacher = network(), network(1).eval()
    model[3].p = 0.0
    expected = copy.deepcopy(model)
    loader = [(X[:10], Y[:10]), (X[10:], Y[10:])]
    finetune(
        model, loader, epochs=2, lr=0.1, schedule="constant", teacher=teacher, autocast=torch.bfloat16,
        progress=False,
    )  # fmt: skip
    optimizer = torch.optim.SGD(expected[1:].parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for x, y in loader * 2:
        with torch.autocast("cpu", torch.bfloat16):
            z, t = expected(x), teacher(x).detach()
        assert z.dtype == torch.bfloat16
        z, t = z.float(), t.float()
        kl = (t / 4).softmax(1) * ((t / 4).log_softmax(1) - (z / 4).log_softmax(1))
        loss = 0.1 * F.cross_entropy(z, y) + 0.9 * 16 * kl.sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for found, wanted in zip(state(model), state(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"autocast must be torch\.bfloat16 or None, got torch\.float16"):
        train(model, loader, epochs=1, autocast=torch.float16)
