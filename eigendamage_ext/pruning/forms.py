"""How a layer is rebuilt, and what each way costs.

A rebuilt layer is a plain ``nn.Sequential`` with nothing between its children:

    input_rotation    1×1, c_in/g → r_A in each group: Q_Aᵀ, the kept input directions
    core              the layer's own kernel, stride, padding and dilation, between kept directions
    output_rotation   1×1, r_G → c_out/g in each group: Q_G, the kept output directions

The last child carries the bias. A form says which rotations there are; the side without one keeps every
direction and its rotation is merged into the core. A rotation is pointwise and has no bias, so it commutes
with every padding mode. Ranks count directions of one group; g is 1 except for grouped convolutions.

In the form "depthwise" the core's weight is a sum of R outer products, R the smaller rank: the rotations take
in two of their factors, and the core that is left is a depthwise convolution between R channels.

A layer that an earlier round rebuilt is cut at its core and never gets deeper. Its form says which sides this
round rotates; a rotation that was there before takes the new one in, or stays as it is: Q_Aᵀ·B_Aᵀ, B_G·Q_G.
A core that is depthwise already loses channels as they are, each on both sides at once.

The parts of a Linear that holds its weight transposed are plain Linears. Models read the geometry of their
layers, so a rebuilt one tells what the layer told.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.kinds import Layer, bias_of, kind_of, weight_rows
from eigendamage_ext.curvature.layers import LayerSpec, is_factored

PROJECTIONS = ("dense", "input", "output", "both")
FORMS = (*PROJECTIONS, "depthwise")
GEOMETRY = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("padding_mode", "in_features", "out_features", "nf", "nx"),
)
CHILDREN = {
    "input": ("input_rotation", "core"),
    "output": ("core", "output_rotation"),
    "both": ("input_rotation", "core", "output_rotation"),
    "depthwise": ("input_rotation", "core", "output_rotation"),
}


class Cost(NamedTuple):
    """Parameters with the bias, and FLOPs of one example: two for each multiply-add, none for the bias."""

    params: int
    flops: int


@dataclass(frozen=True)
class Rotations:
    """The rotations that an earlier round put around a core.

    Attributes:
        inputs: Channels of one group that the input rotation reads; None: there is none.
        outputs: Channels of one group that the output rotation makes; None: there is none.
        bias: Entries of the output rotation's bias.
        separated: Whether the core between them is depthwise and they are not: its form is "depthwise".
    """

    inputs: int | None = None
    outputs: int | None = None
    bias: int = 0
    separated: bool = False

    @classmethod
    def around(cls, layer: nn.Module) -> "Rotations":
        """Those of a rebuilt layer; a plain one has none."""
        specs = {name: LayerSpec.of(name, child) for name, child in parts(layer).items()}
        first, last = specs.get("input_rotation"), specs.get("output_rotation")
        return cls(
            inputs=first.in_per_group if first else None,
            outputs=last.out_per_group if last else None,
            bias=last.out_channels if last and last.bias else 0,
            separated=form_at(layer) == "depthwise",
        )


UNROTATED = Rotations()


def parts(layer: nn.Module) -> dict[str, nn.Module]:
    """The children of a rebuilt layer by name, first to last; a plain layer is its own core."""
    children = dict(layer.named_children()) if is_factored(layer) else {"core": layer}
    return {name: child for name, child in children.items() if kind_of(child)}


def form_of(*, input_rotation: bool, output_rotation: bool) -> str:
    """The form with these rotations and a core that is not separated."""
    return PROJECTIONS[input_rotation + 2 * output_rotation]


def form_at(layer: nn.Module) -> str:
    """The form that a rebuilt layer has."""
    old = parts(layer)
    groups = {name: LayerSpec.of(name, child).groups for name, child in old.items()}
    if groups["core"] > groups.get("input_rotation", groups["core"]):
        return "depthwise"
    return form_of(input_rotation="input_rotation" in old, output_rotation="output_rotation" in old)


def rotates_input(form: str) -> bool:
    """Whether the form has an input rotation."""
    return form in ("input", "both", "depthwise")


def rotates_output(form: str) -> bool:
    """Whether the form has an output rotation."""
    return form in ("output", "both", "depthwise")


def obstacle(spec: LayerSpec) -> str | None:
    """Why a layer can only stay dense, or None."""
    if spec.in_per_group == 1 and spec.out_per_group == 1:
        return "one channel in and out of each group: no direction to cut"
    if spec.kernel_size == (1, 1) and spec.stride != (1, 1):
        return "strided 1×1: an input rotation would run at pixels the stride skips"
    return None


def available(spec: LayerSpec) -> tuple[str, ...]:
    """The projections a layer can take; a rotation needs two directions or more on its side."""
    if obstacle(spec):
        return ("dense",)
    return tuple(
        form
        for form in PROJECTIONS
        if (spec.in_per_group > 1 or not rotates_input(form))
        and (spec.out_per_group > 1 or not rotates_output(form))
    )


def separable(spec: LayerSpec) -> bool:
    """Whether a layer can take the form "depthwise": a kernel over several channels and positions."""
    wide = spec.in_channels > 1 and spec.out_channels > 1
    return spec.groups == 1 and spec.kernel_positions > 1 and wide


def cost(
    spec: LayerSpec,
    form: str,
    input_rank: int,
    output_rank: int,
    input_positions: int,
    output_positions: int,
    rotations: Rotations = UNROTATED,
) -> Cost:
    """What a layer costs in a form; the rank of a side that the form does not rotate is not read.

    Args:
        spec: The layer; of one that was rebuilt before, its core.
        form: One of `FORMS`.
        input_rank: Input directions kept in each group.
        output_rank: Output directions kept in each group.
        input_positions: Pixels (of a Linear: rows) of one example at the core's input, where the input
            rotation runs.
        output_positions: The same at its output, where core and output rotation run.
        rotations: Those that are there already.
    """
    inputs = input_rank if rotates_input(form) else spec.in_per_group
    outputs = output_rank if rotates_output(form) else spec.out_per_group
    groups = spec.groups
    core = groups * inputs * outputs * spec.kernel_positions
    if form == "depthwise":
        groups = 1
        inputs = outputs = inputs * (inputs < outputs) + outputs * (inputs >= outputs)  # of tensors, too
        core = inputs * spec.kernel_positions
    read = rotations.inputs or (spec.in_per_group if rotates_input(form) else 0)
    made = rotations.outputs or (spec.out_per_group if rotates_output(form) else 0)
    input_rotation = groups * read * inputs
    output_rotation = groups * outputs * made
    bias = rotations.bias + (spec.out_channels if spec.bias else 0)
    return Cost(
        params=input_rotation + core + output_rotation + bias,
        flops=2 * (input_rotation * input_positions + (core + output_rotation) * output_positions),
    )


def grouped_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer as ``(g, c_out/g, c_in/g, K)``: float64, on the CPU."""
    spec, weight = LayerSpec.of("", layer), weight_rows(layer).to("cpu", torch.float64)
    return weight.reshape(spec.groups, spec.out_per_group, spec.in_per_group, -1)


