"""Pruned models as files: weights and a manifest of the rebuilt layers. Loading runs no code from it."""

import os

import torch
from torch import Tensor, nn

from eigendamage_ext import __version__
from eigendamage_ext._files import read_tensors, write_tensors
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.pruning.structure import factored_layers, restored

FORMAT = "eigendamage-model"


def save(model: nn.Module | PruneResult, path: str | os.PathLike[str]) -> None:
    """Writes a model, pruned or not, to one safetensors file, atomically.

    Args:
        model: The model, or the result of pruning, whose plan then goes into the file as its provenance.
        path: Where the file goes.

    Raises:
        TypeError: The model keeps something other than tensors in its state.
        FileNotFoundError: The folder does not exist.
    """
    plan = model.plan if isinstance(model, PruneResult) else None
    network = model.model if isinstance(model, PruneResult) else model
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"save: state of model must be tensors, got {type(value).__name__} {name!r}")
    manifest = {
        "layers": factored_layers(network),
        "provenance": {
            "eigendamage_ext": __version__,
            "torch": torch.__version__,
            "plan": plan.record() if plan else None,
        },
    }
    write_tensors(path, state, manifest, format=FORMAT)


def load(path: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Reads a model that `save` wrote.

    Args:
        path: The file.
        into: A model built like the one that was pruned, in the dtype that was saved; its weights do not
            matter, and it is left as it is. Layers that lost filters may be as wide as they were.

    Returns:
        A copy of `into`, on its device, with the file's layers rebuilt and all weights from the file.

    Raises:
        ArtifactError: The file is damaged or is something else, or it does not fit `into`.
        ValueError: `into` is missing.
    """
    if into is None:
        raise ValueError(
            "load: into must be a model built like the one that was pruned, got None; "
            "call load(path, into=MyNet())"
        )
    tensors, manifest = read_tensors(path, format=FORMAT)
    return restored(into, manifest.get("layers"), tensors)
