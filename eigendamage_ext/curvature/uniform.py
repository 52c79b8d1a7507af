"""Random numbers by coordinates: each depends on where it stands, not on what was drawn before."""

import torch
from torch import Tensor


def uniform(
    seed: int, first: int, examples: int, index: int, components: int, device: torch.device | None = None
) -> Tensor:
    """Numbers ``(examples, components)``, float64, strictly between 0 and 1.

    Each is SplitMix64 (Steele, Lea, Flood 2014) applied in turn to the seed, the number of the example, the
    number of the draw and the component.

    Args:
        seed: Any integer.
        first: Number of the first example; the rows belong to first, first + 1, ….
        examples: Number of rows.
        index: Number of the draw.
        components: Number of columns.
        device: Where the result goes.
    """

    def numbers(start: int, count: int) -> Tensor:
        return torch.arange(count, device=device) + _signed(start)

    state = _mix(numbers(0, 1), numbers(seed, 1))
    state = _mix(state, numbers(first, examples)[:, None])
    state = _mix(state, numbers(index, 1))
    state = _mix(state, numbers(0, components))
    # 52 bits and a half step: both ends, 2⁻⁵³ and 1 − 2⁻⁵³, are exact.
    return (_shift(state, 12).double() + 0.5) * 2.0**-52


def _mix(state: Tensor, step: Tensor) -> Tensor:
    """Output number `step` of a SplitMix64 generator in `state`, int64 taken as 64 bits: products wrap."""
    z = state + (step + 1) * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift to the right that fills with zeros; torch's own repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
