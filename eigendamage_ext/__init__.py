"""Structured pruning in the Kronecker-factored eigenbasis, and the kernels it stands on."""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eigendamage_ext import ops
    from eigendamage_ext._adapter import Adapter
    from eigendamage_ext._files import ArtifactError
    from eigendamage_ext.artifact import load, save
    from eigendamage_ext.artifact.export import export
    from eigendamage_ext.curvature.estimate import estimate_factors
    from eigendamage_ext.curvature.factors import Factors
    from eigendamage_ext.pruning.iterative import Pruner
    from eigendamage_ext.pruning.plan import Plan, PruneResult
    from eigendamage_ext.pruning.planning import plan
    from eigendamage_ext.pruning.pruner import prune
    from eigendamage_ext.training import evaluate, finetune, mean_loss, recalibrate_bn, train

__all__ = [
    "Adapter",
    "ArtifactError",
    "Factors",
    "Plan",
    "PruneResult",
    "Pruner",
    "estimate_factors",
    "evaluate",
    "export",
    "finetune",
    "load",
    "mean_loss",
    "ops",
    "plan",
    "prune",
    "recalibrate_bn",
    "save",
    "train",
]

# Imported when they are first asked for: torch takes seconds, and --help need not wait for it.
_HOMES = {
    "Adapter": "_adapter",
    "ArtifactError": "_files",
    "Factors": "curvature.factors",
    "Plan": "pruning.plan",
    "PruneResult": "pruning.plan",
    "Pruner": "pruning.iterative",
    "estimate_factors": "curvature.estimate",
    "evaluate": "training",
    "export": "artifact.export",
    "finetune": "training",
    "load": "artifact",
    "mean_loss": "training",
    "plan": "pruning.planning",
    "prune": "pruning.pruner",
    "recalibrate_bn": "training",
    "save": "artifact",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return import_module("eigendamage_ext.ops")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
