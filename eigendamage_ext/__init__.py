"""Structured pruning in the Kronecker-factored eigenbasis, and the kernels it stands on."""

from eigendamage_ext import ops

__version__ = "0.1.0"

__all__ = ["ops"]
