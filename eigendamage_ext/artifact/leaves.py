"""Layers of torch by what their constructors are given, and made again without memory."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = 128  # the most in a module that repeats them
_OF_ALL = vars(nn.Module()).keys()
_TENSORS = ("_flat_weights", "_flat_weight_refs")  # of LSTM and GRU, which make them of their parameters


def parameters_of(kind: type[nn.Module]) -> dict[str, Any]:
    """What a constructor takes besides device and dtype: defaults, or `inspect.Parameter.empty`, by name."""
    recurrent = issubclass(kind, nn.RNNBase)  # whose classes only pass on what they are given
    signature = inspect.signature(nn.RNNBase if recurrent else _MAKERS.get(kind, kind))
    left_out = ("device", "dtype", "args", "kwargs", *["mode"] * recurrent)
    return {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in left_out and not name.startswith("_")
    }


def without_memory(kind: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """A module whose tensors have shapes alone."""
    layers = arguments.get("num_layers", 1)
    if type(layers) is not int or not 1 <= layers <= LAYERS:
        raise ValueError(f"num_layers must lie in 1…{LAYERS}, got {layers!r}")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind is nn.Embedding:  # its own way to clear a row makes torch import for seconds
            shape = (arguments["num_embeddings"], arguments["embedding_dim"])
            return kind(**arguments, _weight=torch.empty(shape))
        return _MAKERS.get(kind, kind)(**arguments)


def arguments_of(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """What a module was made of, as far as a constructor of its kind can tell; defaults are left out."""
    given = _READERS[kind](module) if kind in _READERS else {}
    found = {}
    for name, default in parameters_of(kind).items():
        value = given[name] if name in given else _argument(module, name, default)
        if default is inspect.Parameter.empty or value != default:
            found[name] = value
    return found


def changes(module: nn.Module, fresh: nn.Module) -> set[str]:
    """What of a module is not as in one that was just made; empty if it is the same but for its tensors."""
    ours, theirs = dict(fresh.named_modules()), dict(module.named_modules())
    if list(ours) != list(theirs):
        return {"its parts"}
    found = set()
    for path in ours:
        one, other = ours[path], theirs[path]
        shapes = [
            {n: t.shape for n, t in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False))}
            for m in (one, other)
        ]
        if shapes[0] != shapes[1]:
            found.add("its tensors")
        if path and type(one) is not type(other):
            found.add(path)
        keys = vars(one).keys() - _OF_ALL - {*_TENSORS}
        found |= {key for key in keys if vars(one)[key] != vars(other).get(key)}
    if len({part.training for part in theirs.values()}) > 1:
        found.add("modes of its parts")
    return found


def _argument(module: nn.Module, name: str, default: Any) -> Any:
    """What an argument of the constructor was, by the attribute that most classes keep it in."""
    if isinstance(module, nn.MultiheadAttention) and name in ("bias", "add_bias_kv"):
        return (module.in_proj_bias if name == "bias" else module.bias_k) is not None
    if name == "bias" and not isinstance(module, nn.RNNBase):
        return default if module.weight is None else module.bias is not None
    return getattr(module, name, default)


def _of_encoder_layer(layer: Any) -> dict[str, Any]:
    words = {F.relu: "relu", F.gelu: "gelu"}
    return {
        "d_model": layer.self_attn.embed_dim,
        "nhead": layer.self_attn.num_heads,
        "dim_feedforward": layer.linear1.out_features,
        "dropout": layer.dropout.p,
        "activation": words.get(layer.activation, layer.activation),
        "layer_norm_eps": layer.norm1.eps,
        "batch_first": layer.self_attn.batch_first,
        "bias": layer.linear1.bias is not None,
    }


def _of_encoder(encoder: Any) -> dict[str, Any]:
    norm = None if encoder.norm is None else encoder.norm.eps
    layer = encoder.layers[0]
    return {**_of_encoder_layer(layer), "norm_first": layer.norm_first, "final_norm_eps": norm}


def _encoder(
    d_model: int,
    nhead: int,
    num_layers: int,
    *,
    final_norm_eps: float | None = None,
    enable_nested_tensor: bool = True,
    mask_check: bool = True,
    dim_feedforward: int = 2048,
    dropout: float = 0.1,
    activation: str = "relu",
    layer_norm_eps: float = 1e-5,
    batch_first: bool = False,
    norm_first: bool = False,
    bias: bool = True,
) -> nn.TransformerEncoder:
    """An encoder of alike layers, with or without a LayerNorm at its end."""
    layer = nn.TransformerEncoderLayer(
        d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias
    )
    norm = None if final_norm_eps is None else nn.LayerNorm(d_model, final_norm_eps)
    return nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor, mask_check)


_MAKERS: Mapping[type[nn.Module], Callable[..., nn.Module]] = {nn.TransformerEncoder: _encoder}
_READERS: Mapping[type[nn.Module], Callable[[Any], dict[str, Any]]] = {
    nn.TransformerEncoder: _of_encoder,
    nn.TransformerEncoderLayer: _of_encoder_layer,
}
