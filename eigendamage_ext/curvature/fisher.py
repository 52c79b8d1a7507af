"""Which Fisher of which loss: the vectors that are sent backward from the logits.

The loss of one example is summed over its output elements: cross entropy, Σ(z − y)² or binary cross entropy.
All three are exponential families, so with μ(z) the mean prediction (softmax, z, sigmoid) the gradient at a
label y is a multiple of μ(z) − y. All of that is computed in float64. Logits ``(N, T, C)`` are T predictions
of each example, whose cross entropies are added; of a position that does not count the vectors are 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eigendamage_ext._adapter import Inputs
from eigendamage_ext._objective import IGNORED, Loss, counted, losses_of
from eigendamage_ext.curvature.uniform import uniform

LOSSES = ("cross_entropy", "mse", "bce_with_logits")
FISHERS = ("mc", "exact", "empirical")
MAX_EXACT_VECTORS = 1000


@dataclass(frozen=True)
class Fisher:
    """A loss, or a function that is one, and a Fisher by name; see `estimate_factors`."""

    loss: str | Loss
    kind: str
    samples: int = 1
    seed: int = 0
    caller: str = "estimate_factors"  # in errors

    def count(self, logits: Tensor) -> int:
        """Number of vectors for ``logits (N, C)``, ``(N,)`` or ``(N, T, C)``; the shape is checked."""
        if callable(self.loss):
            return 1
        check_logits(self.loss, logits, self.caller)
        outputs = logits.shape[1:].numel()
        if self.kind == "exact" and outputs > MAX_EXACT_VECTORS:
            raise ValueError(
                f"{self.caller}: fisher='exact' must need at most {MAX_EXACT_VECTORS:,} backward vectors, "
                f"got {outputs:,} (one for each output); use fisher='mc'"
            )
        return {"mc": self.samples, "exact": outputs, "empirical": 1}[self.kind]

    def vectors(
        self, logits: Tensor, targets: Tensor | None, first: int, inputs: Inputs | None = None
    ) -> Iterator[Tensor]:
        """The vectors v with Fisher = Σ_v v vᵀ at the logits, each with the shape and dtype of ``logits``.

        Args:
            logits: ``(N, C)``, ``(N,)`` for one output, or ``(N, T, C)`` for T positions.
            targets: The labels. Only the empirical Fisher needs them; of positions they tell which count.
            first: Index of the first example in the order of the loader.
            inputs: What the model was called with; their attention mask too tells which positions count.
        """
        if callable(self.loss):
            yield own_gradient(self.loss, logits, targets, self.caller)
            return
        count = self.count(logits)
        counts = counted(logits, targets, inputs, self.caller)
        z = logits.detach().double()
        z = z.reshape(len(z), -1, z.shape[-1] if z.dim() > 1 else 1)
        for index in range(count):
            if self.kind == "exact":
                position, column = divmod(index, z.shape[-1])
                v = torch.zeros_like(z)
                v[:, position] = hessian_root(self.loss, z[:, position], column)
            elif self.kind == "mc":
                drawn = draw(self.loss, z, self.seed, first, index)
                v = gradient(self.loss, z, drawn) / math.sqrt(self.samples)
            else:
                v = gradient(self.loss, z, labels(self.loss, logits, targets, self.caller).reshape(z.shape))
            if counts is not None:
                v = v * counts[..., None]
            yield v.to(logits.dtype).reshape(logits.shape)


def mean(loss: str, z: Tensor) -> Tensor:
    """Mean prediction μ(z) ``(N, …, C)`` at ``z (N, …, C)``."""
    if loss == "cross_entropy":
        return z.softmax(dim=-1)
    return z.sigmoid() if loss == "bce_with_logits" else z


def gradient(loss: str, z: Tensor, y: Tensor) -> Tensor:
    """Gradient of each example's own loss at ``z (N, …, C)`` and labels ``y (N, …, C)``: of their shape."""
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
    """Labels ``(N, …, C)`` drawn from the model's own prediction at ``z (N, …, C)``; classes come one-hot.

    One uniform per label and its inverse distribution function: categorical(p), z + ε/√2, Bernoulli(p).
    """
    if loss == "cross_entropy":
        cumulative = mean(loss, z).cumsum(dim=-1)
        u = uniform(seed, first, len(z), index, z[0, ..., 0].numel(), z.device).reshape(*z.shape[:-1], 1)
        # NaN is in no interval: it is told of later, and must not name a class that there is not.
        drawn = torch.searchsorted(cumulative, u * cumulative[..., -1:]).squeeze(-1)
        return F.one_hot(drawn.clamp(max=z.shape[-1] - 1), z.shape[-1]).to(z)
    u = uniform(seed, first, len(z), index, z[0].numel(), z.device).reshape(z.shape)
    if loss == "bce_with_logits":
        return (u < mean(loss, z)).to(z)
    noise: Tensor = torch.special.ndtri(u)
    return z + noise / math.sqrt(2)


