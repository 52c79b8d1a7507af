"""Whether a network with channels cut computes what it does with zeros where they are used, in numbers."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eigendamage_ext._adapter import Inputs, call, map_tensors, take
from eigendamage_ext.curvature.state import device_of, preserved
from eigendamage_ext.pruning.surgery import Cut, slice_channels

TOLERANCE = 1e-9  # of max|output|, in float64
EFFECT = 1e-6  # of max|output|: what the zeros must change at least, or the comparison would show nothing


class Trial:
    """A copy of a model to try cuts on: float64, eval mode, random weights and statistics, two examples.

    Random numbers keep a fault from hiding behind a zero, such as the shift of a fresh batch norm. Nothing of
    the model is shared with the copy.

    Attributes:
        model: The copy; its parameters require grad.
        inputs: Two examples, every tensor ``(2, …)``; random where they are floating point.
    """

    @torch.inference_mode(False)
    def __init__(self, model: nn.Module, example: Inputs) -> None:
        device = device_of(model)
        if device.type == "mps":  # has no float64
            device = torch.device("cpu")
        self.model = copy.deepcopy(model).to(device, torch.float64)
        for module in self.model.modules():  # they would put nodes of their own between those of the layers
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
        generator = torch.Generator("cpu").manual_seed(0)

        def twice(tensor: Tensor) -> Tensor:
            two = tensor.detach().to(device)
            two = two.repeat(2, *(1,) * (two.dim() - 1)) if two.dim() else two
            if not two.is_floating_point():
                return two
            return torch.randn(two.shape, generator=generator, dtype=torch.float64, device="cpu").to(device)

        self.inputs: Inputs = map_tensors(twice, take(example, 1))
        _randomise(self.model, generator)
        self._dense: list[Tensor] = []

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Eval mode and gradients for every parameter; the random state is put back afterwards.

        Raises:
            ValueError: The copy does not run on the inputs.
        """
        with preserved(self.model):
            for parameter in self.model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            try:
                self._dense = self.outputs()
            except Exception as error:
                raise ValueError(
                    f"channel_groups: model must run in float64 on two inputs like `example`, got "
                    f"{first_line(error)}; pass an input that the model takes"
                ) from error
            yield

    def outputs(self) -> list[Tensor]:
        """All tensors the copy returns; randomness in its forward is the same every time."""
        torch.manual_seed(0)
        with torch.no_grad():
            return list(tensors_in(call(self.model, self.inputs)))

    def fault(self, cuts: Mapping[str, Cut]) -> str | None:
        """How the copy with these channels cut differs from the copy with zeros where they are consumed.

        Args:
            cuts: Module name to the channels it loses. Every channel that leaves an input counts as consumed.

        Returns:
            None where both give the same outputs and the zeros mattered, else a reason.
        """
        try:
            with self._masked(cuts):
                masked = self.outputs()
            with self._cut(cuts):
                cut = self.outputs()
        except Exception as error:
            return f"the model does not run without some of them ({first_line(error)})"
        if [t.shape for t in cut] != [t.shape for t in masked]:
            return "it makes the model's output"
        scale = max((float(t.abs().max()) for t in self._dense if t.numel()), default=0.0)
        if not _distance(self._dense, masked) > EFFECT * scale:
            return "the output does not depend on them on random weights, so a cut cannot be checked"
        distance = _distance(cut, masked)
        if not distance <= TOLERANCE * scale:
            return (
                f"cutting some of them is not zeroing them where they are used: outputs differ by "
                f"{distance / scale:.1g} of their size"
            )
        return None

    @contextmanager
    def _masked(self, cuts: Mapping[str, Cut]) -> Iterator[None]:
        weights = []
        with torch.no_grad():
            try:
                for name, cut in cuts.items():
                    if cut.inputs is not None:
                        weight = self.model.get_submodule(name).get_parameter("weight")
                        weights.append((weight, weight.clone()))
                        weight[:, cut.inputs.to(weight.device)] = 0
                yield
            finally:
                for weight, before in weights:
                    weight.copy_(before)

    @contextmanager
    def _cut(self, cuts: Mapping[str, Cut]) -> Iterator[None]:
        whole = {name: self.model.get_submodule(name) for name in cuts}
        slice_channels(self.model, cuts, inplace=True)
        try:
            yield
        finally:
            for name, module in whole.items():
                self.model.set_submodule(name, module)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights of a size that neither fades nor explodes with depth; vectors and variances around 1."""

    def uniform(tensor: Tensor, low: float) -> None:
        tensor.copy_(low + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu"))

    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() < 2:
                uniform(parameter, 0.5)
            else:
                deviation = (2 / max(1, parameter[0].numel())) ** 0.5
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device="cpu")
                parameter.copy_(deviation * noise)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                assert module.running_var is not None
                uniform(module.running_mean, -0.5)
                uniform(module.running_var, 0.5)


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    """max|a − b|; NaN where there is one."""
    return max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True) if x.numel()), default=0.0)


def first_line(error: Exception) -> str:
    """An exception in at most 120 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
