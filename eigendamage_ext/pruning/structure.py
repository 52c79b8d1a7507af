"""What pruning changes about the structure of a model, in plain numbers, and a model made like that again."""

import reprlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from eigendamage_ext._files import ArtifactError, weights_digest
from eigendamage_ext.curvature.layers import LayerSpec, is_factored, select
from eigendamage_ext.pruning.forms import (
    CHILDREN,
    FORMS,
    build,
    form_at,
    parts,
    rotates_input,
    rotates_output,
    separable,
)
from eigendamage_ext.pruning.surgery import rebuild, resized, widths


def factored_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Form and ranks of every rebuilt layer, by name, as JSON."""
    return {name: _shape(module) for name, module in model.named_modules() if is_factored(module)}


def restored(into: nn.Module, layers: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """A model with rebuilt layers, and all weights, from a file.

    Layers and batch norms of `into` that lost channels become as narrow as their tensors.

    Args:
        into: A model built like the one that was pruned, in the dtype of the tensors; it is left as it is.
        layers: What `factored_layers` said of the pruned one, not trusted.
        tensors: The state of the pruned one.

    Raises:
        ArtifactError: They do not fit.
    """
    layers = _mapping(layers, "layers")
    model = rebuild(into, _narrowing(into, layers, tensors))
    modules = dict(model.named_modules())
    builders = {}
    for name, shape in layers.items():
        form, input_rank, output_rank = _checked(name, modules.get(name) if name else None, shape)
        builders[name] = partial(build, form=form, input_rank=input_rank, output_rank=output_rank)
    rebuild(model, builders, inplace=True)
    _check_state(model.state_dict(), tensors)
    _check_tied(model, tensors)
    model.load_state_dict(tensors)
    return model


def _shape(module: nn.Module) -> dict[str, Any]:
    """Form and ranks of a rebuilt layer."""
    form, core = form_at(module), LayerSpec.of("core", module.get_submodule("core"))
    if form == "depthwise":
        return {"form": form, "input_rank": core.in_channels, "output_rank": core.out_channels}
    return {"form": form, "input_rank": core.in_per_group, "output_rank": core.out_per_group}


def _narrowing(
    into: nn.Module, layers: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Makes the modules that are wider than in the file as narrow, by name; none ever gets wider."""
    covered, _ = select(into)
    builders: dict[str, Callable[[nn.Module], nn.Module]] = {}
    for name, module in into.named_modules():
        if not name or (name not in covered and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d)):
            continue
        ours, theirs = widths(module), _widths_in_file(name, module, layers.get(name), tensors)
        if ours and theirs and ours != theirs and all(1 <= t <= o for t, o in zip(theirs, ours, strict=True)):
            builders[name] = partial(resized, outputs=theirs[0], inputs=theirs[1])
    return builders


def _widths_in_file(
    name: str, module: nn.Module, shape: Any, tensors: dict[str, Tensor]
) -> tuple[int, int] | None:
    """Output and input channels that a module has in the file; None where its tensors do not say."""
    form = shape.get("form") if isinstance(shape, dict) else None
    children = CHILDREN.get(form) if isinstance(form, str) else None
    ends = (f"{name}.{children[0]}", f"{name}.{children[-1]}") if children else (name, name)
    first, last = (tensors.get(f"{end}.weight", tensors.get(f"{end}.running_mean")) for end in ends)
    if first is None or last is None or not first.dim() or not last.dim():
        return None
    outputs = last.shape[0]
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        inputs, left = divmod(outputs, module.out_channels // module.groups)
        return None if left else (outputs, inputs)
    return outputs, first.shape[1] if first.dim() > 1 else outputs


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
    if layer is None or core is None:
        got = "no such layer" if layer is None else f"a {type(layer).__name__}"
        raise ArtifactError(
            f"load: into must have a Conv1d, Conv2d or Linear {name!r}, got {got}; build it like the model "
            "that was pruned"
        )
    form = shape.get("form")
    if form not in FORMS[1:]:
        raise ArtifactError(
            f"load: form of layer {name!r} must be {' or '.join(CHILDREN)}, got {reprlib.repr(form)}"
        )
    spec = LayerSpec.of(name, core)
    widths = spec.in_per_group, spec.out_per_group
    if form == "depthwise":
        if not separable(spec) and form_at(layer) != form:
            raise ArtifactError(
                f"load: layer {name!r} of into must have a kernel over several channels and positions to be "
                f"{form!r}, got {core}; build it like the model that was pruned"
            )
        widths = (min(spec.in_channels, spec.out_channels),) * 2
    ranks = []
    for side, width, rotated in (
        ("input_rank", widths[0], rotates_input(form)),
        ("output_rank", widths[1], rotates_output(form)),
    ):
        rank, least = shape.get(side), 1 if rotated else width
        if not isinstance(rank, int) or isinstance(rank, bool) or not least <= rank <= width:
            raise ArtifactError(
                f"load: {side} of layer {name!r} must lie in {least}…{width} for {form!r}, got "
                f"{reprlib.repr(rank)}; build `into` like the model that was pruned"
            )
        ranks.append(rank)
    if form == "depthwise" and ranks[0] != ranks[1]:
        raise ArtifactError(
            f"load: ranks of layer {name!r} must be equal for {form!r}, got {ranks[0]} and {ranks[1]}; save "
            "it again"
        )
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


def _check_tied(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuses two tensors where the model has one by two names."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if weights_digest({"": tensors[name]}) != weights_digest({"": tensors[other]}):
            raise ArtifactError(
                f"load: {name!r} and {other!r} of the file must be equal, as they are one in `into`, got two "
                "tensors; build it like the model that was pruned"
            )
