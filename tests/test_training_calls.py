"""Training and evaluation of networks that are called otherwise, with token-level logits and other losses."""

import pytest
import torch
import torch.nn.functional as F
from test_token_level import COUNTED, IDS, LABELS, MASK, Tagger, batch, squared_distance
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.report.gather import gather
from eigendamage_ext.report.measure import Judge, Measured, evaluated
from eigendamage_ext.training import Checkpoint

BATCHES = [{key: value[rows] for key, value in batch(labels=LABELS).items()} for rows in ([0, 1], [2])]


class Answers(Tagger):
    """A tagger that returns an object."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": super().forward(input_ids, attention_mask)}


def trained(model: nn.Module, losses, steps, **settings) -> list:
    """`ed.train` for two epochs, compared with SGD on losses written out."""
    twin = Tagger()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        for rows in steps:
            optimizer.zero_grad()
            losses(twin(IDS[rows]), rows).backward()
            optimizer.step()
    history = ed.train(
        model,
        epochs=2,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        schedule="constant",
        progress=False,
        **settings,
    )
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    return history


def test_training_takes_the_mean_over_the_positions_that_count():
    found = []

    def losses(z: Tensor, rows: list[int]) -> Tensor:
        z, y = z[COUNTED[rows]], LABELS[rows][COUNTED[rows]]
        found.append((F.cross_entropy(z, y), (z.argmax(dim=1) == y).sum(), len(y)))
        return found[-1][0]

    history = trained(Answers(), losses, [[0, 1], [2]], loader=BATCHES)
    for epoch, record in enumerate(history):
        (a, hits_a, n_a), (b, hits_b, n_b) = found[2 * epoch : 2 * epoch + 2]
        assert record["loss"] == pytest.approx(
            float(a.detach() * n_a + b.detach() * n_b) / (n_a + n_b), rel=1e-12
        )
        assert record["accuracy"] == pytest.approx(int(hits_a + hits_b) / (n_a + n_b))


def test_a_teacher_is_heard_at_the_positions_that_count():
    teacher = Answers()
    with torch.no_grad():
        teacher.last.weight.neg_()
        taught = teacher(IDS)["logits"]

    def losses(z: Tensor, rows: list[int]) -> Tensor:
        z, y, t = z[COUNTED[rows]], LABELS[rows][COUNTED[rows]], taught[rows][COUNTED[rows]]
        p, q = (t / 3).softmax(dim=1), (z / 3).log_softmax(dim=1)
        divergence = (p * (p.log() - q)).sum(dim=1).mean()
        return 0.25 * F.cross_entropy(z, y) + 0.75 * 9 * divergence

    trained(
        Answers(), losses, [[0, 1], [2]], loader=BATCHES, teacher=teacher, temperature=3.0, distillation=0.75
    )


def test_a_loss_of_ones_own_is_averaged_over_the_examples_and_has_no_accuracy(tmp_path):
    found = []

    def losses(z: Tensor, rows: list[int]) -> Tensor:
        found.append(squared_distance(z, LABELS[rows]))
        return found[-1].mean()

    adapter = ed.Adapter(split=lambda batch: (batch[:1], batch[1]), logits=lambda output: output["logits"])
    loader = [(IDS[rows], LABELS[rows]) for rows in ([0, 1], [2])]
    settings = {"loader": loader, "loss": squared_distance, "adapter": adapter}
    history = trained(Answers(), losses, [[0, 1], [2]], checkpoint=Checkpoint(tmp_path / "net"), **settings)
    assert [record["accuracy"] for record in history] == [None, None]
    for epoch, record in enumerate(history):
        assert record["loss"] == pytest.approx(
            float(torch.cat(found[2 * epoch : 2 * epoch + 2]).detach().mean()), rel=1e-12
        )
    model = Answers()
    same = {
        "epochs": 2,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "schedule": "constant",
        "progress": False,
    }
    again = ed.train(model, checkpoint=Checkpoint(tmp_path / "net"), **settings, **same)
    assert again == history
    for change in ({"loss": "cross_entropy"}, {"adapter": ed.Adapter(split=adapter.split)}):
        with pytest.raises(
            ValueError, match=f"train: checkpoint must be .* same arguments, got {next(iter(change))} "
        ):
            ed.train(model, checkpoint=Checkpoint(tmp_path / "net"), **settings | same | change)


def test_evaluation_counts_positions_and_the_mean_loss_examples():
    model = Answers()
    z = Tagger()(IDS)
    y = LABELS.where(COUNTED, -100)
    right = (z.argmax(dim=2) == y)[COUNTED].double().mean()
    assert ed.evaluate(model, BATCHES) == pytest.approx(float(right), rel=1e-12)
    total = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") / len(IDS)
    assert ed.mean_loss(model, BATCHES) == pytest.approx(float(total.detach()), rel=1e-12)
    mean = squared_distance(z, LABELS).mean()
    assert ed.mean_loss(model, BATCHES, loss=squared_distance) == pytest.approx(
        float(mean.detach()), rel=1e-12
    )
    adapter = ed.Adapter(split=lambda batch: ((batch["input_ids"],), batch["labels"]))
    for counted, call in ((LABELS != -100, {"adapter": adapter}), (COUNTED, {})):
        expected = (z.argmax(dim=2) == LABELS)[counted].double().mean()
        assert ed.evaluate(model, BATCHES, **call) == pytest.approx(float(expected), rel=1e-12)


def test_predicted_loss_is_in_the_measure_of_the_mean_loss():
    """A small change of a weight loses half its square times the Fisher, on labels the model itself gives."""
    torch.manual_seed(3)
    model = Tagger()
    with torch.no_grad():
        p = model(IDS).softmax(dim=-1)
    factors = ed.estimate_factors(model, [batch()], fisher="exact", layers="last", progress=False)
    diagonal = factors.diagonal(model, [batch()], progress=False)["last"]
    step, before, after = 1e-3, 0.0, 0.0
    changed = Tagger()
    with torch.no_grad():
        changed.last.weight[0, 0] += step
    for labels in torch.cartesian_prod(*[torch.arange(3)] * 4):
        for n in range(len(IDS)):
            data = [{"input_ids": IDS[n : n + 1], "attention_mask": MASK[n : n + 1], "labels": labels[None]}]
            weight = float(p[n, torch.arange(4), labels].prod()) / len(IDS)
            before += weight * ed.mean_loss(model, data)
            after += weight * ed.mean_loss(changed, data)
    assert after - before == pytest.approx(float(diagonal[0, 0]) * step**2 / 2, rel=1e-3)


def test_batch_norms_are_estimated_again_from_mappings():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, values: Tensor, scale: Tensor) -> Tensor:
            return self.norm(values * scale)

    x, scale = torch.randn(8, 3), torch.rand(8, 1)
    named, paired, adapted, plain = Named(), Named(), Named(), nn.Sequential(nn.BatchNorm1d(3))
    ed.recalibrate_bn(named, [{"values": x, "scale": scale}])
    ed.recalibrate_bn(paired, [((x, scale), torch.zeros(8))])
    ed.recalibrate_bn(adapted, [(x, scale)], adapter=ed.Adapter(split=lambda batch: (batch, None)))
    ed.recalibrate_bn(plain, [x * scale])
    for model in (named, paired, adapted):
        assert torch.equal(model.norm.running_mean, plain[0].running_mean)
        assert torch.equal(model.norm.running_var, plain[0].running_var)


def test_what_training_cannot_count_is_refused_and_changes_nothing():
    model = Answers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    ignored = [batch(labels=LABELS.masked_fill(MASK == 1, -100))]
    settings = {"epochs": 1, "progress": False}
    for call, error, message in [
        (
            lambda: ed.train(model, ignored, **settings),
            ValueError,
            "train: loader must yield a position that counts",
        ),
        (lambda: ed.evaluate(model, [batch()]), ValueError, r"evaluate: loader must yield \(input, target\)"),
        (
            lambda: ed.evaluate(model, [batch(labels=LABELS[:, 0])]),
            ValueError,
            r"evaluate: model must give logits \(n, C\) for targets .* got \(3, 4, 3\) for \(3,\)",
        ),
        (
            lambda: ed.train(model, BATCHES, loss="mse", **settings),
            ValueError,
            "train: loss must be one of 'cross_",
        ),
        (
            lambda: ed.mean_loss(model, BATCHES, loss=3),
            ValueError,
            "mean_loss: loss must be one of 'cross_entropy' or",
        ),
        (
            lambda: ed.train(model, BATCHES, loss=lambda z, y: z.mean(), **settings),
            ValueError,
            r"train: loss must return a number for each of 2 examples, got torch.float64 \(\)",
        ),
        (
            lambda: ed.finetune(model, BATCHES, loss=squared_distance, teacher=Answers(), **settings),
            ValueError,
            "train: teacher must be None for a loss of your own, got Answers; call it within",
        ),
        (
            lambda: ed.train(model, BATCHES, adapter=3, **settings),
            TypeError,
            "train: adapter must be an Adapter or",
        ),
        (
            lambda: ed.evaluate(model, BATCHES, adapter=3),
            TypeError,
            "evaluate: adapter must be an Adapter or",
        ),
        (lambda: ed.recalibrate_bn(model, BATCHES, adapter=3), TypeError, "recalibrate_bn: adapter must be"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_report_measures_by_the_adapter():
    def split(three: tuple[Tensor, ...]) -> tuple:
        return batch(input_ids=three[0], attention_mask=three[1]), three[2]

    adapter = ed.Adapter(split=split)
    loader = [(IDS, MASK, LABELS)]
    result = ed.prune(Answers(), loader, target={"ratio": 0.4}, adapter=adapter, progress=False)
    first, after = evaluated(Answers(), [result], Judge(loader, adapter=adapter), [Measured(), Measured()])
    for found, model in ((first, Answers()), (after, result.model)):
        assert found.accuracy == ed.evaluate(model, BATCHES)
        assert found.loss == pytest.approx(ed.mean_loss(model, BATCHES), rel=1e-12)
    assert (
        gather(result, model=Answers(), loader=loader, adapter=adapter, time_batches=())
        .measurements[1]
        .accuracy
        == after.accuracy
    )
