"""The layers that names and shapes of tensors tell of, without the class of the network."""

import math
from collections.abc import Mapping
from typing import Any

from eigendamage_ext.curvature.layers import FACTORED_CHILDREN

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype as safetensors names it, and shape, by name

FORMS = dict(zip(FACTORED_CHILDREN, ("input", "output", "both"), strict=True))
BUFFERS = ("running_mean", "running_var")


def layers_in(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """What has a weight of two dimensions or more, in the order of the names.

    Args:
        shapes: Of all tensors.

    Returns:
        By name: "form", the "kernel" of a convolution, "ranks" and "widths" at input and output of each group
        (of a dense layer equal; its groups are not known), and "params".
    """
    weights = {
        name.removesuffix(".weight"): shape
        for name, (dtype, shape) in shapes.items()
        if name.endswith(".weight") and len(shape) > 1 and "F" in dtype
    }
    found = {}
    for path in weights:
        parent, _, child = path.rpartition(".")
        if children := _children(parent, weights):
            if child == "core":
                found[parent] = _factored(children, [weights[f"{parent}.{name}"] for name in children])
                found[parent]["params"] = sum(_elements(f"{parent}.{name}", shapes) for name in children)
        else:
            found[path] = _dense(weights[path]) | {"params": _elements(path, shapes)}
    return found


def parameters_in(shapes: Shapes) -> int:
    """Floating-point numbers in all tensors that are no statistics of a norm."""
    return sum(
        math.prod(shape)
        for name, (dtype, shape) in shapes.items()
        if "F" in dtype and name.rpartition(".")[2] not in BUFFERS
    )


def _children(parent: str, weights: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The parts of a factored layer of that name; none where there is none."""
    names = tuple(
        child for child in ("input_rotation", "core", "output_rotation") if f"{parent}.{child}" in weights
    )
    return names if parent and names in FORMS else ()


def _elements(path: str, shapes: Shapes) -> int:
    return sum(math.prod(shapes[name][1]) for name in (f"{path}.weight", f"{path}.bias") if name in shapes)


def _dense(weight: tuple[int, ...]) -> dict[str, Any]:
    sides = [weight[1], weight[0]]
    return {"form": "dense", "kernel": list(weight[2:]), "ranks": sides, "widths": sides}


def _factored(children: tuple[str, ...], weights: list[tuple[int, ...]]) -> dict[str, Any]:
    """A layer of rotations, `(g·r_in, c_in/g, 1, 1)` and `(c_out, r_out, 1, 1)`, and a core between them.

    The core is `(g·r_out, r_in, kh, kw)`; a depthwise one `(r, 1, kh, kw)`, with rotations without groups.
    """
    by_name = dict(zip(children, weights, strict=True))
    core, first, last = by_name["core"], by_name.get("input_rotation"), by_name.get("output_rotation")
    if first and last and core[1] == 1 and first[0] == core[0] == last[1]:
        ranks, widths = [core[0], core[0]], [first[1], last[0]]
        return {"form": "depthwise", "kernel": list(core[2:]), "ranks": ranks, "widths": widths}
    groups = core[0] // max(last[1], 1) if last else (first or core)[0] // max(core[1], 1)
    outputs = core[0] // max(groups, 1)
    ranks = [core[1], outputs]
    widths = [first[1] if first else core[1], last[0] // max(groups, 1) if last else outputs]
    return {"form": FORMS[children], "kernel": list(core[2:]), "ranks": ranks, "widths": widths}
