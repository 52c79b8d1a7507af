"""Which layers of a model have Kronecker factors, and what each of them is in numbers.

Covered are `nn.Conv1d`, `nn.Conv2d` and `nn.Linear` that are called as such, and the transposed Linear that
transformers calls Conv1D. Every other module that holds a matrix is named with the reason why it is not. A
layer that pruning has factored goes on as one layer under its old name: it is its core, and the rotations
around that are no layers of their own.
"""

import difflib
import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from eigendamage_ext.curvature.kinds import base_of, bias_of, kind_of, weight_rows

Pattern = str | type[nn.Module]
Patterns = Pattern | Iterable[Pattern]

_CONTAINERS = (nn.ParameterList, nn.ParameterDict)
FACTORED_CHILDREN = (
    ("input_rotation", "core"),
    ("core", "output_rotation"),
    ("input_rotation", "core", "output_rotation"),
)


@dataclass(frozen=True)
class LayerSpec:
    """A layer in numbers; a Linear is a convolution with one kernel position, a Conv1d has a height of 1.

    Attributes:
        name: The module's name in the model; of a factored layer's core, that of the whole layer.
        kind: "Conv1d", "Conv2d" or "Linear".
        padding: As `nn.Conv2d` holds it: a pair, "same" or "valid".
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    padding_mode: str = "zeros"
    groups: int = 1
    bias: bool = False

    @property
    def kernel_positions(self) -> int:
        """K, the number of kernel offsets."""
        return math.prod(self.kernel_size)

    @property
    def in_per_group(self) -> int:
        """Input channels of a group, c_in/g."""
        return self.in_channels // self.groups

    @property
    def out_per_group(self) -> int:
        """Output channels of a group, c_out/g."""
        return self.out_channels // self.groups

    @property
    def borders(self) -> tuple[int, int, int, int]:
        """Padding in the order of `F.pad`: left, right, top, bottom."""
        if self.padding == "same":
            height, width = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
            return width // 2, width - width // 2, height // 2, height - height // 2
        vertical, horizontal = (0, 0) if isinstance(self.padding, str) else self.padding
        return horizontal, horizontal, vertical, vertical

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "LayerSpec":
        """Reads the numbers of a Conv1d, Conv2d or Linear."""
        kind = kind_of(module)
        if kind is None:
            raise TypeError(
                "LayerSpec.of: module must be a Conv1d, Conv2d or Linear, got "
                f"{type(module).__name__} {name!r}"
            )
        bias = bias_of(module) is not None
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            outputs, inputs = weight_rows(module).shape
            return cls(name, kind, inputs, outputs, bias=bias)
        padding = module.padding
        return cls(
            name,
            kind,
            module.in_channels,
            module.out_channels,
            kernel_size=_pair(kind, module.kernel_size),
            stride=_pair(kind, module.stride),
            dilation=_pair(kind, module.dilation),
            padding=padding if isinstance(padding, str) else _pair(kind, padding, above=0),
            padding_mode=module.padding_mode,
            groups=module.groups,
            bias=bias,
        )


def select(model: nn.Module, layers: Patterns | None = None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Splits the layers of a model into those that have Kronecker factors and those that do not.

    Args:
        model: Any model; it is not changed.
        layers: Only these: exact names, globs or module types, one or several. None: every layer.

    Returns:
        The covered modules by name, of a factored layer its core by the layer's name; and for every other
        layer with a weight matrix the reason by its name. Both in the order of the model.

    Raises:
        TypeError: Something in `layers` is not a pattern.
        ValueError: A name or glob matches no layer.
    """
    candidates = {name: module for name, module in named_layers(model) if _has_weight_matrix(module)}
    if layers is not None:
        layers = as_patterns(layers)
        check_patterns(layers, candidates, caller="estimate_factors", argument="layers")
    enclosed = dict(_enclosed(model))
    shared = _shared(model)
    covered: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    for name, module in candidates.items():
        if layers is not None and not matches(name, module, layers):
            skipped[name] = "not in `layers`"
        elif reason := enclosed.get(name) or _obstacle(name, model.get_submodule(name), shared):
            skipped[name] = reason
        else:
            covered[name] = module
    return covered, skipped


