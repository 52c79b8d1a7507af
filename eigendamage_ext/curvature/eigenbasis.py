"""The Kronecker-factored eigenbasis: eigenvalues and eigenvectors of every factor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eigendamage_ext import ops


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues and eigenvectors of one factor.

    Attributes:
        values: ``(n,)`` or ``(g, n)``, ascending; what rounding made negative is 0.
        vectors: ``(n, n)`` or ``(g, n, n)``, one eigenvector in each column.
    """

    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class LayerEigenbasis:
    """Eigendecompositions of a layer's input factor A and output factor G.

    Attributes:
        A: Of the input factor.
        G: Of the output factor.
        S: The Fisher's diagonal in this basis, as EKFAC has it, of the shape that `Factors.second_moments`
            tells; None where λ_G λ_Aᵀ stands for it.
    """

    A: Eigen
    G: Eigen
    S: Tensor | None = None


class Eigenbasis(Mapping[str, LayerEigenbasis]):
    """The eigenbasis of every layer, by its name."""

    def __init__(self, layers: Mapping[str, LayerEigenbasis]) -> None:
        self._layers = dict(layers)

    @classmethod
    def of(cls, factors: Mapping[str, tuple[Tensor, Tensor]]) -> "Eigenbasis":
        """Decomposes every factor of every layer in one call of `ops.eigh`.

        Args:
            factors: A and G of each layer, ``(n, n)`` or, with groups, ``(g, n, n)``.

        Raises:
            EighError: Some factors have no eigendecomposition; it names them.
        """
        stacks = [
            (f"{name}.{side}", stack)
            for name, pair in factors.items()
            for side, stack in zip("AG", pair, strict=True)
        ]
        matrices = {
            label if stack.dim() == 2 else f"{label}[{group}]": matrix
            for label, stack in stacks
            for group, matrix in enumerate(stack.reshape(-1, *stack.shape[-2:]))
        }
        values, vectors, _ = ops.eigh(list(matrices.values()), names=list(matrices))
        solved = zip(values, vectors, strict=True)

        def eigen(stack: Tensor) -> Eigen:
            if stack.dim() == 2:
                value, vector = next(solved)
            else:
                value, vector = map(torch.stack, zip(*(next(solved) for _ in stack), strict=True))
            return Eigen(value.clamp(min=0), vector)

        return cls({name: LayerEigenbasis(eigen(A), eigen(G)) for name, (A, G) in factors.items()})

    def __getitem__(self, name: str) -> LayerEigenbasis:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
