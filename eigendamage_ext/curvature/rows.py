"""Which rows of a layer's input are whose: those of an example must be told from those of another.

Windows of an image and the tokens of a text give a Linear more rows than there are examples. Sums over rows
do not mind, as long as every row is of one example alone; those of a table that all share are not. Where it
counts which rows are whose, they are grouped if they lie one example after the other. Both are seen in the
gradients: what is sent back from some examples' logits must not arrive at the rows of others.
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


LIE = "the rows of its input do not lie one example after the other"
SHARED = "rows of its input belong to several examples, whose gradients cannot be told apart"


class RowCheck:
    """Looks where the gradients of some examples arrive, once for every layer and number of rows.

    Args:
        by_example: Whether rows must lie one example after the other; else each must be of one example alone.

    Attributes:
        asking: Whether a backward pass is its own.
    """

    def __init__(self, *, by_example: bool) -> None:
        self.asking = False
        self._by_example = by_example
        self._known: set[tuple[str, int]] = set()
        self._specs: dict[str, LayerSpec] = {}  # of the layers in this batch
        self._rows: dict[str, int] = {}  # and the rows of each example
        self._doubted = False
        self._silent: Tensor  # examples that send nothing back
        self._heard: dict[str, Tensor] = {}

    def begin(self) -> None:
        """A new batch."""
        self._specs.clear()
        self._rows.clear()
        self._doubted = False

    def note(self, spec: LayerSpec, x: Tensor, examples: int) -> None:
        """Takes the input of a layer, by example of one without `obstacle`."""
        if self._by_example and spec.kind != "Linear":
            return
        doubtful = len(x) != examples or (self._by_example and examples in x.shape[1:-1])  # may come second
        self._specs[spec.name] = spec
        self._rows[spec.name] = len(x) // examples if self._by_example else 0
        self._doubted |= doubtful and (spec.name, self._rows[spec.name]) not in self._known

    def faults(self, logits: Tensor, send: Callable[[Tensor], None]) -> dict[str, str]:
        """Why rows of layers are not what they must be, by name.

        Args:
            logits: ``(N, …)``, before their graph is let go.
            send: Runs a backward pass from a vector in the shape of the logits; it calls `hear`.
        """
        self._heard = {}
        if not self._doubted or len(logits) == 1:
            return {}
        vector = torch.arange(1, logits.numel() + 1, device=logits.device).cos().view(logits.shape)
        calls = _calls(len(logits))
        self.asking = True
        try:
            for speaking in calls:
                self._silent = ~speaking
                mask = self._silent.to(logits.device).view(-1, *(1,) * (logits.dim() - 1))
                send(vector.to(logits.dtype).masked_fill(mask, 0))
        finally:
            self.asking = False
        self._known |= self._rows.items()
        least, reason = (0, LIE) if self._by_example else (len(calls) // 2, SHARED)
        return {
            name: reason for name in self._rows if name in self._heard and self._heard[name].max() > least
        }

    def hear(self, name: str, gradient: Tensor) -> None:
        """Takes the gradient at a layer's output."""
        if name not in self._specs:
            return
        heard = (gradient.abs() > 0).any(dim=-1 if self._specs[name].kind == "Linear" else 1)  # NaN is not
        if self._by_example:
            heard = heard[self._silent.to(heard.device).repeat_interleave(self._rows[name])].any()
        self._heard[name] = self._heard.get(name, 0) + heard.long()


def _calls(examples: int) -> Tensor:
    """Which examples speak in which of P passes, ``(P, N)`` bool: each in half, no two in the same."""
    passes = next(count for count in itertools.count(1) if math.comb(count, count // 2) >= examples)
    turns = itertools.islice(itertools.combinations(range(passes), passes // 2), examples)
    calls = torch.zeros(examples, passes, dtype=torch.bool, device="cpu")
    return calls.scatter_(1, torch.tensor(list(turns), device="cpu"), value=True).mT
