"""The Kronecker factors' sums over a pass: the input's second moment is taken at once, so it is not kept."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.batches import Batch
from eigendamage_ext.curvature.collector import Collector
from eigendamage_ext.curvature.moments import (
    add_gradient,
    add_input,
    factor_shapes,
    input_divisor,
    sum_on,
    zeros,
)


class FactorSums(Collector):
    """Sums A, before its division by the number of its rows, and G, before that by the examples."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        kind: str,
        weight_sharing: str,
        autocast: torch.dtype | None,
        offload: bool,
    ) -> None:
        super().__init__(layers, caller="estimate_factors", autocast=autocast)
        self._kind, self._weight_sharing = kind, weight_sharing
        self.by_example = weight_sharing == "reduce"
        shapes = {name: factor_shapes(spec, kind) for name, spec in self.specs.items()}
        self._A = {name: zeros(module, shapes[name][0], offload) for name, module in layers.items()}
        self._G = {name: zeros(module, shapes[name][1], offload) for name, module in layers.items()}
        self._divisors = dict.fromkeys(layers, 0)

    def factors(self, examples: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A and G of every layer that is not dropped; to be called once, at the end."""
        return {
            name: (A.div_(self._divisors[name]), self._G[name].div_(examples))
            for name, A in self._A.items()
            if name not in self.dropped
        }

    def add_input(self, name: str, x: Tensor, output: Tensor, batch: Batch) -> None:
        """Adds to A."""
        spec = self.specs[name]
        positions = output.numel() // spec.out_channels
        if batch.tokens is not None and spec.kind == "Linear" and x.shape[:-1] == batch.tokens.shape:
            x, positions = self._without_padding(x, batch)
        with sum_on(x.device, self._A[name]) as A:
            add_input(spec, x, A, kind=self._kind, weight_sharing=self._weight_sharing)
        self._divisors[name] += input_divisor(
            spec, positions, len(batch), kind=self._kind, weight_sharing=self._weight_sharing
        )

    def _without_padding(self, x: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """An input ``(N, T, …)`` as if padding, which no gradient reaches, were not there; and its rows."""
        assert batch.tokens is not None and batch.token_rows is not None
        if self._weight_sharing == "expand":
            return x.flatten(0, 1)[batch.token_rows.to(x.device)], len(batch.token_rows)
        tokens = batch.tokens.to(x.device)
        shares = tokens * (tokens.shape[1] / tokens.sum(dim=1, keepdim=True).clamp(min=1))
        return x * shares[..., None].to(x.dtype), len(batch.token_rows)

    def add_gradient(self, name: str, gradient: Tensor, *, last: bool) -> None:
        """Adds to G."""
        with sum_on(gradient.device, self._G[name]) as G:
            add_gradient(self.specs[name], gradient, G, weight_sharing=self._weight_sharing)

    def end_batch(self) -> None:
        """Nothing was kept."""

    def squares(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The diagonals, whose entries are sums of squares: nothing cancels."""
        A, G = (
            {
                name: factor.diagonal(dim1=-2, dim2=-1)
                for name, factor in sums.items()
                if name not in self.dropped
            }
            for sums in (self._A, self._G)
        )
        return A, G