def labels(loss: str, logits: Tensor, targets: Tensor | None, caller: str) -> Tensor:
    """Checks the labels a loader gave and returns them as ``(N, C)`` float64, classes one-hot.

    Of logits ``(N, T, C)`` they are of their shape; where there is none, any.
    """
    targets = _given(targets, caller)
    if loss == "cross_entropy":
        return F.one_hot(_classes(logits, targets, caller), logits.shape[-1]).double()
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


def own_gradient(loss: Loss, logits: Tensor, targets: Tensor | None, caller: str) -> Tensor:
    """Gradient of each example's loss by a function of one's own, like ``logits (N, …)``."""
    z = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
    losses = losses_of(loss, z, _given(targets, caller), caller)
    if not losses.requires_grad:
        raise ValueError(
            f"{caller}: loss must depend on the logits by operations of PyTorch, got one without a gradient; "
            "neither detach them nor leave PyTorch"
        )
    (v,) = torch.autograd.grad(losses.sum(), z)
    if z.isfinite().all() and not v.isfinite().all():
        raise ValueError(
            f"{caller}: loss must have a finite gradient at finite logits, got NaN or infinity; check where "
            "it divides, takes roots or logarithms"
        )
    return v.to(logits.dtype)


def _given(targets: Tensor | None, caller: str) -> Tensor:
    if targets is None:
        raise ValueError(
            f"{caller}: loader must yield (input, target) for fisher='empirical', got inputs alone; "
            "add the labels or use fisher='mc'"
        )
    return targets


def _classes(logits: Tensor, targets: Tensor, caller: str) -> Tensor:
    """Class numbers, int64, each below C for ``logits (N, C)`` or ``(N, T, C)``; of positions 0 for -100."""
    integral = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if not integral or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"{caller}: targets for loss='cross_entropy' must be class numbers, an integer tensor "
            f"{tuple(logits.shape[:-1])}, got {targets.dtype} {tuple(targets.shape)}; "
            "pass soft labels and label smoothing as a loss of your own"
        )
    targets, classes = targets.long(), logits.shape[-1]
    if logits.dim() == 3:
        targets = targets.masked_fill(targets == IGNORED, 0)
    low, high = torch.stack(targets.aminmax()).tolist()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{caller}: targets for loss='cross_entropy' must lie in [0, {classes}), "
            f"got {low} to {high}; ignore_index is not supported, leave those examples out"
        )
    return targets


def check_logits(loss: str, logits: Tensor, caller: str) -> None:
    """Refuses logits of another rank than the loss has."""
    if logits.dim() in ((2, 3) if loss == "cross_entropy" else (1, 2)):
        return
    if loss == "cross_entropy":
        allowed = "(N, C) or (N, T, C)"
        remedy = "bring the positions of images into this order, adapter=ed.Adapter(logits=…)"
    else:
        allowed, remedy = "(N, C) or (N,)", "flatten an example's outputs, adapter=ed.Adapter(logits=…)"
    raise ValueError(
        f"{caller}: logits for loss={loss!r} must have the shape {allowed}, got {tuple(logits.shape)}; "
        f"{remedy}"
    )
