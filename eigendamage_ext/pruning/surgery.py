"""Putting rebuilt layers in the places of the old ones."""

import copy
from collections.abc import Callable, Mapping

from torch import nn


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
