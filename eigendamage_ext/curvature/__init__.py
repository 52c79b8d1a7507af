"""Kronecker-factored curvature: which layers, which Fisher, the factors and their eigenbasis."""
