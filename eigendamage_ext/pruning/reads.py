"""What a model reads of its layers besides calling them.

A rebuilt layer is an `nn.Sequential` that tells the geometry of the layer it stands for. It has no weight and
no other attribute of it, so a layer of which a model reads more than that must stay as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from eigendamage_ext._adapter import Inputs
from eigendamage_ext.pruning.channel_check import first_line
from eigendamage_ext.pruning.forms import GEOMETRY
from eigendamage_ext.pruning.measure import measure


class _Watched(nn.Sequential):
    """A layer in the place where it is rebuilt, which notes what is read of it."""

    def __init__(self, layer: nn.Module) -> None:
        self.read: list[str] = []
        super().__init__(layer)
        self.training = layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "0" not in self._modules:  # nothing is in it yet
                raise
            self.read.append(name)
            return getattr(self[0], name)


def read_layers(model: nn.Module, names: Sequence[str], example: Inputs) -> dict[str, str]:
    """Why some layers cannot be rebuilt: the model asks of them what a rebuilt layer cannot answer.

    Args:
        model: The model; it is as before afterwards, whatever happens.
        names: Layers that it calls.
        example: Inputs of the model, tensors ``(1, ...)``.
    """
    found: dict[str, str] = {}
    try:
        return _read(model, names, example)
    except Exception:  # it looks what some of them are
        for name in names:
            try:
                found |= _read(model, [name], example)
            except Exception as error:
                found[name] = f"the model does not run with it in parts ({first_line(error)})"
    return found | _read(model, [name for name in names if name not in found], example)


def _read(model: nn.Module, names: Iterable[str], example: Inputs) -> dict[str, str]:
    """What the model reads of layers that are in the place where they are rebuilt."""
    with _watched(model, names) as layers:
        measure(model, example)
    reads = {name: [what for what in layer.read if what not in GEOMETRY] for name, layer in layers.items()}
    return {
        name: f"the model reads its {read[0]}, which a rebuilt layer has not"
        for name, read in reads.items()
        if read
    }


@contextmanager
def _watched(model: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, _Watched]]:
    """Puts every layer into a Sequential for the length of a block."""
    layers = {name: model.get_submodule(name) for name in names}
    watched = {name: _Watched(layer) for name, layer in layers.items()}
    try:
        for name, stand_in in watched.items():
            model.set_submodule(name, stand_in)
        yield watched
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
