"""Models as files: weights, what is done with them, where they came from. Loading runs no code."""

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import __version__
from eigendamage_ext._adapter import call, map_tensors, move
from eigendamage_ext._files import ArtifactError, read_tensors, weights_digest, write_tensors
from eigendamage_ext.artifact.describe import describe
from eigendamage_ext.artifact.fit import check_fit
from eigendamage_ext.artifact.graph import UntraceableError
from eigendamage_ext.artifact.rebuild import rebuild
from eigendamage_ext.curvature.state import device_of, preserved
from eigendamage_ext.pruning.channel_check import first_line, tensors_in
from eigendamage_ext.pruning.measure import dtype_of
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.pruning.structure import factored_layers, restored

__all__ = ["ArtifactError", "load", "save"]

FORMAT = "eigendamage-model"
VERSION = 2  # files of version 1 do not say what their network does, and load with `into`
EXTRA = ":"  # before the names of tensors that are not in the state, where no name of the state has it


def save(model: nn.Module | PruneResult, path: str | os.PathLike[str]) -> None:
    """Writes a model, pruned or not, to one safetensors file, atomically.

    The file says what the model does with its inputs, so `load` needs no class, if torch.fx can follow the
    model and finds only what `eigendamage_ext.artifact.allowlist` lists. An argument of forward that has a
    default keeps it. Methods other than forward are not saved. Numbers need not be finite.

    Args:
        model: The model, or the result of pruning, whose plan then goes into the file as its provenance.
        path: Where the file goes.

    Raises:
        TypeError: The model keeps something other than tensors in its state.
        FileNotFoundError: The folder does not exist.

    Warns:
        UserWarning: The model was saved, and its file will load with `into` alone; the reason.
    """
    result = model if isinstance(model, PruneResult) else None
    network = model.model if isinstance(model, PruneResult) else model
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"save: state of model must be tensors, got {type(value).__name__} {name!r}")
    description, extra, obstacle = _described(network, state, result)
    manifest = {
        "layers": factored_layers(network),
        "network": description,
        "obstacle": obstacle,
        "provenance": {
            "eigendamage_ext": __version__,
            "torch": torch.__version__,
            "weights": weights_digest(state),
            "parent": result.parent if result else None,
            "plan": result.plan.record() if result else None,
        },
    }
    tensors = state | {f"{EXTRA}{name}": tensor for name, tensor in extra.items()}
    write_tensors(path, tensors, manifest, format=FORMAT, version=VERSION)
    if obstacle:
        warnings.warn(
            f"save: the model's file will load with ed.load(path, into=MyNet()) alone, as {obstacle}",
            stacklevel=3 if result else 2,
        )


def load(path: str | os.PathLike[str], *, into: nn.Module | None = None) -> nn.Module:
    """Reads a model that `save` wrote.

    Loading takes about the memory of the file and runs nothing that it says; what the model does when it is
    called is up to who wrote the file.

    Args:
        path: The file.
        into: A model built like the one that was pruned, in the dtype that was saved; its weights do not
            matter, and it is left as it is. Layers that lost filters may be as wide as they were. None: the
            file says by itself what the model is.

    Returns:
        Without `into` a model that does what the saved one does and has the same names, on the CPU, in its
        modes. With `into` a copy of that, on its device, with the file's layers rebuilt. All weights are
        those of the file.

    Raises:
        ArtifactError: The file is damaged or is something else, it does not fit `into`, or it needs `into`.
    """
    with torch.inference_mode(False):  # or it could never be trained
        return _loaded(path, into)


def _loaded(path: str | os.PathLike[str], into: nn.Module | None) -> nn.Module:
    tensors, manifest = read_tensors(path, format=FORMAT, version=VERSION)
    description = manifest.get("network")
    extra: dict[str, Tensor] = {}
    if description is not None:
        extra = {name: tensors.pop(name) for name in list(tensors) if name.startswith(EXTRA)}
    if into is not None:
        model = restored(into, manifest.get("layers"), tensors)
        provenance = manifest.get("provenance")
        check_fit(model, into, provenance.get("plan") if isinstance(provenance, dict) else None)
        return model
    if description is None:
        reason = manifest.get("obstacle") or "its file is of version 1"
        raise ArtifactError(
            "load: into must be a model built like the one that was pruned, got None; "
            f"call load(path, into=MyNet()), as {str(reason)[:300]}"
        )
    return rebuild(description, tensors, {name.removeprefix(EXTRA): tensor for name, tensor in extra.items()})


def _described(
    network: nn.Module, state: dict[str, Tensor], result: PruneResult | None
) -> tuple[dict[str, Any] | None, dict[str, Tensor], str | None]:
    """What the network does and the tensors it needs besides its state, or why that cannot be said."""
    try:
        description, extra = describe(network)
        _check_again(rebuild(description, state, extra), network, result)
    except (UntraceableError, ArtifactError) as error:
        return None, {}, str(error).removeprefix("load: ")
    except Exception as error:  # whatever is strange about a model, its weights are saved
        return None, {}, f"it cannot be described ({first_line(error)})"
    return description, extra, None


def _check_again(loaded: nn.Module, network: nn.Module, result: PruneResult | None) -> None:
    """Refuses what is not the model that was saved; outputs are compared where an input is known."""
    if list(loaded.state_dict()) != list(network.state_dict()):
        raise UntraceableError("its state has other names than its modules")
    if result is None:
        return
    with preserved(network), preserved(loaded), torch.no_grad():
        dtype = dtype_of(network)

        def random(tensor: Tensor) -> Tensor:  # it may be zeros, and the model have another dtype by now
            return torch.randn_like(tensor, dtype=dtype) if tensor.is_floating_point() else tensor

        example = map_tensors(random, move(result.plan.example, device_of(network)))
        try:
            ours = list(tensors_in(call(network, example)))
        except Exception:
            return  # it was changed since, and takes something else
        theirs = list(tensors_in(call(loaded, example)))
    if len(ours) != len(theirs) or not all(map(_same, ours, theirs)):
        raise UntraceableError("torch.fx, which followed it, saw something else than it does")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