def rotate(weight: Tensor, input_basis: Tensor | None, output_basis: Tensor | None) -> Tensor:
    """Q_Gᵀ W Q_A at every kernel offset; None is the identity.

    Args:
        weight: ``(g, c_out/g, c_in/g, K)``.
        input_basis: Orthonormal columns ``(g, c_in/g, r_A)``.
        output_basis: Orthonormal columns ``(g, c_out/g, r_G)``.

    Returns:
        ``(g, r_G, r_A, K)``.
    """
    if input_basis is not None:
        weight = torch.einsum("goik,gir->gork", weight, input_basis)
    if output_basis is not None:
        weight = torch.einsum("goik,gor->grik", weight, output_basis)
    return weight


def build(layer: nn.Module, form: str, input_rank: int, output_rank: int) -> nn.Sequential:
    """The modules of a form, weights uninitialised; device, dtype, memory format and flags are the layer's.

    Args:
        layer: The layer to be replaced, or what it was rebuilt as before; it is not changed.
        form: "input", "output" or "both": the rotations that there shall be, old ones included; or
            "depthwise", for a layer that is `separable` or has that form.
        input_rank: Input directions kept in each group; not read where the form merges this side.
        output_rank: Output directions kept in each group, likewise; for "depthwise" the same number.
    """
    old = parts(layer)
    core, first, last = old["core"], next(iter(old.values())), next(reversed(old.values()))
    spec, weight = LayerSpec.of("", core), core.get_parameter("weight")
    inputs = spec.groups * (input_rank if rotates_input(form) else spec.in_per_group)
    outputs = spec.groups * (output_rank if rotates_output(form) else spec.out_per_group)
    groups = dict.fromkeys(CHILDREN[form], spec.groups)
    if form == "depthwise":
        inputs = outputs = input_rank
        groups = {"input_rotation": 1, "core": input_rank, "output_rotation": 1}
    widths = {
        "input_rotation": (LayerSpec.of("", first).in_channels, inputs),
        "core": (inputs, outputs),
        "output_rotation": (outputs, LayerSpec.of("", last).out_channels),
    }
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name in CHILDREN[form]:
        bias = bias_of(last) if name == CHILDREN[form][-1] else None
        child = _like(core, *widths[name], groups[name], core=name == "core", bias=bias is not None)
        child.weight.requires_grad_(old.get(name, core).get_parameter("weight").requires_grad)
        if child.bias is not None and bias is not None:
            child.bias.requires_grad_(bias.requires_grad)
        children[name] = child.to_empty(device=weight.device)
    sequential = nn.Sequential(children).train(layer.training)
    if weight.dim() == 4 and not weight.is_contiguous():
        sequential = sequential.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vars(sequential).update((name, vars(layer)[name]) for name in GEOMETRY if name in vars(layer))
    return sequential


