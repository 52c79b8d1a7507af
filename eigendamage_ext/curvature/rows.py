"""Which rows of a layer's input are whose: those of an example must be told from those of another.

Windows of an image and the tokens of a text give a Linear more rows than there are examples. Where they lie
one example after the other they are grouped. Whether they do is seen in the gradients: what is sent back from
some examples' logits must not arrive at the rows of others. Once for every number of rows is enough.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from eigendamage_ext.curvature.layers import LayerSpec


def grouped(spec: LayerSpec, x: Tensor, examples: int) -> Tensor:
    """A layer's input or output gradient with the examples first, ``(N, …)``."""
    return x.reshape(examples, -1, x.shape[-1]) if spec.kind == "Linear" and len(x) != examples else x


def obstacle(spec: LayerSpec, x: Tensor, examples: int) -> str | None:
    """Why the rows of an input cannot be grouped by example, or None."""
    groupable = spec.kind == "Linear" and len(x) and len(x) % examples == 0
    if groupable or len(x) == examples:
        return None
    return (
        f"its input starts with {len(x)} rows where the batch has {examples} examples, so that no example "
        "can be told from another"
    )


class RowCheck:
    """Looks whether the rows of Linears lie one example after the other.

    Attributes:
        asking: Whether a backward pass is its own.
    """

    def __init__(self) -> None:
        self.asking = False
        self._known: set[tuple[str, int]] = set()  # layers with so many rows to an example
        self._rows: dict[str, int] = {}  # of each example in this batch
        self._doubted = False
        self._silent: Tensor  # examples that send nothing back
        self._strays: dict[str, Tensor] = {}

    def begin(self) -> None:
        """A new batch."""
        self._rows.clear()
        self._doubted = False

    def note(self, spec: LayerSpec, x: Tensor, examples: int) -> None:
        """Takes the input of a layer without `obstacle`."""
        if spec.kind == "Linear":
            self._rows[spec.name] = len(x) // examples
            doubtful = len(x) != examples or examples in x.shape[1:-1]  # positions may come first
            self._doubted |= doubtful and (spec.name, len(x) // examples) not in self._known

    def strays(self, logits: Tensor, send: Callable[[Tensor], None]) -> dict[str, str]:
        """Why layers have rows that lie otherwise, by name.

        Args:
            logits: ``(N, …)``, before their graph is let go.
            send: Runs a backward pass from a vector in the shape of the logits; it calls `hear`.
        """
        self._strays = {}
        if self._doubted and len(logits) > 1:
            vector = torch.arange(1, logits.numel() + 1, device=logits.device).cos().view(logits.shape)
            self.asking = True
            try:
                for speaking in _calls(len(logits)):
                    self._silent = ~speaking
                    mask = self._silent.to(logits.device).view(-1, *(1,) * (logits.dim() - 1))
                    send(vector.to(logits.dtype).masked_fill(mask, 0))
            finally:
                self.asking = False
            self._known |= self._rows.items()
        return {
            name: "the rows of its input do not lie one example after the other"
            for name in self._rows
            if self._strays.get(name, False)
        }

    def hear(self, name: str, gradient: Tensor) -> None:
        """Takes the gradient at a layer's output."""
        if name in self._rows:
            silent = self._silent.to(gradient.device).repeat_interleave(self._rows[name])
            stray = (gradient[silent].abs() > 0).any()  # which NaN is not: it is told of later
            self._strays[name] = self._strays.get(name, False) | stray


def _calls(examples: int) -> Tensor:
    """Which examples speak in which pass, ``(P, N)`` bool: of any two, each speaks once without the other."""
    passes = next(count for count in itertools.count(1) if math.comb(count, count // 2) >= examples)
    turns = itertools.islice(itertools.combinations(range(passes), passes // 2), examples)
    calls = torch.zeros(examples, passes, dtype=torch.bool, device="cpu")
    return calls.scatter_(1, torch.tensor(list(turns), device="cpu"), value=True).mT
