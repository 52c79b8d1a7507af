"""Putting rebuilt layers in the places of the old ones, and making layers with fewer channels."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Cut(NamedTuple):
    """Channels that leave one module; None: none on that side.

    Attributes:
        outputs: Output channels of a Conv2d or Linear, channels of a batch norm: ``(r,)``, int64. A depthwise
            convolution loses the inputs that belong to them.
        inputs: Input channels of a Conv2d or Linear, ``(r,)``, int64.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None


@torch.inference_mode(False)  # what is made under it could not be trained
def rebuild(
    model: nn.Module, builders: Mapping[str, Callable[[nn.Module], nn.Module]], *, inplace: bool = False
) -> nn.Module:
    """Replaces layers by what their builders make of them.

    Every replacement is built before the first is put in, so an exception leaves the model as it was.

    Args:
        model: The model; a deep copy of it is rebuilt unless `inplace`.
        builders: Layer name to a function from the layer to its replacement.
        inplace: Change `model` itself.

    Returns:
        The rebuilt model: `model` if `inplace`.
    """
    if not inplace:
        model = copy.deepcopy(model)
    replacements = {name: build(model.get_submodule(name)) for name, build in builders.items()}
    for name, replacement in replacements.items():
        model.set_submodule(name, replacement)
    return model


