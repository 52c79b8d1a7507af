"""Which modules are layers, of what kind, and their weights with one row for each output channel."""

from torch import Tensor, nn

Layer = nn.Conv1d | nn.Conv2d | nn.Linear


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """The class whose forward a layer must have to be one: a product with its weight; None for other modules.

    The Conv1D of transformers is a Linear that holds its weight transposed. It is known by name, so that
    transformers need not be there.
    """
    for kind in type(module).__mro__:
        if kind in (nn.Conv1d, nn.Conv2d, nn.Linear) or _is_transposed_linear(kind):
            return kind
    return None


def kind_of(module: nn.Module) -> str | None:
    """What a module is as a layer, "Conv1d", "Conv2d" or "Linear"; None if it is none."""
    base = base_of(module)
    if base is None:
        return None
    return "Linear" if _is_transposed_linear(base) else base.__name__


def weight_rows(layer: nn.Module) -> Tensor:
    """The weight of a layer as ``(c_out, c_in/g, …)``, a view."""
    weight = layer.get_parameter("weight").detach()
    return weight if isinstance(layer, Layer) else weight.mT


def bias_of(layer: nn.Module) -> nn.Parameter | None:
    """The bias of a layer ``(c_out,)``, if it has one."""
    return layer._parameters.get("bias")


def _is_transposed_linear(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) == ("transformers.pytorch_utils", "Conv1D")
