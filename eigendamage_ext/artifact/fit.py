"""Whether the layers of a model that was read from a file fit each other, by their shapes alone."""

import warnings
from functools import partial
from typing import Any

import torch
from torch import nn

from eigendamage_ext._adapter import Inputs, call
from eigendamage_ext._files import ArtifactError
from eigendamage_ext.artifact.allowlist import DTYPES
from eigendamage_ext.artifact.trace import skeleton
from eigendamage_ext.pruning.channel_check import first_line


def check_fit(model: nn.Module, into: nn.Module, plan: Any) -> None:
    """Refuses a model that does not run where the one it was made of does; nothing is computed.

    Args:
        model: The model; not changed, as it is a copy without memory that runs.
        into: The one that it was made of.
        plan: What the file says of its plan, not trusted. Without the shapes of an example in it, nothing is
            refused.

    Raises:
        ArtifactError: A layer does not fit those before it; its name.
    """
    try:
        example = _example(plan["example"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return
    if _failure(into, example) is None and (failure := _failure(model, example)):
        raise ArtifactError(
            f"load: layers in the file must fit each other, got {failure}; save the model again, or build "
            "`into` like the one that was pruned"
        )


def _example(stated: dict[str, Any]) -> Inputs:
    """An example without memory, of the shapes and dtypes that a plan states."""
    tensors = {
        name: torch.empty(1, *shape, dtype=DTYPES[dtype], device="meta")
        for name, (shape, dtype) in stated.items()
    }
    if tensors.keys() == {""}:
        return tensors[""]
    if all(name.isdecimal() for name in tensors):
        return tuple(tensors[name] for name in sorted(tensors, key=int))
    return tensors


def _failure(model: nn.Module, example: Inputs) -> str | None:
    """Where a model does not run on an example, and why; None if it does."""
    entered = [""]

    def enter(name: str, module: nn.Module, args: Any) -> None:
        entered.append(name)

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = skeleton(model)
            for name, module in empty.named_modules():
                module.training = False
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
                module.register_forward_pre_hook(partial(enter, name))
            call(empty, example)
    except Exception as error:
        return f"{first_line(error)} in layer {entered[-1]!r}"
    return None
