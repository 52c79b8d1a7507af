"""Measurements of this package; run from the repository's root."""
