"""What is predicted to hurt more does hurt more, on a network that has learned (method property 11)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, digits
from eigendamage_ext.report.data import rank_correlation


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.c = nn.Linear(16 * 16, 20)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        return self.head(F.relu(self.c(F.relu(self.b(x)).flatten(1))))


LAYERS = {"a": 12, "b": 16, "c": 20}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    images, labels = digits(seed=0).train
    model = Net()
    ed.train(
        model, TensorLoader(images, labels, batch_size=32, shuffle=True), epochs=3, lr=0.05, progress=False
    )
    data = TensorLoader(images[:512], labels[:512], batch_size=256)
    patch, channel = (
        ed.estimate_factors(model, data, kind=kind, fisher="exact", progress=False)
        for kind in ("patch", "channel")
    )
    channel.second_moments(model, data, progress=False)
    channel.diagonal(model, data, progress=False)
    return model.eval(), data, {"patch": patch, "channel": channel}


@pytest.mark.parametrize(
    ("method", "kind", "scores"),
    [
        ("eigendamage", "channel", "kfac"),
        ("eigendamage", "channel", "ekfac"),
        ("c-obd", "channel", "kfac"),
        ("c-obs", "patch", "kfac"),
        ("kron-obd", "patch", "kfac"),
        ("kron-obs", "patch", "kfac"),
    ],
)
def test_what_is_predicted_to_hurt_more_does(trained, method, kind, scores):
    model, data, factors = trained
    dense = ed.mean_loss(model, data)
    whole = ed.plan(model, factors[kind], target={"flops": 1.0}, method=method, scores=scores)
    predicted, true = [], []
    for name, width in LAYERS.items():
        for share in (0.9, 0.75, 0.6, 0.45, 0.3):
            plan, kept = copy.deepcopy(whole), round(share * width)
            if method == "eigendamage":
                plan.set(name, form="output", output_rank=kept)
            else:
                plan.set(name, filters=kept)
            predicted.append(plan.predicted_loss)
            true.append(ed.mean_loss(plan.apply(model).model, data) - dense)
    assert rank_correlation(predicted, true) > 0.85