def slice_channels(
    model: nn.Module,
    cuts: Mapping[str, Cut],
    *,
    weights: Mapping[str, Tensor] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Replaces modules by smaller ones without some of their channels; what is kept keeps its bits.

    Args:
        model: The model; a deep copy of it is cut unless `inplace`.
        cuts: Module name to the channels it loses: `nn.Conv2d` without groups or depthwise, `nn.Linear`,
            `nn.BatchNorm1d` and `nn.BatchNorm2d`.
        weights: Layer name to the weight the layer gets before it is sliced, ``(c_out, D)`` with
            D = c_in/g·K and with the bias as one more column where the layer has one; rounded to its dtype.
        inplace: Change `model` itself.

    Returns:
        The smaller model: `model` if `inplace`.

    Raises:
        ValueError: A name that is no module of the model, a channel it does not have, no channel left, or a
            weight of another shape; the model is as it was.
        TypeError: A module of another kind.
    """
    weights = weights or {}
    modules = dict(model.named_modules())
    for name in {**cuts, **weights}:
        if name not in modules or not name:
            raise ValueError(
                f"slice_channels: cuts must name modules of the model, got {name!r}; pass the model that was "
                "analysed, or one built alike"
            )
    builders = {
        name: partial(_sliced, name=name, cut=cuts.get(name, Cut()), matrix=weights.get(name))
        for name in {**cuts, **weights}
    }
    return rebuild(model, builders, inplace=inplace)


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Output and input channels of a module that `resized` can make; None for any other."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d) and module.groups in (1, module.in_channels):
        return module.out_channels, module.in_channels
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return module.num_features, module.num_features
    return None


def resized(module: nn.Module, outputs: int, inputs: int) -> nn.Module:
    """A module of the same kind and geometry with other widths, its tensors uninitialised.

    Device, dtype, memory format, train mode and requires_grad are the module's; hooks are left behind.

    Args:
        module: A module with `widths`; it is not changed.
        outputs: Output channels; of a batch norm its channels.
        inputs: Input channels; of a depthwise convolution its groups too.
    """
    small: nn.Module
    if isinstance(module, nn.Linear):
        small = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta")
    elif isinstance(module, nn.Conv2d):
        small = nn.Conv2d(
            inputs,
            outputs,
            module.kernel_size,  # type: ignore[arg-type]  # a pair
            stride=module.stride,  # type: ignore[arg-type]
            padding=module.padding,  # type: ignore[arg-type]
            dilation=module.dilation,  # type: ignore[arg-type]
            groups=1 if module.groups == 1 else inputs,
            bias=module.bias is not None,
            padding_mode=module.padding_mode,
            device="meta",
        )
    else:
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        kind = nn.BatchNorm1d if isinstance(module, nn.BatchNorm1d) else nn.BatchNorm2d
        small = kind(
            outputs,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
            device="meta",
        )
    for name, parameter in module.named_parameters(recurse=False):
        empty = torch.empty_like(small.get_parameter(name), dtype=parameter.dtype, device=parameter.device)
        setattr(small, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        empty = torch.empty_like(small.get_buffer(name), dtype=buffer.dtype, device=buffer.device)
        setattr(small, name, empty)
    weight = module._parameters.get("weight")
    if weight is not None and weight.dim() == 4 and not weight.is_contiguous():
        small = small.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return small.train(module.training)


def _sliced(module: nn.Module, *, name: str, cut: Cut, matrix: Tensor | None) -> nn.Module:
    """The module without the channels of `cut`, its weight taken from `matrix` where there is one."""
    sizes = widths(module)
    if sizes is None:
        kind = type(module).__name__
        raise TypeError(
            f"slice_channels: {name!r} must be a Conv2d without groups or depthwise, a Linear, a BatchNorm1d "
            f"or a BatchNorm2d, got a {kind}; leave it out of cuts"
        )
    rows = _kept(name, "outputs", cut.outputs, sizes[0])
    columns = _kept(name, "inputs", cut.inputs, sizes[1])
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        columns = _kept_groups(name, rows, sizes, cut)
    tensors = {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}
    if matrix is not None:
        tensors |= _split(name, module, matrix)
    small = resized(module, len(rows), len(columns))
    with torch.no_grad():
        for key, target in (*small.named_parameters(), *small.named_buffers()):
            source = tensors[key]
            if source.dim():
                source = source.index_select(0, rows.to(source.device))
            if source.dim() > 1 and source.shape[1] != target.shape[1]:
                source = source.index_select(1, columns.to(source.device))
            target.copy_(source)
    return small


def _kept(name: str, side: str, removed: Tensor | None, width: int) -> Tensor:
    """The channels that stay, ascending."""
    keep = torch.ones(width, dtype=torch.bool, device="cpu")
    if removed is not None:
        removed = removed.to("cpu")
        outside = removed[(removed < 0) | (removed >= width)]
        if len(outside):
            raise ValueError(
                f"slice_channels: {side} of {name!r} must lie in 0…{width - 1}, got {int(outside[0])}; pass "
                "the model that was analysed, or one built alike"
            )
        keep[removed] = False
    if not keep.any():
        raise ValueError(f"slice_channels: {side} of {name!r} must keep a channel, got all {width} removed")
    return keep.nonzero().flatten()


def _kept_groups(name: str, rows: Tensor, sizes: tuple[int, int], cut: Cut) -> Tensor:
    """The inputs of a depthwise convolution that stay: those whose outputs all do."""
    multiplier = sizes[0] // sizes[1]
    columns = rows[::multiplier] // multiplier
    whole = columns[:, None] * multiplier + torch.arange(multiplier, device="cpu")
    if not torch.equal(whole.flatten(), rows) or cut.inputs is not None:
        raise ValueError(
            f"slice_channels: outputs of the depthwise {name!r} must go with their inputs, {multiplier} to "
            f"each, got others; pass the outputs alone, all {multiplier} of each input"
        )
    return columns


def _split(name: str, module: nn.Module, matrix: Tensor) -> dict[str, Tensor]:
    """A weight matrix ``(c_out, D)`` as the tensors of its layer, still in the matrix's dtype."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        kind = type(module).__name__
        raise TypeError(f"slice_channels: {name!r} must be a Conv2d or Linear to take a weight, got a {kind}")
    bias = module.bias is not None
    shape = (module.weight.shape[0], module.weight[0].numel() + bias)
    if matrix.shape != shape:
        raise ValueError(
            f"slice_channels: weight of {name!r} must have the shape {shape}, got {tuple(matrix.shape)}"
        )
    columns = matrix[:, :-1] if bias else matrix
    tensors = {"weight": columns.reshape(module.weight.shape)}
    return tensors | {"bias": matrix[:, -1]} if bias else tensors
