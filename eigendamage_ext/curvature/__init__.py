"""Kronecker-factored curvature: which layers, which Fisher, the factors and their eigenbasis."""

from eigendamage_ext.curvature.eigenbasis import Eigen, Eigenbasis, LayerEigenbasis
from eigendamage_ext.curvature.estimate import estimate_factors
from eigendamage_ext.curvature.factors import Factors, LayerFactors
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.settings import FactorSettings

__all__ = [
    "Eigen",
    "Eigenbasis",
    "FactorSettings",
    "Factors",
    "LayerEigenbasis",
    "LayerFactors",
    "LayerSpec",
    "estimate_factors",
]
