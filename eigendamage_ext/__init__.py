"""Structured pruning in the Kronecker-factored eigenbasis, and the kernels it stands on."""

__version__ = "0.1.0"

from eigendamage_ext import ops
from eigendamage_ext._files import ArtifactError
from eigendamage_ext.artifact import load, save
from eigendamage_ext.curvature.estimate import estimate_factors
from eigendamage_ext.curvature.factors import Factors
from eigendamage_ext.pruning.iterative import Pruner
from eigendamage_ext.pruning.plan import Plan, PruneResult
from eigendamage_ext.pruning.planning import plan
from eigendamage_ext.pruning.pruner import prune
from eigendamage_ext.training import evaluate, finetune, mean_loss, recalibrate_bn, train

__all__ = [
    "ArtifactError",
    "Factors",
    "Plan",
    "PruneResult",
    "Pruner",
    "estimate_factors",
    "evaluate",
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
