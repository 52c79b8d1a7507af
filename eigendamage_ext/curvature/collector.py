"""Watching layers while a model runs forward and back, batch by batch.

A forward hook sees a layer's input and puts a tensor hook on its output for the gradient; a module's own
backward hook would forbid an in-place ReLU after the layer. As parameters do not require grad, no weight
gradient is formed and the graph starts at the first covered outputs.
"""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext._adapter import Adapter, Inputs, call, logits_of, named_tensors
from eigendamage_ext._finite import check_finite
from eigendamage_ext.curvature.batches import Batch, batches
from eigendamage_ext.curvature.example import blank
from eigendamage_ext.curvature.fisher import Fisher
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import batched
from eigendamage_ext.curvature.rows import RowCheck, grouped, obstacle
from eigendamage_ext.curvature.state import device_of

SMALL = 2**16  # numbers that are copied to be added up with others


@dataclass
class Seen:
    """The data of a pass: number of examples, and the first of them as `blank` leaves it."""

    count: int = 0
    example: Inputs | None = None


class Collector(ABC):
    """Hands inputs and output gradients of some layers to a subclass, which sums what it needs of them.

    Attributes:
        specs: The layers in numbers.
        dropped: Layers whose sums are not what they should be, with the reason.
    """

    gradient = "output gradient"  # whose squares a subclass adds up, in errors
    by_example = False  # whether it counts which rows are whose
    apart = True  # whether each row must be of one example alone

    def __init__(
        self, layers: Mapping[str, nn.Module], *, caller: str, autocast: torch.dtype | None = None
    ) -> None:
        self.specs = {name: LayerSpec.of(name, module) for name, module in layers.items()}
        self.dropped: dict[str, str] = {}
        self._layers, self._caller, self._autocast = layers, caller, autocast
        self._recording = False
        self._batch: Batch
        self._row_check: RowCheck
        self._calls: Counter[str] = Counter()  # in the current forward pass
        self._last_vector = False
        self._called: set[str] = set()
        self._reached: set[str] = set()  # by a gradient
        self._leaves: list[Tensor] = []

    @abstractmethod
    def add_input(self, name: str, x: Tensor, output: Tensor, batch: Batch) -> None:
        """Takes a layer's input in the forward pass, and its output for the sake of its shape.

        The input is ``(N, …)``; if not `by_example` a Linear's may start with another number of rows.
        """

    @abstractmethod
    def add_gradient(self, name: str, gradient: Tensor, *, last: bool) -> None:
        """Takes the gradient at a layer's output, with as many rows; `last`: no other comes in this batch."""

    @abstractmethod
    def end_batch(self) -> None:
        """Releases what was kept of a batch."""

    @abstractmethod
    def squares(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Sums of squares by layer, of its input and of gradients: finite if all that was added is."""

    def run(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        fisher: Fisher,
        *,
        adapter: Adapter,
        max_examples: int | None,
        description: str,
        progress: bool,
    ) -> Seen:
        """Collects from every batch of a loader, up to `max_examples` examples."""
        seen, self._row_check = Seen(), RowCheck(by_example=self.by_example)
        stream = batches(
            loader,
            adapter=adapter,
            device=device_of(model),
            max_examples=max_examples,
            description=description,
            progress=progress,
            caller=self._caller,
        )
        with self._attached(), closing(stream):
            for batch in stream:
                self._collect(model, batch, fisher, adapter)
                if seen.count == 0:
                    seen.example = blank(batch.inputs)
                seen.count += len(batch)
        for name in self._layers:
            if name not in self._called:
                self.dropped.setdefault(name, "never called in the forward pass")
            elif name not in self._reached:
                self.dropped.setdefault(name, "its output received no gradient from the logits")
        return seen

    @contextmanager
    def _attached(self) -> Iterator[None]:
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

    def _collect(self, model: nn.Module, batch: Batch, fisher: Fisher, adapter: Adapter) -> None:
        """Adds one batch: a forward pass, and a backward pass for every vector of the Fisher."""
        self._batch, self._leaves = batch, []
        self._calls.clear()
        self._row_check.begin()
        self._recording = True
        device = device_of(model)
        with torch.autocast(device.type, self._autocast) if self._autocast else nullcontext():
            output = call(model, batch.inputs)
        self._recording = False
        logits = logits_of(output, adapter, caller=self._caller)
        self._check_logits(logits, batch)
        count = fisher.count(logits)

        def send(vector: Tensor, more: bool = True) -> None:
            torch.autograd.grad(logits, self._leaves, vector, retain_graph=more, allow_unused=True)

        self.dropped |= self._row_check.faults(logits.detach(), send)
        for index, vector in enumerate(
            fisher.vectors(logits, batch.targets, batch.first, batch.inputs), start=1
        ):
            self._last_vector = index == count
            send(vector, more=not self._last_vector)
        self._leaves = []
        self.end_batch()
        self._check_finite(model, batch, logits.detach())

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
        self._calls[name] += 1
        if self._calls[name] > 1:
            self.dropped[name] = "called more than once in a forward pass"
            return
        spec, x, examples = self.specs[name], batched(self.specs[name], x.detach()), len(self._batch)
        if self.by_example and (reason := obstacle(spec, x, examples)):
            self.dropped[name] = reason
            return
        if self.apart:
            self._row_check.note(spec, x, examples)
        if self.by_example:
            x = grouped(spec, x, examples)
        self.add_input(name, x, output, self._batch)
        if name in self.dropped:
            return
        self._called.add(name)
        if output.requires_grad:
            output.register_hook(partial(self._after_backward, name))  # type: ignore[no-untyped-call]

    def _after_backward(self, name: str, gradient: Tensor) -> None:
        if name in self.dropped:
            return
        gradient = batched(self.specs[name], gradient)
        if self._row_check.asking:
            self._row_check.hear(name, gradient)
            return
        if self.by_example:
            gradient = grouped(self.specs[name], gradient, len(self._batch))
        self._reached.add(name)
        self.add_gradient(name, gradient, last=self._last_vector)

    def _check_logits(self, logits: Tensor, batch: Batch) -> None:
        if logits.shape[:1] != (len(batch),):
            raise ValueError(
                f"{self._caller}: model must return a row of logits for each of {len(batch)} examples, got "
                f"{tuple(logits.shape)}; put the batch first"
            )
        if not logits.requires_grad:
            raise ValueError(
                f"{self._caller}: logits must depend on a covered layer, got none that does; check that the "
                "model neither detaches them nor runs under no_grad, and that it calls the covered layers"
            )

    def _check_finite(self, model: nn.Module, batch: Batch, logits: Tensor) -> None:
        """Refuses a batch that made something not finite, naming the first such thing on the way.

        Everything is asked at once, when all of the batch's work is under way: a device is waited for here
        and nowhere else in a pass.
        """
        data = "loader must yield finite numbers, got NaN or infinity in the {} of batch {}; clean the data"
        layer = (
            "the {} of layer {!r} must be finite, squares too, got NaN or infinity in batch {}; "
            "check the weights and the scale of the data"
        )
        inputs, gradients = self.squares()
        # A number times 0 is 0 or, if it is not finite, NaN.
        checks = [
            (data.format(f"input {name!r}" if name else "input", batch.index), tensor * 0)
            for name, tensor in named_tensors(batch.inputs)
        ]
        if batch.targets is not None:
            checks.append((data.format("target", batch.index), batch.targets * 0))
        checks += [(layer.format("input", name, batch.index), total) for name, total in inputs.items()]
        checks.append(
            (
                f"model must give finite logits, got NaN or infinity in batch {batch.index}; "
                "check its last layers",
                logits * 0,
            )
        )
        checks += [(layer.format(self.gradient, name, batch.index), sum_) for name, sum_ in gradients.items()]
        together: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        sums: dict[torch.device, list[Tensor]] = defaultdict(list)
        for _, tensor in checks:
            if tensor.numel() > SMALL:
                sums[tensor.device].append(tensor.sum(dtype=torch.float64))
            else:
                together[tensor.device, tensor.dtype].append(tensor.flatten())
        for (device, _), tensors in together.items():
            sums[device].append(torch.cat(tensors).sum(dtype=torch.float64))
        if all(all(torch.stack(of_device).isfinite().tolist()) for of_device in sums.values()):
            return
        loaded = len(checks) - len(inputs) - len(gradients) - 1  # checks of what the loader gave come first
        for place, (message, tensor) in enumerate(checks):
            if not tensor.sum(dtype=torch.float64).isfinite():
                if place >= loaded:
                    check_finite(model, caller=self._caller)  # a layer is to blame before those behind it
                raise ValueError(f"{self._caller}: {message}")
