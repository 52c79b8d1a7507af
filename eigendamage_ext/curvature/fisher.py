"""Which Fisher of which loss: the vectors that are sent backward from the logits.

The loss of one example is summed over its output elements: cross entropy, Σ(z − y)² or binary cross entropy.
All three are exponential families, so with μ(z) the mean prediction (softmax, z, sigmoid) the gradient at a
label y is a multiple of μ(z) − y. Everything here is computed in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eigendamage_ext.curvature.uniform import uniform

LOSSES = ("cross_entropy", "mse", "bce_with_logits")
FISHERS = ("mc", "exact", "empirical")
MAX_EXACT_VECTORS = 1000


@dataclass(frozen=True)
class Fisher:
    """A loss and a Fisher by name; see `estimate_factors`."""

    loss: str
    kind: str
    samples: int = 1
    seed: int = 0
    caller: str = "estimate_factors"  # in errors

    def count(self, logits: Tensor) -> int:
        """Number of vectors for ``logits (N, C)`` or ``(N,)``, whose shape is checked first."""
        check_logits(self.loss, logits, self.caller)
        outputs = logits.shape[1:].numel()
        if self.kind == "exact" and outputs > MAX_EXACT_VECTORS:
            raise ValueError(
                f"{self.caller}: fisher='exact' must need at most {MAX_EXACT_VECTORS:,} backward vectors, "
                f"got {outputs:,} (one for each output); use fisher='mc'"
            )
        return {"mc": self.samples, "exact": outputs, "empirical": 1}[self.kind]

    def vectors(self, logits: Tensor, targets: Tensor | None, first: int) -> Iterator[Tensor]:
        """The vectors v with Fisher = Σ_v v vᵀ at the logits, each with the shape and dtype of ``logits``.

        Args:
            logits: ``(N, C)``, or ``(N,)`` for one output.
            targets: The labels; only the empirical Fisher needs them.
            first: Index of the first example in the order of the loader.
        """
        z = logits.detach().double().reshape(len(logits), -1)
        for index in range(self.count(logits)):
            if self.kind == "exact":
                v = hessian_root(self.loss, z, index)
            elif self.kind == "mc":
                drawn = draw(self.loss, z, self.seed, first, index)
                v = gradient(self.loss, z, drawn) / math.sqrt(self.samples)
            else:
                v = gradient(self.loss, z, labels(self.loss, logits, targets, self.caller))
            yield v.to(logits.dtype).reshape(logits.shape)


def mean(loss: str, z: Tensor) -> Tensor:
    """Mean prediction μ(z) ``(N, C)`` at ``z (N, C)``."""
    if loss == "cross_entropy":
        return z.softmax(dim=1)
    return z.sigmoid() if loss == "bce_with_logits" else z


def gradient(loss: str, z: Tensor, y: Tensor) -> Tensor:
    """Gradient ``(N, C)`` of each example's own loss at ``z (N, C)`` and labels ``y (N, C)``."""
    return (mean(loss, z) - y) * (2 if loss == "mse" else 1)


def hessian_root(loss: str, z: Tensor, column: int) -> Tensor:
    """Column c ``(N, C)`` of a square root of every example's loss Hessian: Σ_c r_c r_cᵀ = ∇²ℓ(z)."""
    p = mean(loss, z)
    unit = (torch.arange(z.shape[1], device=z.device) == column).to(z)  # writing a number to one would wait
    if loss == "cross_entropy":
        return p[:, column, None].sqrt() * (unit - p)
    if loss == "bce_with_logits":
        return (p * (1 - p)).sqrt() * unit
    return (math.sqrt(2) * unit).expand_as(z)


def draw(loss: str, z: Tensor, seed: int, first: int, index: int) -> Tensor:
    """Labels ``(N, C)`` drawn from the model's own prediction at ``z (N, C)``; classes come one-hot.

    One uniform per label and its inverse distribution function: categorical(p), z + ε/√2, Bernoulli(p).
    """
    if loss == "cross_entropy":
        cumulative = mean(loss, z).cumsum(dim=1)
        u = uniform(seed, first, len(z), index, 1, z.device) * cumulative[:, -1:]
        # NaN is in no interval: it is told of later, and must not name a class that there is not.
        drawn = torch.searchsorted(cumulative, u).squeeze(1).clamp(max=z.shape[1] - 1)
        return F.one_hot(drawn, z.shape[1]).to(z)
    u = uniform(seed, first, len(z), index, z.shape[1], z.device)
    if loss == "bce_with_logits":
        return (u < mean(loss, z)).to(z)
    noise: Tensor = torch.special.ndtri(u)
    return z + noise / math.sqrt(2)


def labels(loss: str, logits: Tensor, targets: Tensor | None, caller: str) -> Tensor:
    """Checks the labels a loader gave and returns them as ``(N, C)`` float64, classes one-hot."""
    if targets is None:
        raise ValueError(
            f"{caller}: loader must yield (input, target) for fisher='empirical', got inputs alone; "
            "add the labels or use fisher='mc'"
        )
    if loss == "cross_entropy":
        return F.one_hot(_classes(logits, targets, caller), logits.shape[1]).double()
    if not targets.is_floating_point() or targets.shape != logits.shape:
        raise ValueError(
            f"{caller}: targets for loss={loss!r} must be floating point of the logits' shape "
            f"{tuple(logits.shape)}, got {targets.dtype} {tuple(targets.shape)}; convert or reshape them"
        )
    if loss == "bce_with_logits" and not ((targets >= 0) & (targets <= 1)).all():
        raise ValueError(
            f"{caller}: targets for loss='bce_with_logits' must lie in [0, 1], got "
            f"{targets.min().item():g} to {targets.max().item():g}; pass probabilities"
        )
    return targets.double().reshape(len(logits), -1)


def _classes(logits: Tensor, targets: Tensor, caller: str) -> Tensor:
    """Class numbers ``(N,)``, int64, each below C for ``logits (N, C)``."""
    integral = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not integral or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"{caller}: targets for loss='cross_entropy' must be class numbers, an integer tensor "
            f"{tuple(logits.shape[:1])}, got {targets.dtype} {tuple(targets.shape)}; "
            "soft labels and label smoothing are not supported"
        )
    low, high = torch.stack(targets.aminmax()).tolist()
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"{caller}: targets for loss='cross_entropy' must lie in [0, {logits.shape[1]}), "
            f"got {low} to {high}; ignore_index is not supported, leave those examples out"
        )
    return targets.long()


def check_logits(loss: str, logits: Tensor, caller: str) -> None:
    """Refuses logits of another rank than the loss has."""
    shape = tuple(logits.shape)
    if logits.dim() == 2 or (logits.dim() == 1 and loss != "cross_entropy"):
        return
    allowed = "(N, C)" if loss == "cross_entropy" else "(N, C) or (N,)"
    raise ValueError(
        f"{caller}: logits for loss={loss!r} must have the shape {allowed}, got {shape}; "
        "losses over positions are not supported, wrap the model to return one row for each example"
    )