def check_layer(model: nn.Module, spec: LayerSpec, *, caller: str, origin: str) -> nn.Module:
    """`layer_at` for the layer that `spec` describes, or a ValueError saying how the model differs."""
    try:
        layer = layer_at(model, spec.name)
        found = LayerSpec.of(spec.name, layer)
    except (AttributeError, TypeError):
        kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        raise ValueError(
            f"{caller}: model must have the {spec.kind} {spec.name!r} of {origin}, got "
            f"{kinds.get(spec.name, 'no such layer')}; pass the model that was analysed, or one built alike"
        ) from None
    wrong = [
        f"{field.name} {getattr(found, field.name)} instead of {getattr(spec, field.name)}"
        for field in fields(spec)
        if getattr(found, field.name) != getattr(spec, field.name)
    ]
    if wrong:
        raise ValueError(
            f"{caller}: layer {spec.name!r} of model must be as in {origin}, got {', '.join(wrong)}; pass "
            "the model that was analysed, or one built alike"
        )
    return layer


def layer_at(model: nn.Module, name: str) -> nn.Module:
    """The module of that name; of a factored layer its core."""
    module = model.get_submodule(name)
    return module.get_submodule("core") if is_factored(module) else module


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, but a factored layer is one: its core, by the layer's name."""
    parts: set[nn.Module] = set()
    for name, module in model.named_modules():
        if is_factored(module):
            parts.update(module.modules())
            yield name, module.get_submodule("core")
        elif module not in parts:
            yield name, module


def matches(name: str, module: nn.Module | None, patterns: Patterns) -> bool:
    """Whether a pattern is the layer's name, a glob that covers it, or a type of the module."""
    return any(
        name == pattern or fnmatch.fnmatchcase(name, pattern)
        if isinstance(pattern, str)
        else isinstance(module, pattern)
        for pattern in as_patterns(patterns)
    )


def as_patterns(patterns: Patterns) -> tuple[Pattern, ...]:
    """One pattern or several, as a tuple."""
    if isinstance(patterns, (str, type)) or not isinstance(patterns, Iterable):
        return (patterns,)
    return tuple(patterns)


def check_patterns(patterns: Patterns, names: Iterable[str], *, caller: str, argument: str) -> None:
    """Refuses a string that matches no name, with the nearest names, and anything that is not a pattern."""
    known = list(names)
    for pattern in as_patterns(patterns):
        if isinstance(pattern, type) and issubclass(pattern, nn.Module):
            continue
        if not isinstance(pattern, str):
            raise TypeError(
                f"{caller}: {argument} must hold layer names, globs or module types, got {pattern!r}; "
                "pass for example 'layer1.*' or torch.nn.Linear"
            )
        if any(matches(name, None, pattern) for name in known):
            continue
        if any(name.startswith(f"{pattern}.") for name in known):
            remedy = f"use {pattern + '.*'!r} for the layers inside it"
        else:
            nearest = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            remedy = f"the nearest names are {', '.join(map(repr, nearest))}" if nearest else "it has none"
        raise ValueError(f"{caller}: {argument} must match layers of the model, got {pattern!r}; {remedy}")


def is_factored(module: nn.Module) -> bool:
    """Whether a module is what pruning makes of a layer: a core and one rotation or two, in their order.

    Rotations are pointwise, and only the last child has a bias.
    """
    if not isinstance(module, nn.Sequential) or tuple(module._modules) not in FACTORED_CHILDREN:
        return False
    kinds = {kind_of(child) if child else None for child in module._modules.values()}
    if len(kinds) > 1 or None in kinds:
        return False
    specs = [LayerSpec.of(name, child) for name, child in module.named_children()]
    pointwise = all(
        spec.kernel_size == spec.stride == (1, 1) and not any(spec.borders)
        for spec in specs
        if spec.name != "core"
    )
    return pointwise and not any(spec.bias for spec in specs[:-1])


