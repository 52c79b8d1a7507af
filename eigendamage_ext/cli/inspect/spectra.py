"""A factor's eigenvalues in few numbers."""

import math
from typing import Any

import torch
from torch import Tensor

BARS = "▁▂▃▄▅▆▇█"  # from eight decades below the largest eigenvalue and less, up to it
SHOWN = 12  # eigenvalues


def summary(factor: Tensor) -> dict[str, Any]:
    """What a spectrum is like.

    Args:
        factor: Symmetric, ``(n, n)`` or ``(g, n, n)``, whose eigenvalues count together.

    Returns:
        "size" n·g and "groups" g; "trace"; "effective_rank", the exponential of the entropy of λ/Σλ (Roy and
        Vetterli 2007); "condition", the largest eigenvalue over the smallest, None where that is zero to
        rounding; and "decades", log10(λ/λ_max) of twelve eigenvalues or fewer, from the largest to the
        smallest. All of these are None for a factor that is not finite.
    """
    groups = factor.shape[0] if factor.dim() == 3 else 1
    about: dict[str, Any] = {"size": factor.shape[-1] * groups, "groups": groups}
    if not factor.isfinite().all():
        return about | dict.fromkeys(("trace", "effective_rank", "condition", "decades"))
    values = torch.linalg.eigvalsh(factor).double().reshape(-1).sort(descending=True).values
    largest, smallest, total = float(values[0]), float(values[-1]), float(values.sum())
    shares = values[values > 0] / (total or 1.0)
    resolved = factor.shape[-1] * torch.finfo(factor.dtype).eps * largest
    places = torch.linspace(0, len(values) - 1, min(SHOWN, len(values)), dtype=torch.float64).round().long()
    relative = (values[places] / (largest or 1.0)).clamp(min=10.0 ** -len(BARS))
    return about | {
        "trace": total,
        "effective_rank": math.exp(-float((shares * shares.log()).sum())) if total > 0 else 0.0,
        "condition": largest / smallest if smallest > resolved else None,
        "decades": relative.log10().tolist(),
    }


def bars(decades: list[float]) -> str:
    """One character for each eigenvalue, a step for each decade."""
    return "".join(BARS[max(0, len(BARS) - 1 + math.ceil(decade - 0.5))] for decade in decades)
