"""Tensors are made where the data are, whatever the default device: any other would be on "meta" here."""

import pytest
import torch

import eigendamage_ext as ed
from eigendamage_ext.data import TensorLoader, crop_flip
from eigendamage_ext.models.resnet import ResNet

X = torch.randn(12, 3, 8, 8)
Y = torch.arange(12) % 4
BATCHES = [(X[:7], Y[:7]), (X[7:], Y[7:])]


def whole_method(settings: dict[str, str]) -> list[torch.Tensor]:
    with torch.device("cpu"):
        model = ResNet(8, (4, 6, 8), num_classes=4)
    ed.train(
        model,
        TensorLoader(X, Y, batch_size=5, shuffle=True, transform=crop_flip(1)),
        epochs=1,
        progress=False,
    )
    factors = ed.estimate_factors(model, BATCHES, **settings, progress=False)
    factors.second_moments(model, BATCHES, progress=False)
    factors.diagonal(model, BATCHES, progress=False)
    factors.gradients(model, BATCHES, progress=False)
    if settings.get("kind") == "patch":
        fields = ("A", "G", "S", "diagonal", "gradient")
        return [getattr(layer, field) for layer in factors.values() for field in fields]
    pruned = []
    for allocation in ("threshold", "least_loss"):
        plan = ed.plan(model, factors, target={"flops": 0.5}, scores="ekfac", allocation=allocation)
        pruned.append(plan.apply(model).model)
        ed.recalibrate_bn(pruned[-1], BATCHES)
        ed.finetune(pruned[-1], BATCHES, epochs=1, lr=0.1, teacher=model, progress=False)
        assert ed.evaluate(pruned[-1], BATCHES) >= 0 and ed.mean_loss(pruned[-1], BATCHES) > 0
    return [tensor for model in pruned for tensor in model.state_dict().values()]


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("settings", [{}, {"kind": "patch"}], ids=str)
def test_the_default_device_does_not_matter(fisher, settings):
    settings = {**settings, "fisher": fisher}
    torch.manual_seed(0)
    expected = whole_method(settings)
    torch.manual_seed(0)
    with torch.device("meta"):
        found = whole_method(settings)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
