"""The Kronecker factors' sums over a pass: the input's second moment is taken at once, so it is not kept."""

from collections.abc import Mapping

from torch import Tensor, nn

from eigendamage_ext.curvature.batches import Batch
from eigendamage_ext.curvature.collector import Collector
from eigendamage_ext.curvature.moments import add_gradient, add_input, factor_shapes, input_divisor, zeros


class FactorSums(Collector):
    """Sums A, before its division by the number of its rows, and G, before that by the examples."""

    def __init__(self, layers: Mapping[str, nn.Module], *, kind: str, weight_sharing: str) -> None:
        super().__init__(layers, caller="estimate_factors")
        self._kind, self._weight_sharing = kind, weight_sharing
        shapes = {name: factor_shapes(spec, kind) for name, spec in self.specs.items()}
        self._A = {name: zeros(module, shapes[name][0]) for name, module in layers.items()}
        self._G = {name: zeros(module, shapes[name][1]) for name, module in layers.items()}
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
        if self._weight_sharing == "reduce" and len(x) != len(batch):
            self.dropped[name] = (
                f"its input starts with {len(x)} rows where the batch has {len(batch)} examples, "
                "which weight_sharing='reduce' takes to be the same"
            )
            return
        add_input(spec, x, self._A[name], kind=self._kind, weight_sharing=self._weight_sharing)
        positions = output.numel() // spec.out_channels
        self._divisors[name] += input_divisor(
            spec, positions, len(batch), kind=self._kind, weight_sharing=self._weight_sharing
        )

    def add_gradient(self, name: str, gradient: Tensor, *, last: bool) -> None:
        """Adds to G."""
        add_gradient(self.specs[name], gradient, self._G[name], weight_sharing=self._weight_sharing)

    def end_batch(self, batch: Batch) -> None:
        """Refuses sums that are not finite, by their traces, which are sums of squares: nothing cancels."""
        sums = [("input", name, A.diagonal(dim1=-2, dim2=-1)) for name, A in self._A.items()]
        sums += [("output gradient", name, G.diagonal(dim1=-2, dim2=-1)) for name, G in self._G.items()]
        self._check_finite(batch, sums)
