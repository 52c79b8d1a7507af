"""A second pass over the data, for what is measured of the gradients of weights.

∇W_nv = Σ_t g_nvt a_ntᵀ, for example n and vector v of the Fisher, is a sum over output positions: of products
of the gradient at a layer's output and of its input, which is kept until the last gradient has arrived.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, check_adapter
from eigendamage_ext.curvature.batches import Batch
from eigendamage_ext.curvature.checks import check_integer
from eigendamage_ext.curvature.collector import Collector
from eigendamage_ext.curvature.fisher import Fisher
from eigendamage_ext.curvature.layers import LayerSpec, check_layer
from eigendamage_ext.curvature.moments import sum_on, weight_rows_shape, zeros
from eigendamage_ext.curvature.state import check_model, preserved


class _Kept(NamedTuple):
    """A layer's input ``(N, …)`` between forward and backward pass, and its version counter back then."""

    x: Tensor
    version: int


class WeightGradients(Collector):
    """Sums over the examples something of the weight's gradient, which a subclass says."""

    gradient = "gradient"
    caller: str  # in errors
    by_example = True

    def __init__(
        self, layers: Mapping[str, nn.Module], *, autocast: torch.dtype | None, offload: bool
    ) -> None:
        super().__init__(layers, caller=self.caller, autocast=autocast)
        self.sums = {
            name: zeros(module, self.shape(self.specs[name]), offload) for name, module in layers.items()
        }
        self._kept: dict[str, _Kept] = {}

    def shape(self, spec: LayerSpec) -> tuple[int, ...]:
        """Shape of a layer's sum: ``(c_out, D)``, the weight and the bias as rows."""
        return weight_rows_shape(spec)

    @abstractmethod
    def add(self, name: str, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Adds to a layer's sum `out` what comes of its input `x` and the gradient `g` at its output."""

    def means(self, examples: int) -> dict[str, Tensor]:
        """The sums over the number of examples; to be called once, at the end."""
        return {name: total.div_(examples) for name, total in self.sums.items()}

    def add_input(self, name: str, x: Tensor, output: Tensor, batch: Batch) -> None:
        """Keeps the input until its gradients are there."""
        x = x.clone() if x.is_inference() else x
        self._kept[name] = _Kept(x, x._version)

    def add_gradient(self, name: str, gradient: Tensor, *, last: bool) -> None:
        """Adds to the layer's sum; after the last gradient the input is let go."""
        x, version = self._kept.pop(name) if last else self._kept[name]
        if x._version != version:
            raise ValueError(
                f"{self.caller}: the input of layer {name!r} must stay as it is until its gradient arrives, "
                "got one that was changed in place; write x = x + y for x += y, set inplace=False"
            )
        with sum_on(gradient.device, self.sums[name]) as total:
            self.add(name, x, gradient, total)

    def end_batch(self) -> None:
        """Lets all inputs go."""
        self._kept.clear()

    def squares(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The sums alone."""
        return {}, {name: total for name, total in self.sums.items() if name not in self.dropped}


def second_pass(
    model: nn.Module,
    loader: Iterable[Any],
    specs: Mapping[str, LayerSpec],
    fisher: Fisher,
    collector: Callable[[Mapping[str, nn.Module]], WeightGradients],
    *,
    adapter: Adapter | None,
    max_examples: int | None,
    description: str,
    progress: bool,
) -> tuple[dict[str, Tensor], int]:
    """Runs a collector over a loader, on the layers that factors describe; the model is left as it was.

    Args:
        model: The model the factors were estimated on.
        loader: Batches, as `batches` takes them.
        specs: The layers of the factors, by name.
        fisher: Which vectors are sent back.
        collector: Makes the collector, of the layers by name.
        adapter: How to read batches and outputs that are not of the usual kinds; see `Adapter`.
        max_examples: Stop after exactly that many.
        description: What a progress bar says.
        progress: Show one.

    Returns:
        The collector's means by layer name, and the number of examples.

    Raises:
        TypeError, ValueError: Naming the argument, layer or batch, and the remedy.
    """
    caller = fisher.caller
    if max_examples is not None:
        max_examples = check_integer(caller, "max_examples", max_examples, least=1)
    adapter = check_adapter(caller, adapter)
    check_model(model, caller=caller)
    layers = {
        name: check_layer(model, spec, caller=caller, origin="the factors") for name, spec in specs.items()
    }
    with preserved(model):
        watching = collector(layers)
        seen = watching.run(
            model,
            loader,
            fisher,
            adapter=adapter,
            max_examples=max_examples,
            description=description,
            progress=progress,
        )
        means = watching.means(seen.count)
    if watching.dropped:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in watching.dropped.items())
        raise ValueError(
            f"{caller}: every layer of the factors must have a gradient for each example, got {reasons}; "
            "leave these out with estimate_factors(layers=…)"
        )
    return means, seen.count
