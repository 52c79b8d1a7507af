"""Structured pruning in the Kronecker-factored eigenbasis, and the kernels it stands on."""

__version__ = "0.1.0"
