"""Networks that commands are given as files, and an input for them."""

from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from eigendamage_ext import artifact
from eigendamage_ext._files import ArtifactError, read_header
from eigendamage_ext.artifact.allowlist import DTYPES
from eigendamage_ext.cli.inspect.untrusted import counts, record, text
from eigendamage_ext.pruning.measure import dtype_of

LARGEST = 2**26  # numbers in an example


def load_network(file: Path) -> nn.Module:
    """The network in a file, in eval mode on the CPU.

    Raises:
        ArtifactError: There is none, or the file needs the class of its network.
    """
    return artifact.load(file).eval()


def example_input(
    shape: tuple[int, ...] | None, files: Iterable[Path], network: nn.Module, *, caller: str
) -> Tensor:
    """One example ``(1, …)``: random numbers in the network's dtype, or zeros where it takes whole numbers.

    Args:
        shape: Without the batch dimension. None: that of the plan in the first file that holds one.
        files: What `save` wrote.
        network: What is to take it.
        caller: The command, for messages.

    Raises:
        ValueError: No file says what the input is.
    """
    dtype = "float32"
    if shape is None:
        known = next(filter(None, map(_planned, files)), None)
        if known is None:
            raise ValueError(
                f"{caller}: --input must be given where no file tells the input in a plan, got none; pass "
                "such as --input 3x32x32"
            )
        shape, dtype = known
    kind = DTYPES[dtype]
    if kind.is_floating_point:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1, *shape, generator=generator).to(dtype_of(network) or kind)
    return torch.zeros(1, *shape, dtype=kind)


def _planned(file: Path) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype of an example in the plan that a file holds."""
    header = read_header(file, {artifact.FORMAT: artifact.VERSION})
    if header.format is None:
        return None
    plan = record(record(header.manifest, "provenance"), "plan")
    settings = record(record(plan, "settings"), "factors")
    shape, dtype = counts(settings, "example_shape"), text(settings, "example_dtype")
    if not shape or not dtype:
        return None
    if dtype not in DTYPES or prod(shape) > LARGEST:
        raise ArtifactError(
            f"load: the example in {str(file)!r} must have at most {LARGEST:,} numbers of a known dtype, got "
            f"{shape} of {dtype[:20]!r}; pass --input"
        )
    return tuple(shape), dtype
