"""What pruning changes about the structure of a model, in plain numbers, and a model made like that again."""

import reprlib
from functools import partial
from typing import Any

from torch import Tensor, nn

from eigendamage_ext._files import ArtifactError
from eigendamage_ext.curvature.layers import LayerSpec, is_factored
from eigendamage_ext.pruning.forms import CHILDREN, FORMS, build, parts, rotates_input, rotates_output
from eigendamage_ext.pruning.surgery import rebuild


def factored_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Form and ranks of every rebuilt layer, by name, as JSON."""
    return {name: _shape(module) for name, module in model.named_modules() if is_factored(module)}


def restored(into: nn.Module, layers: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """A model with rebuilt layers, and all weights, from a file.

    Args:
        into: A model built like the one that was pruned, in the dtype of the tensors; it is left as it is.
        layers: What `factored_layers` said of the pruned one, not trusted.
        tensors: The state of the pruned one.

    Raises:
        ArtifactError: They do not fit.
    """
    modules = dict(into.named_modules())
    builders = {}
    for name, shape in _mapping(layers, "layers").items():
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
    core = None if layer is None else parts(layer).get("core")
    if core is None:
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
    spec = LayerSpec.of(name, core)
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
