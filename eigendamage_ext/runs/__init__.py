"""Runs: a network is pruned stage by stage into a folder, and a run that was killed goes on from there."""
