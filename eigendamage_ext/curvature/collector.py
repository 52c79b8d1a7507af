"""Hooks that sum a model's Kronecker factors batch by batch.

A forward hook takes the input's second moment at once, so the input is not kept, and puts a tensor hook on
the output for the gradient's; a module's own backward hook would forbid an in-place ReLU after the layer.
As parameters do not require grad, no weight gradient is formed and the graph starts at the first covered
outputs.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.batches import Batch
from eigendamage_ext.curvature.fisher import Fisher
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import add_gradient, add_input, batched, factor_shapes, input_divisor


@dataclass
class _Sums:
    """What a layer has added up: A before its division by `divisor`, G before that by the examples."""

    spec: LayerSpec
    A: Tensor
    G: Tensor
    divisor: int = 0
    calls: int = 0  # in the current forward pass
    gradients: int = 0


class Collector:
    """Sums A and G of some layers over batches.

    Attributes:
        dropped: Layers whose sums would not be their factors, with the reason.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, kind: str, weight_sharing: str) -> None:
        self.dropped: dict[str, str] = {}
        self._layers = layers
        self._kind, self._weight_sharing = kind, weight_sharing
        self._sums = {
            name: self._zeros(LayerSpec.of(name, module), module) for name, module in layers.items()
        }
        self._recording = False
        self._examples = 0
        self._leaves: list[Tensor] = []

    def _zeros(self, spec: LayerSpec, module: nn.Module) -> _Sums:
        weight = module.get_parameter("weight")
        dtype = torch.promote_types(weight.dtype, torch.float32)
        A, G = (weight.new_zeros(shape, dtype=dtype) for shape in factor_shapes(spec, self._kind))
        return _Sums(spec, A, G)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keeps the hooks on the layers for the length of a block."""
        handles = []
        try:
            for name, module in self._layers.items():
                # Before the user's hooks, which may replace the output.
                hook = partial(self._after_forward, name)
                handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def collect(self, model: nn.Module, batch: Batch, fisher: Fisher) -> None:
        """Adds one batch: a forward pass, and a backward pass for every vector of the Fisher."""
        self._examples, self._leaves = len(batch), []
        for sums in self._sums.values():
            sums.calls = 0
        self._recording = True
        logits = model(batch.inputs)
        self._recording = False
        self._check_logits(logits, batch)
        count = fisher.count(logits)
        for index, vector in enumerate(fisher.vectors(logits, batch.targets, batch.first), start=1):
            torch.autograd.grad(logits, self._leaves, vector, retain_graph=index < count, allow_unused=True)
        self._leaves = []
        self._check_finite(batch)

    def factors(self, examples: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A and G of every layer that is not dropped; to be called once, at the end."""
        for name, sums in self._sums.items():
            if name not in self.dropped and sums.divisor == 0:
                self.dropped[name] = "never called in the forward pass"
            elif name not in self.dropped and sums.gradients == 0:
                self.dropped[name] = "its output received no gradient from the logits"
        return {
            name: (sums.A.div_(sums.divisor), sums.G.div_(examples))
            for name, sums in self._sums.items()
            if name not in self.dropped
        }

    def _after_forward(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        if not output.requires_grad and torch.is_grad_enabled():
            # A clone, since what follows may work in place, which a leaf forbids.
            leaf = output.detach().requires_grad_()
            self._leaves.append(leaf)
            output = leaf.clone()
        # Activation checkpointing calls the layer again in the backward pass, to save the same tensors.
        if self._recording and name not in self.dropped:
            self._record(name, args[0] if args else kwargs["input"], output)
        return output

    def _record(self, name: str, x: Tensor, output: Tensor) -> None:
        sums = self._sums[name]
        x = batched(sums.spec, x.detach())
        sums.calls += 1
        if sums.calls > 1:
            self.dropped[name] = "called more than once in a forward pass"
            return
        if self._weight_sharing == "reduce" and len(x) != self._examples:
            self.dropped[name] = (
                f"its input starts with {len(x)} rows where the batch has {self._examples} examples, "
                "which weight_sharing='reduce' takes to be the same"
            )
            return
        add_input(sums.spec, x, sums.A, kind=self._kind, weight_sharing=self._weight_sharing)
        positions = output.numel() // sums.spec.out_channels
        sums.divisor += input_divisor(
            sums.spec, positions, self._examples, kind=self._kind, weight_sharing=self._weight_sharing
        )
        if output.requires_grad:
            output.register_hook(partial(self._after_backward, name))  # type: ignore[no-untyped-call]

    def _after_backward(self, name: str, gradient: Tensor) -> None:
        if name not in self.dropped:
            sums = self._sums[name]
            sums.gradients += 1
            add_gradient(sums.spec, batched(sums.spec, gradient), sums.G, weight_sharing=self._weight_sharing)

    def _check_logits(self, logits: Any, batch: Batch) -> None:
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"estimate_factors: model must return its logits as one tensor, got {type(logits).__name__}; "
                "wrap it in a module that does"
            )
        if logits.shape[:1] != batch.inputs.shape[:1]:
            raise ValueError(
                f"estimate_factors: model must return a row of logits for each of {len(batch)} examples, got "
                f"{tuple(logits.shape)}; put the batch first"
            )
        if not logits.isfinite().all():
            self._check_finite(batch)
            raise ValueError(
                "estimate_factors: model must give finite logits, got NaN or infinity in batch "
                f"{batch.index}; check its last layers"
            )
        if not logits.requires_grad:
            raise ValueError(
                "estimate_factors: logits must depend on a covered layer, got none that does; check that the "
                "model neither detaches them nor runs under no_grad, and that it calls the covered layers"
            )

    def _check_finite(self, batch: Batch) -> None:
        """Refuses a sum that is not finite. Its trace is a sum of squares, in which nothing cancels."""
        kept = [(name, sums) for name, sums in self._sums.items() if name not in self.dropped]
        matrices = [("input", name, sums.A) for name, sums in kept]
        matrices += [("output gradient", name, sums.G) for name, sums in kept]
        if not matrices:
            return
        device = matrices[0][2].device
        traces = [matrix.diagonal(dim1=-2, dim2=-1).sum().to(device) for _, _, matrix in matrices]
        for (what, name, _), finite in zip(matrices, torch.stack(traces).isfinite().tolist(), strict=True):
            if not finite:
                raise ValueError(
                    f"estimate_factors: the {what} of layer {name!r} must be finite, squares too, got "
                    f"NaN or infinity in batch {batch.index}; check the weights and the scale of the data"
                )