def _has_weight_matrix(module: nn.Module) -> bool:
    """Whether a reader would expect factors of this module, or be told why there are none."""
    if _is_quantized(module):
        return any(word in type(module).__name__ for word in ("Linear", "Conv"))
    if isinstance(module, _NormBase | nn.LayerNorm | nn.RMSNorm | parametrize.ParametrizationList):
        return False
    return kind_of(module) is not None or isinstance(module, nn.RNNBase) or bool(_matrices(module))


def _matrices(module: nn.Module) -> list[str]:
    """Names of the parameters that a module holds itself and that have two sizes or more above 1."""
    return [
        name
        for name, parameter in module._parameters.items()
        if parameter is not None and sum(size > 1 for size in parameter.shape) > 1
    ]


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.nn")


def _enclosed(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Modules inside something that does not call them as layers, with the reason."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            reason = "inside MultiheadAttention, which multiplies by its weights without calling layers"
        elif isinstance(module, nn.TransformerEncoderLayer):
            reason = "inside TransformerEncoderLayer, which has a fused path that does not call its layers"
        else:
            continue
        for child, _ in module.named_modules(prefix=name):
            if child != name:
                yield child, reason


def _shared(model: nn.Module) -> dict[str, str]:
    """Modules that go by two names, or whose parameters another module holds too, with the reason."""
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    owners: dict[nn.Parameter, list[str]] = defaultdict(list)
    for module, (name, *_) in names.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[parameter].append(name)
    reasons = {}
    for module, (first, *others) in names.items():
        if others:
            reasons[first] = f"the same module is also called {others[0]!r}"
            reasons |= dict.fromkeys(others, f"the same module is also called {first!r}")
        for key, parameter in module._parameters.items():
            for owner in owners[parameter] if parameter is not None else ():
                if owner != first:
                    reasons.setdefault(first, f"its {key} is shared with {owner!r}")
    return reasons


def _obstacle(name: str, module: nn.Module, shared: Mapping[str, str]) -> str | None:
    """Why a layer is not covered, of a factored one all its parts; None if it is."""
    if not name and (kind_of(module) or is_factored(module)):
        return "it is the whole model; wrap it in nn.Sequential"
    if is_factored(module):
        reasons = (
            (child, shared.get(f"{name}.{child}") or _unsupported(part))
            for child, part in module.named_children()
        )
        return shared.get(name) or next((f"{child}: {why}" for child, why in reasons if why), None)
    if kind_of(module) is None:
        return _unsupported(module)
    return shared.get(name) or _unsupported(module)


def _unsupported(module: nn.Module) -> str | None:
    """Why a layer that stands alone is not covered; None if it is."""
    kind = type(module).__name__
    if _is_quantized(module):
        return f"{kind} is quantised"
    base = base_of(module)
    if base is None:
        return _no_layer(module)
    if parametrize.is_parametrized(module):
        return "its weight is parametrized; call parametrize.remove_parametrizations first"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters (weight_norm, spectral_norm or a pruning mask)"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not a plain parameter"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    for method in ("__call__", "forward", "_conv_forward"):
        if method in vars(module) or getattr(type(module), method, None) is not getattr(base, method, None):
            return f"{kind} has a {method} of its own"
    return None


def _no_layer(module: nn.Module) -> str:
    """Why a module that holds a matrix is no layer."""
    kind = type(module).__name__
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{kind} is a table, not a product"
    if isinstance(module, nn.Conv3d):
        return "Conv3d is not covered: kernels move along one or two dimensions"
    if type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, _CONTAINERS):
        return f"{kind} is not covered, only Conv1d, Conv2d and Linear are"
    held = ", ".join(_matrices(module))
    return f"{kind} holds {held} itself; only what a Conv1d, Conv2d or Linear multiplies by is covered"


def _pair(kind: str, value: tuple[int, ...] | int, above: int = 1) -> tuple[int, int]:
    """Vertical and horizontal; the numbers of a Conv1d are horizontal, with the one given above."""
    numbers = (value,) * (1 if kind == "Conv1d" else 2) if isinstance(value, int) else value
    vertical, horizontal = (above, *numbers)[-2:]
    return vertical, horizontal
