"""Factors of a model that runs in half precision: what autograd saw there, summed in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eigendamage_ext.curvature import Factors, estimate_factors

CLASSES, EXAMPLES = 5, 48
X = torch.randn(EXAMPLES, 3, 8, 8)
Y = torch.arange(EXAMPLES) % CLASSES


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 64, CLASSES),
    )


def seen_by_autograd(model: nn.Sequential, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output gradient of each layer, of the sum of the examples' losses at the labels."""
    layers = {name: layer for name, layer in model.named_children() if hasattr(layer, "weight")}
    inputs, outputs = {}, {}
    for name, layer in layers.items():

        def keep(layer, args, output, name=name):
            inputs[name] = args[0].detach().clone()
            output.retain_grad()
            outputs[name] = output
            return output.clone()  # the ReLU after it works in place

        layer.register_forward_hook(keep)
    with torch.autocast("cpu", dtype):
        logits = model(X)
    assert logits.dtype == dtype
    v = logits.detach().double().softmax(1) - F.one_hot(Y, CLASSES)
    logits.backward(v.to(dtype))
    return {name: (inputs[name], outputs[name].grad) for name in layers}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_are_float32_sums_of_what_half_precision_saw(dtype):
    found = estimate_factors(network(), [(X, Y)], fisher="empirical", autocast=dtype, progress=False)
    for name, (x, g) in seen_by_autograd(network(), dtype).items():
        assert g.dtype == dtype
        rows = g.double().movedim(1, -1).flatten(0, -2) if g.dim() == 4 else g.double()
        G = rows.T @ rows / EXAMPLES
        x = F.unfold(x.double(), 3, padding=1).movedim(1, 2).reshape(-1, 3, 9) if name == "0" else x.double()
        pixels = x.movedim(1, -1).reshape(-1, x.shape[1])
        A = pixels.T @ pixels / len(pixels)
        for ours, exact in ((found[name].A, A), (found[name].G, G)):
            assert ours.dtype == torch.float32
            assert (ours - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert found.settings.autocast == str(dtype).removeprefix("torch.")


def distance(one: Factors, other: Factors) -> float:
    """Of the second moments."""
    return max(float((one[name].S - other[name].S).norm() / other[name].S.norm()) for name in one)


def test_second_moments_follow_the_autocast_of_the_factors(tmp_path):
    factors = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        factors[dtype] = estimate_factors(network(), [X], fisher="exact", autocast=dtype, progress=False)
        factors[dtype].save(tmp_path / "factors.safetensors")
        factors[dtype] = Factors.load(tmp_path / "factors.safetensors")
        factors[dtype]._basis = factors[None].eigenbasis()
        factors[dtype].second_moments(network(), [X], progress=False)
    assert 1e-4 < distance(factors[torch.bfloat16], factors[None]) < 0.05
    assert 1e-5 < distance(factors[torch.float16], factors[None]) < 0.005


def test_autocast_is_over_when_the_pass_is():
    with torch.autocast("cpu", torch.float16):
        estimate_factors(network(), [X], autocast=torch.bfloat16, progress=False)
        assert torch.get_autocast_dtype("cpu") == torch.float16 and torch.is_autocast_enabled("cpu")
    estimate_factors(network(), [X], autocast=torch.bfloat16, progress=False)
    assert not torch.is_autocast_enabled("cpu")
