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
    """A plan's target: ``"50 %"`` of the FLOPs, ``"30 % of parameters"``, ``"ratio 0.5"``."""
    ((measure, value),) = target.items()
    if measure == "ratio":
        return f"ratio {value:.3g}"
    return f"{100 * value:.3g} %" + (" of parameters" if measure == "params" else "")


def plan_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The settings of several plans, each value once."""
    told = {"method": _each(s["method"] for s in settings)}
    told["target"] = _each(", ".join(f"{k} {v:.4g}" for k, v in s["target"].items()) for s in settings)
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
