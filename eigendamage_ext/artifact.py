"""Pruned models as files: weights and a manifest of the rebuilt layers. Loading runs no code from it."""

import os
import reprlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eigendamage_ext import __version__
from eigendamage_ext._files import ArtifactError, read_tensors, write_tensors
from eigendamage_ext.curvature.layers import LayerSpec, is_factored
from eigendamage_ext.pruning.forms import CHILDREN, FORMS, build, rotates_input, rotates_output
from eigendamage_ext.pruning.plan import PruneResult
from eigendamage_ext.pruning.surgery import rebuild

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
        "layers": {name: _shape(module) for name, module in network.named_modules() if is_factored(module)},
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
            matter, and it is left as it is.

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
    modules = dict(into.named_modules())
    builders = {}
    for name, shape in _mapping(manifest.get("layers"), "layers").items():
        form, input_rank, output_rank = _checked(name, modules.get(name) if name else None, shape)
        builders[name] = partial(build, form=form, input_rank=input_rank, output_rank=output_rank)
    model = rebuild(into, builders)
    _check_state(model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model


def _shape(module: nn.Module) -> dict[str, Any]:
    """Form and ranks of a rebuilt layer."""
    names = tuple(name for name, _ in module.named_children())
    core = LayerSpec.of("core", module.get_submodule("core"))
    [form] = [form for form, children in CHILDREN.items() if children == names]
    return {"form": form, "input_rank": core.in_per_group, "output_rank": core.out_per_group}


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArtifactError(
            f"load: {what} in the manifest must be an object, got {reprlib.repr(value)}; save it again"
        )
    return value


def _checked(name: str, layer: nn.Module | None, shape: Any) -> tuple[str, int, int]:
    """Form and ranks of one layer in the manifest; no more than `layer` allows, so neither is the memory."""
    shape = _mapping(shape, f"layer {name!r}")
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        got = "no such layer" if layer is None else f"a {type(layer).__name__}"
        raise ArtifactError(
            f"load: into must have a Conv2d or Linear {name!r}, got {got}; build it like the model that was "
            "pruned"
        )
    form = shape.get("form")
    if form not in FORMS[1:]:
        raise ArtifactError(
            f"load: form of layer {name!r} must be {' or '.join(CHILDREN)}, got {reprlib.repr(form)}"
        )
    spec = LayerSpec.of(name, layer)
    ranks = []
    for side, width, rotated in (
        ("input_rank", spec.in_per_group, rotates_input(form)),
        ("output_rank", spec.out_per_group, rotates_output(form)),
    ):
        rank, least = shape.get(side), 1 if rotated else width
        if not isinstance(rank, int) or isinstance(rank, bool) or not least <= rank <= width:
            raise ArtifactError(
                f"load: {side} of layer {name!r} must lie in {least}…{width} for {form!r}, got "
                f"{reprlib.repr(rank)}; build `into` like the model that was pruned"
            )
        ranks.append(rank)
    return form, ranks[0], ranks[1]


def _check_state(expected: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Refuses tensors that would not fill the model exactly."""
    wrong = [f"{name} only in the file" for name in tensors.keys() - expected.keys()]
    wrong += [f"{name} only in `into`" for name in expected.keys() - tensors.keys()]
    for name in expected.keys() & tensors.keys():
        ours, theirs = expected[name], tensors[name]
        if ours.shape != theirs.shape:
            wrong.append(f"{name} of shape {tuple(theirs.shape)} for {tuple(ours.shape)}")
        elif ours.dtype != theirs.dtype:
            wrong.append(f"{name} of dtype {theirs.dtype} for {ours.dtype}")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ArtifactError(
            f"load: the file must hold what `into` holds once rebuilt, got {'; '.join(sorted(wrong)[:5])}"
            f"{more}; build it like the model that was pruned, in the same dtype"
        )
