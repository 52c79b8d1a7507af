"""Networks that commands are given as files, and an input for them."""

import reprlib
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import artifact
from eigendamage_ext._adapter import Inputs, named_tensors
from eigendamage_ext._files import ArtifactError, read_header
from eigendamage_ext.artifact.allowlist import DTYPES
from eigendamage_ext.cli.inspect.untrusted import record
from eigendamage_ext.pruning.measure import dtype_of
from eigendamage_ext.runs import networks
from eigendamage_ext.runs.settings import Network

LARGEST = 2**26  # numbers in an example


def load_network(file: Path, model: str | None, *, caller: str) -> nn.Module:
    """The network in a file, in eval mode on the CPU.

    Args:
        file: What `save` wrote or, with `model`, weights in safetensors, too.
        model: What builds it, as `prune` takes it; None: the file says what its network does.
        caller: The command, for messages.

    Raises:
        ValueError: The file does not say it, or does not fit; an ArtifactError where it is damaged.
    """
    if model is not None:
        return networks.load_network(Network(model=model, weights=str(file)), caller).eval()
    if read_header(file, {artifact.FORMAT: artifact.VERSION}).manifest.get("network") is None:
        raise ValueError(
            f"{caller}: --model must be given for a file that does not say what its network does, got none "
            f"for {file}; pass --model package.module:factory, which builds it"
        )
    return artifact.load(file).eval()


def example_input(
    shape: tuple[int, ...] | None, files: Iterable[Path], network: nn.Module, *, caller: str
) -> Inputs:
    """One example, every tensor ``(1, …)``: random numbers in the network's dtype, whole numbers 1.

    Args:
        shape: Of its only tensor, without the batch dimension. None: as in the plan in the first file that
            holds one.
        files: What `save` wrote.
        network: What is to take it.
        caller: The command, for messages.

    Raises:
        ValueError: No file says what the input is.
    """
    known = {"": (shape, "float32")} if shape else next(filter(None, map(_planned, files)), None)
    if known is None:
        raise ValueError(
            f"{caller}: --input must be given where no file tells the input in a plan, got none; pass "
            "something like --input 3x32x32"
        )
    generator = torch.Generator().manual_seed(0)

    def made(shape: tuple[int, ...], dtype: str) -> Tensor:
        if not DTYPES[dtype].is_floating_point:
            return torch.ones(1, *shape, dtype=DTYPES[dtype])  # a token, and one that is attended to
        return torch.randn(1, *shape, generator=generator).to(dtype_of(network) or DTYPES[dtype])

    tensors = {name: made(*kind) for name, kind in known.items()}
    if all(map(str.isdecimal, tensors)):
        return tuple(tensors.values())
    return tensors.get("", tensors)


def in_words(inputs: Inputs) -> str:
    """Shapes and dtypes of one example."""
    words = []
    for name, tensor in named_tensors(inputs):
        shape, dtype = "×".join(map(str, tensor.shape[1:])), str(tensor.dtype).removeprefix("torch.")
        words.append(" ".join(filter(None, (name, shape, dtype))))
    return ", ".join(words)


def _planned(file: Path) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """Shape and dtype of every tensor of the example in the plan that a file holds."""
    header = read_header(file, {artifact.FORMAT: artifact.VERSION})
    plan = record(record(header.manifest, "provenance"), "plan") if header.format else {}
    found = {}
    for name, kind in record(plan, "example").items():
        match kind:
            case [[*shape], str(dtype)] if dtype in DTYPES and _is_small(shape):
                found[name] = (tuple(shape), dtype)
            case _:
                raise ArtifactError(
                    f"load: the example in {str(file)!r} must have at most {LARGEST:,} numbers of a known "
                    f"dtype, got {reprlib.repr(kind)}; pass --input"
                )
    return found or None


def _is_small(shape: list[Any]) -> bool:
    return all(type(size) is int and size > 0 for size in shape) and prod(shape) <= LARGEST
