"""NaN and infinity, found before they spread."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def check_finite(model: nn.Module, *, caller: str) -> None:
    """Refuses a model with a weight, or a statistic of a batch norm, that is not finite."""
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            tensors |= module.named_buffers(name)
    finite: dict[str, bool] = {}
    for device in {tensor.device for tensor in tensors.values()}:  # each is waited for once
        names = [name for name, tensor in tensors.items() if tensor.device == device]
        told = torch.stack([tensors[name].isfinite().all() for name in names]).tolist()
        finite |= zip(names, told, strict=True)
    for name in tensors:
        if not finite[name]:
            raise ValueError(
                f"{caller}: weights and statistics of model must be finite, got NaN or infinity in {name!r}; "
                "load them from before that"
            )


def steepest_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The largest magnitude in any gradient; NaN where one is."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, math.inf)
