import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eigendamage_ext.data import TensorLoader
from eigendamage_ext.training import evaluate, finetune, learning_rate, mean_loss, recalibrate_bn, train


def blobs(n=96, classes=3, seed=0, dtype=torch.float32):
    """Points ``(n, 4)`` around one centre per class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    centres = 2 * torch.randn(classes, 4, generator=torch.Generator().manual_seed(99))
    return (centres[y] + torch.randn(n, 4, generator=generator)).to(dtype), y


def net(seed=0, dropout=0.0, batch_norm=True):
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


class Broken(nn.Module):
    """Fails (or is interrupted) in its n-th forward."""

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.calls = at, error, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise self.error("here")
        return x


def flags(model):
    return [m.training for m in model.modules()]


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_evaluate_and_mean_loss_equal_the_whole_set_at_once():
    model = net(dropout=0.5).double()
    x, y = blobs(50, dtype=torch.float64)
    loader = TensorLoader(x, y, batch_size=16)  # the last batch is smaller
    model.eval()
    logits = model(x)
    model.train()
    assert evaluate(model, loader) == (logits.argmax(1) == y).double().mean().item()
    expected = -logits.log_softmax(1)[torch.arange(50), y].mean().item()
    assert abs(mean_loss(model, loader) - expected) < 1e-12
    assert all(flags(model))


def test_evaluate_counts_nan_as_wrong():
    logits = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [1.0, math.nan], [0.0, 1.0]])
    assert evaluate(nn.Identity(), [(logits, torch.tensor([1, 0, 1, 0]))]) == 0.25


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_train_equals_sgd_written_out(schedule):
    model = net(batch_norm=False).double()
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    x, y = blobs(40, dtype=torch.float64)
    loader = TensorLoader(x, y, batch_size=16)
    history = train(
        model, loader, epochs=4, lr=0.2, momentum=0.8, weight_decay=0.01, schedule=schedule, progress=False
    )
    step_rates = [0.2] * 6 + [0.02] * 3 + [0.002] * 3
    losses, hits = [], []
    for step in range(12):
        rate = {
            "cosine": 0.1 * (1 + math.cos(math.pi * step / 12)),
            "step": step_rates[step],
            "constant": 0.2,
        }[schedule]
        rows = slice(16 * (step % 3), 16 * (step % 3) + 16)
        logits = F.linear(F.linear(x[rows], *weights[:2]).relu(), *weights[2:])
        loss = F.cross_entropy(logits, y[rows])
        losses.append(loss.item() * len(y[rows]))
        hits.append((logits.argmax(1) == y[rows]).sum().item())
        for i, grad in enumerate(torch.autograd.grad(loss, weights)):
            with torch.no_grad():
                velocity[i] = 0.8 * velocity[i] + grad + 0.01 * weights[i]
                weights[i] -= rate * velocity[i]
    for p, w in zip(model.parameters(), weights, strict=True):
        assert (p - w).abs().max() < 1e-12
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    for i, record in enumerate(history):
        assert abs(record["loss"] - sum(losses[3 * i : 3 * i + 3]) / 40) < 1e-12
        assert abs(record["accuracy"] - sum(hits[3 * i : 3 * i + 3]) / 40) < 1e-12
    assert all(p.grad is None for p in model.parameters())


def test_learning_rates():
    cosine = [learning_rate(0.4, "cosine", f) for f in (0, 1 / 3, 0.5, 2 / 3, 1)]
    assert cosine == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0], abs=1e-15)
    step = [learning_rate(1.0, "step", f) for f in (0, 0.49, 0.5, 0.74, 0.75, 1)]
    assert step == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_training_learns_and_loaders_without_length_do():
    x, y = blobs(300)
    test = [blobs(300, seed=1)]
    model = net()
    before = evaluate(model, test)
    history = train(model, TensorLoader(x, y, batch_size=32, shuffle=True), epochs=5, progress=False)
    assert evaluate(model, test) > max(0.75, before) and history[-1]["loss"] < history[0]["loss"]

    class Stream:
        def __iter__(self):
            return iter(TensorLoader(x, y, batch_size=100))

    rates = [record["lr"] for record in train(net(), Stream(), epochs=4, lr=0.2, progress=False)]
    assert rates == pytest.approx([0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5)])


def test_same_seed_same_weights_and_the_callers_random_state_is_untouched():
    data = torch.utils.data.TensorDataset(*blobs(64))

    def run(seed):
        model = net(dropout=0.5)
        torch.manual_seed(1234 + seed)  # a state of the caller's that must not matter
        state = torch.get_rng_state()
        loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
        train(model, loader, epochs=2, seed=seed % 2, progress=False)
        evaluate(model, loader)
        recalibrate_bn(model, loader)
        assert torch.equal(torch.get_rng_state(), state)
        return snapshot(model)

    first = run(0)
    assert same(first, run(2))
    assert not same(first, run(1))


def test_a_loaders_epochs_are_numbered_by_train():
    x, y = blobs(64)
    loader = TensorLoader(x, y, batch_size=16, shuffle=True, seed=1)
    first, second = net(), net()
    train(first, loader, epochs=2, progress=False)
    train(second, loader, epochs=2, progress=False)  # the loader has been used before
    assert same(snapshot(first), snapshot(second))


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
def test_distillation_step_equals_the_formula(distillation):
    model, teacher = net(batch_norm=False).double(), net(1, dropout=0.9).double()
    teacher.train()
    x, y = blobs(20, dtype=torch.float64)
    old = {k: v.detach().clone() for k, v in model.named_parameters()}
    twin = copy.deepcopy(model)
    teacher_before = snapshot(teacher)
    finetune(
        model, [(x, y)], epochs=1, lr=0.5, weight_decay=0, teacher=teacher, temperature=3.0,
        distillation=distillation, progress=False,
    )  # fmt: skip
    p = (copy.deepcopy(teacher).eval()(x) / 3).softmax(1).detach()
    z = twin(x)
    q = (z / 3).softmax(1)
    kl = (p * (p.log() - q.log())).sum() / 20
    ce = -z.log_softmax(1)[torch.arange(20), y].mean()
    ((1 - distillation) * ce + distillation * 9 * kl).backward()
    for name, parameter in twin.named_parameters():
        assert (dict(model.named_parameters())[name] - (old[name] - 0.5 * parameter.grad)).abs().max() < 1e-12
    assert all(flags(teacher)) and same(snapshot(teacher), teacher_before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_finetuning_with_a_teacher_lowers_the_divergence_from_it():
    x, y = blobs(200)
    teacher = net(1)
    train(teacher, TensorLoader(x, y, batch_size=20), epochs=3, progress=False)
    student = net(2)

    def divergence():
        teacher.eval(), student.eval()
        return F.kl_div(
            student(x).log_softmax(1), teacher(x).log_softmax(1), reduction="batchmean", log_target=True
        )

    before = divergence().item()
    finetune(
        student,
        TensorLoader(x, y, batch_size=20),
        epochs=5,
        lr=0.01,
        teacher=teacher,
        distillation=1.0,
        progress=False,
    )
    assert divergence().item() < 0.3 * before


def test_recalibrated_statistics_are_those_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1)
    ).double()
    x = 3 * torch.randn(24, 3, 9, 8, dtype=torch.float64) + 1
    model[1].running_mean.fill_(math.nan)  # nothing of the old values enters
    features = model[0](x).transpose(0, 1).flatten(1).detach()
    batches = features.unflatten(1, (4, -1))
    recalibrate_bn(model, TensorLoader(x, batch_size=6))
    assert (model[1].running_mean - features.mean(1)).abs().max() < 1e-12
    assert (model[1].running_var - batches.var(2).mean(1)).abs().max() < 1e-12
    recalibrate_bn(model, [(x, torch.zeros(24))])
    assert (model[1].running_mean - features.mean(1)).abs().max() < 1e-12
    assert (model[1].running_var - features.var(1)).abs().max() < 1e-12


def test_recalibration_normalises_by_the_batch_and_leaves_dropout_off():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)
    )
    model = model.double()
    nn.init.constant_(model[0].weight, 2.0)
    nn.init.constant_(model[0].bias, 7.0)
    x, _ = blobs(40, dtype=torch.float64)
    recalibrate_bn(model, TensorLoader(x, batch_size=10))
    assert (model[2].running_mean - 7).abs().max() < 1e-12
    var = torch.stack([b.var(0, correction=0) / (b.var(0, correction=0) + 1e-5) for b in x.split(10)]).mean(0)
    assert (model[2].running_var - 4 * var * 10 / 9).abs().max() < 1e-12


def test_recalibration_changes_nothing_else():
    model = net(dropout=0.5)
    model[1].momentum = 0.37
    model[3].eval()
    before, modes = snapshot(model), flags(model)
    recalibrate_bn(model, TensorLoader(blobs()[0], batch_size=32))
    after = snapshot(model)
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert model[1].momentum == 0.37 and flags(model) == modes
    model = net(batch_norm=False)
    before = snapshot(model)
    recalibrate_bn(model, TensorLoader(blobs()[0], batch_size=32))  # no BN: nothing to do
    assert same(before, snapshot(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_everything_is_restored_after_an_exception(error):
    x, y = blobs()
    loader = TensorLoader(x, y, batch_size=32)
    model = nn.Sequential(*net(dropout=0.5), Broken(2, error))
    model[1].momentum = 0.37
    model[2].eval()
    teacher = nn.Sequential(*net(1), Broken(2, error))
    teacher[3].eval()
    student = net(2).eval()
    before, modes, teacher_modes = snapshot(model), flags(model), flags(teacher)
    state = torch.get_rng_state()
    for call in (
        lambda: recalibrate_bn(model, loader),
        lambda: evaluate(model, loader),
        lambda: mean_loss(model, loader),
        lambda: train(student, loader, epochs=1, teacher=teacher, progress=False),
    ):
        model[5].calls = 0
        with pytest.raises(error, match="here") as caught:  # a live traceback keeps the frames alive
            call()
        assert caught.traceback and torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state)
        assert same(snapshot(model), before) and model[1].momentum == 0.37
        assert flags(model) == modes and flags(teacher) == teacher_modes and not any(flags(student))


def test_frozen_parameters_stay():
    model = net()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    train(model, TensorLoader(*blobs(), batch_size=32), epochs=1, progress=False)
    after = snapshot(model)
    assert torch.equal(after["0.weight"], before["0.weight"]) and not torch.equal(
        after["4.weight"], before["4.weight"]
    )


def test_zero_epochs_change_nothing():
    model = net()
    before = snapshot(model)
    assert train(model, [], epochs=0, progress=False) == []
    assert same(snapshot(model), before)


def test_a_loss_that_is_not_finite_is_named_and_not_applied():
    model = net(batch_norm=False)
    x, y = blobs(12)
    bad = x.clone()
    bad[3, 2] = math.inf
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    train_twice = copy.deepcopy(model)
    train(train_twice, batches, epochs=1, schedule="constant", progress=False)

    class TurnsBad:
        epoch = -1

        def __iter__(self):
            self.epoch += 1
            return iter(batches if self.epoch == 0 else [(bad, y)])

    with pytest.raises(
        ValueError, match=r"loss must be finite, got nan in epoch 2, step 1 \(learning rate 0\.1\)"
    ):
        train(model, TurnsBad(), epochs=2, schedule="constant", progress=False)
    assert same(snapshot(model), snapshot(train_twice))


def test_bad_arguments_are_refused():
    model, (x, y) = net(), blobs()
    loader = TensorLoader(x, y, batch_size=32)
    frozen = net().requires_grad_(False)
    generator = (batch for batch in loader)
    for call, message in [
        (lambda: train(model, loader, epochs=-1), "train: epochs must be at least 0, got -1"),
        (
            lambda: train(model, loader, epochs=1, schedule="linear"),
            "schedule must be one of cosine, step, constant",
        ),
        (lambda: train(frozen, loader, epochs=1), "parameter that requires grad"),
        (lambda: finetune(model, loader, epochs=1, teacher=model), "teacher must share no module with model"),
        (
            lambda: finetune(model, loader, epochs=1, teacher=net(), temperature=0),
            "temperature must be positive, got 0",
        ),
        (
            lambda: finetune(model, loader, epochs=1, teacher=net(), distillation=1.5),
            r"must lie in \[0, 1\], got 1.5",
        ),
        (
            lambda: train(model, [], epochs=1, progress=False),
            "at least one batch in every epoch, got none in epoch 1",
        ),
        (
            lambda: train(model, generator, epochs=2, progress=False),
            "got none in epoch 2; pass an iterable that starts",
        ),
        (lambda: evaluate(model, []), "evaluate: loader must yield at least one batch, got none"),
        (lambda: mean_loss(model, []), "mean_loss: loader must yield"),
        (lambda: recalibrate_bn(model, []), "recalibrate_bn: loader must yield"),
        (lambda: evaluate(model, [x]), r"evaluate: loader must yield \(input, target\), got inputs alone"),
        (lambda: evaluate(nn.Identity(), [(x[..., None], y)]), r"evaluate: model must give logits \(n, C\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.cuda
def test_batches_follow_the_model_to_its_device():
    x, y = blobs(64)
    loader = TensorLoader(x, y, batch_size=16, shuffle=True)
    results = []
    for _ in range(2):
        model, teacher = net(dropout=0.2).cuda(), net(1)  # the teacher stays on the CPU
        cpu_state, state = torch.get_rng_state(), torch.cuda.get_rng_state()
        finetune(model, loader, epochs=2, teacher=teacher, progress=False)
        recalibrate_bn(model, loader)
        results.append((snapshot(model), evaluate(model, loader)))
        assert torch.equal(torch.cuda.get_rng_state(), state) and torch.equal(
            torch.get_rng_state(), cpu_state
        )
    assert same(results[0][0], results[1][0]) and results[0][1] == results[1][1]
