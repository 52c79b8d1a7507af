"""What a network costs, and where its layers run, seen on one example."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eigendamage_ext._adapter import Adapter, Inputs, call, logits_of, move
from eigendamage_ext.curvature.kinds import kind_of
from eigendamage_ext.curvature.layers import LayerSpec, named_layers
from eigendamage_ext.curvature.state import device_of, preserved


@dataclass(frozen=True)
class Measurement:
    """One forward pass of one example.

    Attributes:
        params: Parameters of the whole model, tied ones once.
        flops: FLOPs of the whole model as `torch.utils.flop_counter` counts them: 2 for each multiply-add.
        calls: How often each layer ran, by name; one that did not run is absent. A factored layer
            is one, by its own name: calls and positions are those of its core, the output is its own.
        positions: Pixels (of a Linear: rows) at the input and at the output of each, all its calls together.
        dtype: That of the first floating-point parameter; None without one.
        head: The one whose output is the logits; where there is none, the one that ran last.
    """

    params: int
    flops: int
    calls: dict[str, int]
    positions: dict[str, tuple[int, int]]
    dtype: torch.dtype | None
    head: str | None


def measure(model: nn.Module, example: Inputs, adapter: Adapter | None = None) -> Measurement:
    """Runs the model once, in eval mode without gradients; flags, hooks and random state stay as they were.

    Args:
        model: Any model that takes `example` alone.
        example: A tensor, a tuple of arguments or a mapping, tensors ``(1, ...)``; they move to the model's
            device.
        adapter: Finds the logits where they are in an unusual place.
    """
    calls: Counter[str] = Counter()
    positions: Counter[tuple[str, str]] = Counter()
    outputs: dict[str, Tensor] = {}  # held until the end, so that no later tensor takes their memory

    def record(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        spec = LayerSpec.of(name, module)
        x = args[0] if args else kwargs["input"]
        positions[name, "input"] += x.numel() // spec.in_channels
        positions[name, "output"] += output.numel() // spec.out_channels
        calls[name] += 1

    def hold(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        outputs.pop(name, None)
        outputs[name] = output

    with ExitStack() as stack:
        for name, layer in named_layers(model):
            if kind_of(layer):
                hook = layer.register_forward_hook(partial(record, name), with_kwargs=True)
                stack.callback(hook.remove)
                hook = model.get_submodule(name).register_forward_hook(partial(hold, name))
                stack.callback(hook.remove)
        stack.enter_context(preserved(model))
        stack.enter_context(torch.no_grad())
        counter = stack.enter_context(FlopCounterMode(display=False))
        result = call(model, move(example, device_of(model)))
    return Measurement(
        params=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops(),
        calls=dict(calls),
        positions={name: (positions[name, "input"], positions[name, "output"]) for name in calls},
        dtype=dtype_of(model),
        head=_head(outputs, result, adapter or Adapter()),
    )


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating-point parameter; None without one."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _head(outputs: dict[str, Tensor], result: Any, adapter: Adapter) -> str | None:
    """The layer that made the logits, by the memory they share; `outputs` is in the order of the calls."""
    names = list(outputs)
    try:
        memory = logits_of(result, adapter, caller="measure").untyped_storage().data_ptr()
    except TypeError:
        if adapter.logits:
            raise
        memory = None  # a model without logits has its cost too
    names = [name for name in names if outputs[name].untyped_storage().data_ptr() == memory] or names
    return names[-1] if names else None
