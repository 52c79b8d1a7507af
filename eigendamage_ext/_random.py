"""Random numbers that begin at a seed for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[list[torch.Generator]]:
    """Seeds the generators of the CPU and of a CUDA device; afterwards they are as before."""
    # torch.manual_seed would also touch devices this function does not use.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
