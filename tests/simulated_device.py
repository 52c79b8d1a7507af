"""A device that is not there: its tensors say they are on "sim:0" and compute on the CPU, as exactly.

As on a GPU, an operator takes tensors of its own device, and from the CPU none but single numbers. What makes
the CPU wait for a GPU is counted: a number read, a tensor fetched, indices of unknown count, a tensor sent
without `non_blocking`. The device is registered for the whole process, which therefore runs nothing else.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from eigendamage_ext import _eigh

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
OF_UNKNOWN_SIZE = (aten.nonzero.default, aten.masked_select.default, aten.equal.default)


class Backend:
    """The module `torch.sim`."""

    is_available = is_initialized = staticmethod(lambda: True)
    is_built = is_available
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.zeros(1, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend("sim", backend_module=Backend())
DEVICE = torch.device("sim", 0)


class SimulatedTensor(Tensor):
    """Wraps ``raw``, which is on the CPU."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "SimulatedTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} runs outside of Simulation")

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.raw!r})"

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()


class Simulation(TorchDispatchMode):
    """Runs the operators of simulated tensors; `waits` counts what the CPU would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        simulated = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
        device = kwargs.get("device")
        onto = device is not None and torch.device(device).type == "sim"
        if not simulated and not onto:
            return func(*args, **kwargs)
        if func is torch.ops.eigendamage_ext.eigh.default:  # it is made of others
            with self:
                return _eigh.solve(*args, **kwargs)
        if func not in COPIES and device is None:
            for tensor in tensors:
                assert isinstance(tensor, SimulatedTensor) or tensor.dim() == 0, f"{func} mixes devices"
        host = device is not None and not onto  # where the result goes
        if func is aten.copy_.default:
            host = not isinstance(args[0], SimulatedTensor)
        self._count(func, args, kwargs, sent=not simulated or (not host and len(simulated) < len(tensors)))
        self.waits["fetched"] += host and func in COPIES
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        wrappers = {id(tensor.raw): tensor for tensor in simulated}

        def wrap(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return wrappers[id(x)] if id(x) in wrappers else SimulatedTensor(x)

        args, kwargs = tree_map(lambda x: x.raw if isinstance(x, SimulatedTensor) else x, (args, kwargs))
        found = func(*args, **kwargs)
        return found if host else tree_map(wrap, found)

    def _count(self, func: Any, args: Any, kwargs: Any, *, sent: bool) -> None:
        self.waits["number"] += func is aten._local_scalar_dense.default
        mask = func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.waits["of unknown size"] += func in OF_UNKNOWN_SIZE or mask
        blocking = not (kwargs.get("non_blocking") or (func is aten.copy_.default and any(args[2:])))
        self.waits["sent"] += sent and blocking and func in COPIES


def send(tensor: Tensor) -> SimulatedTensor:
    """A copy on the device."""
    return SimulatedTensor(tensor.detach().clone(memory_format=torch.preserve_format))


def move(model: nn.Module) -> nn.Module:
    """Puts a model on the device, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(send(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = send(buffer)
    return model
