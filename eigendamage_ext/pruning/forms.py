"""How a layer is rebuilt, and what each way costs.

A rebuilt layer is a plain ``nn.Sequential`` with nothing between its children:

    input_rotation    1×1, c_in/g → r_A in each group: Q_Aᵀ, the kept input directions
    core              the layer's own kernel, stride, padding and dilation, between kept directions
    output_rotation   1×1, r_G → c_out/g in each group: Q_G, the kept output directions

The last child carries the bias. A form says which rotations there are; the side without one keeps every
direction and its rotation is merged into the core. A rotation is pointwise and has no bias, so it commutes
with every padding mode. Ranks count directions of one group; g is 1 except for grouped convolutions.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eigendamage_ext.curvature.layers import LayerSpec

FORMS = ("dense", "input", "output", "both")
CHILDREN = {
    "input": ("input_rotation", "core"),
    "output": ("core", "output_rotation"),
    "both": ("input_rotation", "core", "output_rotation"),
}


class Cost(NamedTuple):
    """Parameters with the bias, and FLOPs of one example: two for each multiply-add, none for the bias."""

    params: int
    flops: int


def form_of(*, input_rotation: bool, output_rotation: bool) -> str:
    """The form with these rotations."""
    return FORMS[input_rotation + 2 * output_rotation]


def rotates_input(form: str) -> bool:
    """Whether the form has an input rotation."""
    return form in ("input", "both")


def rotates_output(form: str) -> bool:
    """Whether the form has an output rotation."""
    return form in ("output", "both")


def obstacle(spec: LayerSpec) -> str | None:
    """Why a layer can only stay dense, or None."""
    if spec.in_per_group == 1 and spec.out_per_group == 1:
        return "one channel in and out of each group: no direction to cut"
    if spec.kernel_size == (1, 1) and spec.stride != (1, 1):
        return "strided 1×1: an input rotation would run at pixels the stride skips"
    return None


def available(spec: LayerSpec) -> tuple[str, ...]:
    """The forms a layer can take; a rotation needs two directions or more on its side."""
    if obstacle(spec):
        return ("dense",)
    return tuple(
        form
        for form in FORMS
        if (spec.in_per_group > 1 or not rotates_input(form))
        and (spec.out_per_group > 1 or not rotates_output(form))
    )


def cost(
    spec: LayerSpec, form: str, input_rank: int, output_rank: int, input_positions: int, output_positions: int
) -> Cost:
    """What a layer costs in a form; the rank of a side without a rotation is not read.

    Args:
        spec: The layer.
        form: One of `FORMS`.
        input_rank: Input directions kept in each group.
        output_rank: Output directions kept in each group.
        input_positions: Pixels (of a Linear: rows) of one example at the input, where the input rotation
            runs.
        output_positions: The same at the output, where core and output rotation run.
    """
    inputs = input_rank if rotates_input(form) else spec.in_per_group
    outputs = output_rank if rotates_output(form) else spec.out_per_group
    input_rotation = spec.groups * spec.in_per_group * inputs if rotates_input(form) else 0
    core = spec.groups * inputs * outputs * spec.kernel_positions
    output_rotation = spec.groups * outputs * spec.out_per_group if rotates_output(form) else 0
    return Cost(
        params=input_rotation + core + output_rotation + (spec.out_channels if spec.bias else 0),
        flops=2 * (input_rotation * input_positions + (core + output_rotation) * output_positions),
    )


def grouped_weight(layer: nn.Module) -> Tensor:
    """The weight of a Conv2d or Linear as ``(g, c_out/g, c_in/g, K)``: float64, on the CPU."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight.detach().to("cpu", torch.float64)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


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
        layer: The Conv2d or Linear to be replaced; it is not changed.
        form: "input", "output" or "both".
        input_rank: Input directions kept in each group; not read where the form merges this side.
        output_rank: Output directions kept in each group, likewise.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    spec = LayerSpec.of("", layer)
    inputs = spec.groups * (input_rank if rotates_input(form) else spec.in_per_group)
    outputs = spec.groups * (output_rank if rotates_output(form) else spec.out_per_group)
    widths = {
        "input_rotation": (spec.in_channels, inputs),
        "core": (inputs, outputs),
        "output_rotation": (outputs, spec.out_channels),
    }
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name in CHILDREN[form]:
        child = _like(
            layer, *widths[name], core=name == "core", bias=spec.bias and name == CHILDREN[form][-1]
        )
        child.weight.requires_grad_(layer.weight.requires_grad)
        if child.bias is not None and layer.bias is not None:
            child.bias.requires_grad_(layer.bias.requires_grad)
        children[name] = child.to_empty(device=layer.weight.device)
    sequential = nn.Sequential(children).train(layer.training)
    if layer.weight.dim() == 4 and not layer.weight.is_contiguous():
        sequential = sequential.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return sequential


def factorize(layer: nn.Module, input_basis: Tensor | None, output_basis: Tensor | None) -> nn.Sequential:
    """The layer projected onto kept directions; a side of None keeps them all, merged into the core.

    Computed in float64 and rounded once to the layer's dtype. It equals a dense layer with the weight
    P_G W P_A, P = B Bᵀ of a side with a basis; with complete bases it equals the layer.

    Args:
        layer: The Conv2d or Linear to be replaced; it is not changed.
        input_basis: Orthonormal columns ``(g, c_in/g, r_A)``, float64.
        output_basis: Orthonormal columns ``(g, c_out/g, r_G)``, float64.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    form = form_of(input_rotation=input_basis is not None, output_rotation=output_basis is not None)
    input_rank = 0 if input_basis is None else input_basis.shape[-1]
    output_rank = 0 if output_basis is None else output_basis.shape[-1]
    weights = {"core": rotate(grouped_weight(layer), input_basis, output_basis)}
    if input_basis is not None:
        weights["input_rotation"] = input_basis.mT
    if output_basis is not None:
        weights["output_rotation"] = output_basis
    sequential = build(layer, form, input_rank, output_rank)
    with torch.no_grad():
        for name, child in sequential.named_children():
            assert isinstance(child, nn.Conv2d | nn.Linear)
            child.weight.copy_(weights[name].reshape(child.weight.shape))
            if child.bias is not None and layer.bias is not None:
                child.bias.copy_(layer.bias)
    return sequential


def _like(
    layer: nn.Conv2d | nn.Linear, inputs: int, outputs: int, *, core: bool, bias: bool
) -> nn.Conv2d | nn.Linear:
    """A layer of the same kind without memory: the layer's own geometry for the core, 1×1 for a rotation."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias=bias, device="meta", dtype=layer.weight.dtype)
    geometry: dict[str, Any] = {"kernel_size": 1}
    if core:
        geometry = {
            "kernel_size": layer.kernel_size,
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
            "padding_mode": layer.padding_mode,
        }
    return nn.Conv2d(
        inputs, outputs, groups=layer.groups, bias=bias, device="meta", dtype=layer.weight.dtype, **geometry
    )