def factorize(layer: nn.Module, input_basis: Tensor | None, output_basis: Tensor | None) -> nn.Sequential:
    """The layer projected onto kept directions; a side of None keeps them all, without a rotation of its own.

    Computed in float64 and rounded once to the layer's dtype. It equals the layer with the core's weight
    P_G W P_A, P = B Bᵀ of a side with a basis; with complete bases it equals the layer. A complete basis of a
    side that has its rotation already would only stir it: that rotation then stays as it is.

    Args:
        layer: The layer to be replaced, or what it was rebuilt as before; it is not changed.
        input_basis: Orthonormal columns ``(g, c_in/g, r_A)``, float64, c_in that of the core.
        output_basis: Orthonormal columns ``(g, c_out/g, r_G)``, float64, likewise.
    """
    old = parts(layer)
    if "input_rotation" in old and input_basis is not None and _complete(input_basis):
        input_basis = None
    if "output_rotation" in old and output_basis is not None and _complete(output_basis):
        output_basis = None
    core = rotate(grouped_weight(old["core"]), input_basis, output_basis)
    return assemble(layer, core, input_basis, output_basis)


def assemble(
    layer: nn.Module, core: Tensor, inputs: Tensor | None, outputs: Tensor | None, *, separated: bool = False
) -> nn.Sequential:
    """A layer with a new core between new rotations; those that it has already take the new ones in.

    Args:
        layer: The layer to be replaced, or what it was rebuilt as before; it is not changed.
        core: The core's weight, ``(g, r_G, r_A, K)``.
        inputs: The core's inputs in terms of those it had, ``(g, c_in/g, r_A)``; None: the same.
        outputs: The outputs it had in terms of the core's, ``(g, c_out/g, r_G)``; None: the same.
        separated: The form is "depthwise": g is R for the core, with ranks of 1, and 1 for the rotations.
    """
    old = parts(layer)
    weights = {name: grouped_weight(child) for name, child in old.items()} | {"core": core}
    if inputs is not None:
        before = weights.get("input_rotation")
        weights["input_rotation"] = inputs.mT if before is None else rotate(before, None, inputs)
    if outputs is not None:
        before = weights.get("output_rotation")
        weights["output_rotation"] = outputs if before is None else rotate(before, outputs, None)
    form = form_of(input_rotation="input_rotation" in weights, output_rotation="output_rotation" in weights)
    output_rank, input_rank = core.shape[1:3]
    if separated:
        form, input_rank, output_rank = "depthwise", len(core), len(core)
    sequential = build(layer, form, input_rank, output_rank)
    bias = bias_of(next(reversed(old.values())))
    with torch.no_grad():
        for name, child in sequential.named_children():
            assert isinstance(child, Layer)
            child.weight.copy_(weights[name].reshape(child.weight.shape))
            if child.bias is not None and bias is not None:
                child.bias.copy_(bias)
    return sequential


def _complete(basis: Tensor) -> bool:
    """Whether it keeps every direction."""
    return basis.shape[-1] == basis.shape[-2]


def _like(
    layer: nn.Module, inputs: int, outputs: int, groups: int, *, core: bool, bias: bool
) -> nn.Conv1d | nn.Conv2d | nn.Linear:
    """A layer of the same kind without memory: the layer's own geometry for the core, 1×1 for a rotation."""
    dtype = layer.get_parameter("weight").dtype
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return nn.Linear(inputs, outputs, bias=bias, device="meta", dtype=dtype)
    geometry: dict[str, Any] = {"kernel_size": 1}
    if core:
        geometry = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "padding_mode": layer.padding_mode,
        }
    kind = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return kind(inputs, outputs, groups=groups, bias=bias, device="meta", dtype=dtype, **geometry)
