"""Fishers written out as matrices in float64, from torch.func's Jacobians."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

LOSS_OF_ONE = {
    "cross_entropy": lambda z, y: F.cross_entropy(z, y),
    "mse": lambda z, y: ((z - y) ** 2).sum(),
    "bce_with_logits": lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum"),
}

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "dilation": (2, 1), "padding": 2, "bias": False},
    "same": {"kernel_size": (2, 3), "padding": "same"},
    "valid": {"kernel_size": (2, 3), "padding": "valid"},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "stride": 2, "groups": 4, "bias": False},
    "reflect": {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    "circular same": {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "groups": 2},
}


def fisher_of(function: Callable[[Tensor], Tensor], at: Tensor, loss: str, fisher: str, y: Tensor) -> Tensor:
    """Fisher ``(P, P)`` of one example with respect to `at (P entries)`, which has logits ``(C,)``."""
    z, jacobian = function(at), jacrev(function)(at).flatten(1)
    if fisher == "empirical":
        gradient = grad(LOSS_OF_ONE[loss])(z, y) @ jacobian
        return torch.outer(gradient, gradient)
    hessian = jacrev(grad(LOSS_OF_ONE[loss]))(z, y)
    return jacobian.mT @ hessian @ jacobian


def weight_fisher(model: nn.Module, name: str, x: Tensor, y: Tensor, loss: str, fisher: str) -> Tensor:
    """Mean Fisher of a layer's weight and bias, as rows [w_o | b_o] one after the other."""
    module = model.get_submodule(name)
    shape, bias = module.weight.shape, module.bias is not None
    rows = module.weight.flatten(1)
    if bias:
        rows = torch.cat([rows, module.bias[:, None]], dim=1)

    def logits(rows: Tensor, example: Tensor) -> Tensor:
        changed = {f"{name}.weight": rows[:, :-1].reshape(shape) if bias else rows.reshape(shape)}
        if bias:
            changed[f"{name}.bias"] = rows[:, -1]
        return functional_call(model, changed, example[None])[0]

    blocks = [
        fisher_of(lambda rows, example=example: logits(rows, example), rows.detach(), loss, fisher, label)
        for example, label in zip(x, y, strict=True)
    ]
    return torch.stack(blocks).mean(dim=0)
