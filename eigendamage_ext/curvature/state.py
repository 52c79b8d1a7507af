"""A pass over a model that leaves no trace: which models allow one, and what is put back afterwards."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Eval mode, gradients enabled but not for parameters, no autocast; afterwards all is as before.

    Put back, however the block ends: the mode of every module, requires_grad of every parameter, every
    buffer, and the random state of the CPU and of the model's device. Modules are switched without `eval()`,
    which a model may have overridden.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [
        (module._buffers, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    device = device_of(model)
    accelerators = [] if device.type == "cpu" else [device]
    with (
        torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            for module, _ in modes:
                module.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            for owner, name, buffer, version, value in buffers:
                owner[name] = buffer
                if buffer._version != version:
                    buffer.copy_(value)


def check_model(model: nn.Module, *, caller: str) -> None:
    """Refuses a model whose layers cannot be watched, or whose examples have no gradient of their own."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be an nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        where = f"{type(module).__name__} {name!r}" if name else type(module).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{caller}: model must be eager, got {where}; pass the model before scripting")
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise TypeError(
                f"{caller}: model must be eager, got {where}, which is compiled; "
                "pass the model before torch.compile (the wrapper holds it as `_orig_mod`)"
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise TypeError(f"{caller}: model must not be wrapped, got {where}; pass its `.module`")
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{caller}: model must treat examples one by one in eval mode, got {where} without "
                "running statistics; use track_running_stats=True"
            )
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                _check_tensor(where, tensor, caller)


def _check_tensor(where: str, tensor: torch.Tensor, caller: str) -> None:
    """Refuses a parameter or buffer that holds no numbers yet, or that autograd cannot use."""
    if is_lazy(tensor):
        raise ValueError(
            f"{caller}: model must be initialised, got lazy {where}; run one batch through it first"
        )
    if tensor.is_meta:
        raise ValueError(f"{caller}: model must hold its weights, got {where} on 'meta'; load them first")
    if tensor.is_inference():
        raise ValueError(
            f"{caller}: model must allow gradients, got {where} made under inference_mode; "
            "build or copy the model outside of it"
        )
