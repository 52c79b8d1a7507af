"""torch.fx, told to stop at every module and to be exact about what Python does to a tensor."""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from eigendamage_ext.artifact.allowlist import known_class
from eigendamage_ext.artifact.graph import UntraceableError, is_name


class Input(str):
    """Stands in arguments for the input of that name."""


class Call(NamedTuple):
    """How a module is called.

    Attributes:
        inputs: What is computed among its arguments, lists taken apart, by name.
        arguments: All of them, by name, with `Input` for what is computed.
    """

    inputs: dict[str, Any]
    arguments: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Call":
        """That of a module inside another."""
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        inputs: dict[str, Any] = {}
        return cls(inputs, {name: _taken_out(name, v, inputs) for name, v in bound.arguments.items()})

    @classmethod
    def alone(cls, module: nn.Module) -> "Call":
        """That of a whole model: what has no default is an input, ``*args`` and ``**kwargs`` are empty."""
        any_number = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
        signature = inspect.signature(module.forward)
        parameters = [p for p in signature.parameters.values() if p.kind not in any_number]
        if not parameters:
            raise UntraceableError(f"the forward of {type(module).__name__} takes any arguments {signature}")
        inputs = [p.name for p in parameters if p.default is p.empty] or [p.name for p in parameters[:1]]
        arguments = {p.name: p.default for p in parameters} | {name: Input(name) for name in inputs}
        return cls(dict.fromkeys(inputs), arguments)


class Tracer(fx.Tracer):
    """Stops at every module, and notes how those with a forward of their own are called.

    Args:
        call: How the module that is traced is called.

    Attributes:
        calls: The modules that were called, by path; how, if they have a forward of their own.
        tensors: What the graph uses and no module registers, by path, once `keep_tensors` was called.
    """

    proxy_buffer_attributes = True

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.calls: list[tuple[str, Call | None]] = []
        self.tensors: dict[str, Tensor] = {}
        self._call = call
        self._switches = _switches()

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Makes inputs proxies and leaves other arguments what they are."""
        inputs = {name: self.create_proxy("placeholder", name, (), {}) for name in self._call.inputs}
        root = self.root

        def filled(value: Any) -> Any:
            if isinstance(value, Input):
                return inputs[value]
            if type(value) is dict:
                return {key: filled(part) for key, part in value.items()}
            return type(value)(map(filled, value)) if type(value) in (tuple, list) else value

        def forward() -> Any:
            arguments = {name: filled(value) for name, value in self._call.arguments.items()}
            bound = inspect.BoundArguments(inspect.signature(root.forward), arguments)
            return root_fn(root, *bound.args, **bound.kwargs)

        return forward, []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Goes into no module; one that is traced by itself is given its inputs alone."""
        path, call = self.path_of_module(m), None
        if known_class(m) is None:
            call = Call.of(m, args, kwargs)
            args, kwargs = tuple(call.inputs.values()), {}
        self.calls.append((path, call))
        return self.create_proxy("call_module", path, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Refuses what runs without gradients or in half precision, of which the graph would know nothing."""
        if _switches() != self._switches:
            raise UntraceableError("its forward switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Proxies of our own."""
        return _Proxy(node, self)

    def keep_tensors(self) -> None:
        """Takes down the tensors of the graph that are neither parameters nor buffers."""
        for node in self.graph.nodes:
            if node.op != "get_attr":
                continue
            path, _, name = str(node.target).rpartition(".")
            owner = self.root.get_submodule(path)
            if name in owner._parameters or name in owner._buffers:
                continue
            found = getattr(owner, name)
            if not isinstance(found, Tensor):
                raise UntraceableError(f"it computes with the {type(found).__name__} {node.target!r}")
            self.tensors[str(node.target)] = found.detach().clone()


class _Proxy(fx.Proxy):
    """Notes what is changed in place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise UntraceableError(f"its forward sets {name!r} of a tensor")
        super().__setattr__(name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], Any]:
    """Records x += y as such; torch.fx takes it for x = x + y, which differs where x has a second name."""

    def record(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("add", "and", "floordiv", "matmul", "mul", "or", "pow", "sub", "truediv", "xor"):
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"__i{_name}__")))


def _taken_out(name: str, value: Any, inputs: dict[str, Any]) -> Any:
    """An argument with `Input` for what is computed, which is added to `inputs`."""
    if type(value) in (tuple, list):
        return type(value)(_taken_out(f"{name}_{place}", part, inputs) for place, part in enumerate(value))
    if type(value) is dict:
        return {key: _taken_out(f"{name}_{key}", part, inputs) for key, part in value.items()}
    if not isinstance(value, fx.Proxy | Tensor):
        return value
    if not is_name(name):
        raise UntraceableError(f"an argument of a module would be called {name!r}")
    if name in inputs:
        raise UntraceableError(f"two arguments of a module would both be called {name!r}")
    inputs[name] = value
    return Input(name)


def _switches() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
    )
