"""What a report says of how its numbers came about."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from eigendamage_ext import __version__, _devices, ops

_NOT_SHOWN = ("target", "factors")


def environment(device: str | torch.device = "cpu") -> dict[str, str]:
    """Package, software, machine and date, in words."""
    build = ops.build_info()
    return {
        "package": f"eigendamage-ext {__version__}, kernels {build.get('simd', 'unknown')}",
        "software": f"PyTorch {torch.__version__}, Python {platform.python_version()}, {platform.system()}",
        "device": _devices.name(str(device)),
        "threads": str(torch.get_num_threads()),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def target_name(target: Mapping[str, float]) -> str:
    """A plan's target: ``"50 % of FLOPs"``, ``"30 % of parameters"``, ``"ratio 0.5"``."""
    ((measure, value),) = target.items()
    if measure == "ratio":
        return f"ratio {value:.3g}"
    return f"{100 * value:.3g} % of {'FLOPs' if measure == 'flops' else 'parameters'}"


def plan_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings of several plans, each value once."""
    told = {"method": _each(s["method"] for s in settings)}
    told["target"] = _each(target_name(s["target"]) for s in settings)
    names = dict.fromkeys(name for s in settings for name in s if name not in (*told, *_NOT_SHOWN))
    for name in names:
        told[name.replace("_", " ")] = _each(s[name] for s in settings if name in s)
    factors = _each(_factors(s["factors"]) for s in settings if s.get("factors"))
    return told | ({"factors": factors} if factors else {})


def _each(values: Any) -> str:
    return "; ".join(dict.fromkeys("yes" if v is True else "no" if v is False else str(v) for v in values))


def _factors(settings: Mapping[str, Any]) -> str:
    draws = f", {settings['samples']} drawn" if settings["fisher"] == "mc" else ""
    half = f", {settings['autocast']}" if settings.get("autocast") else ""
    return (
        f"{settings['kind']}, {settings['loss']}, Fisher {settings['fisher']}{draws}, weights shared: "
        f"{settings['weight_sharing']}, {settings['count']:,} examples, seed {settings['seed']}{half}"
    )


_SCORES = {
    "eigendamage": "A direction's score is twice the loss that cutting it alone would add.",
    "eigendamage-depthwise": "A direction's score is twice the loss that cutting it alone would add.",
    "c-obd": "A filter's score is Σ w²F over its weights, F the Fisher's diagonal.",
    "c-obs": "A filter's score is Σ w² / ([G⁻¹][A⁻¹]) over its weights, each as if it alone went.",
    "kron-obd": "A filter's score is twice the loss that zeroing it alone would add.",
    "kron-obs": "A filter's score is twice the loss that it costs once all others make up for it.",
    "nn-slimming": "A filter's score is the sum of |γ| in the batch norms behind it.",
    "l1": "A filter's score is the sum of its absolute weights.",
    "taylor": "A filter's score is (Σ w ∂L/∂w)², L the mean loss.",
    "random": "A filter's score is a random number.",
}


def why(settings: Mapping[str, Any]) -> str:
    """What decides over a plan's cuts, in two sentences."""
    score = _SCORES.get(settings["method"], "")
    if settings.get("allocation") == "least_loss":
        return (
            f"{score} Ranks and forms are those with the least sum of predicted losses in the budget.".strip()
        )
    return f"{score} What scores below one threshold for the whole network is cut.".strip()
