"""How factors were estimated and of what layers, and the same read from a file that is not trusted."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from eigendamage_ext._records import check_one_of, check_sizes, record
from eigendamage_ext.curvature.fisher import FISHERS
from eigendamage_ext.curvature.layers import LayerSpec
from eigendamage_ext.curvature.moments import KINDS, WEIGHT_SHARINGS

EXAMPLE_LIMIT = 2**28  # numbers; what a file states is made of zeros
COUNTS = {"S": "moments_count", "diagonal": "diagonal_count", "gradient": "gradient_count"}


@dataclass(frozen=True)
class FactorSettings:
    """How factors were estimated, and from what.

    Attributes:
        loss: As given to `estimate_factors`; of a function its name, which nothing looks up.
        fisher, samples, kind, weight_sharing, seed: As given to `estimate_factors`.
        count: Number of examples seen.
        example_shape: Shape of the first example's input, without the batch dimension; () if it is not one
            tensor.
        example_dtype: Its dtype, such as "float32"; "" if it is not one tensor.
        moments_count: Number of examples that `Factors.second_moments` saw; 0 before it has run.
        autocast: As given to `estimate_factors`, such as "bfloat16", or None.
        diagonal_count: As `moments_count`, of `Factors.diagonal`.
        gradient_count: As `moments_count`, of `Factors.gradients`.
    """

    loss: str
    fisher: str
    samples: int
    kind: str
    weight_sharing: str
    seed: int
    count: int
    example_shape: tuple[int, ...]
    example_dtype: str
    moments_count: int = 0
    autocast: str | None = None
    diagonal_count: int = 0
    gradient_count: int = 0


def read_settings(data: Any) -> FactorSettings:
    """Settings in a file; a ValueError where they are not such as `estimate_factors` writes."""
    settings = record(FactorSettings, data)
    for name, known in (
        ("fisher", FISHERS),
        ("kind", KINDS),
        ("weight_sharing", WEIGHT_SHARINGS),
        ("autocast", (None, "bfloat16", "float16")),
    ):
        check_one_of(name, getattr(settings, name), known)
    check_sizes("count and samples", (settings.count, settings.samples))
    check_sizes("counts", [getattr(settings, name) for name in COUNTS.values()], least=0)
    check_sizes("example_shape", settings.example_shape)
    if math.prod(settings.example_shape) > EXAMPLE_LIMIT:
        raise ValueError(f"example_shape must have at most {EXAMPLE_LIMIT:,} numbers")
    dtype = settings.example_dtype.removeprefix("torch.")
    if dtype and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"example_dtype must be a dtype, got {settings.example_dtype[:60]!r}")
    return settings


def read_spec(data: Any) -> LayerSpec:
    """A layer in a file; a ValueError where there cannot be such a layer."""
    spec = record(LayerSpec, data)
    check_one_of("kind", spec.kind, ("Conv1d", "Conv2d", "Linear"))
    check_one_of("padding_mode", spec.padding_mode, ("zeros", "reflect", "replicate", "circular"))
    sides = (spec.in_channels, spec.out_channels)
    check_sizes("sizes", (*sides, spec.groups, *spec.kernel_size, *spec.stride, *spec.dilation))
    if isinstance(spec.padding, str):
        check_one_of("padding", spec.padding, ("same", "valid"))
    else:
        check_sizes("padding", spec.padding, least=0)
    if any(side % spec.groups for side in sides):
        raise ValueError(f"groups must divide {sides}, got {spec.groups}")
    return spec
