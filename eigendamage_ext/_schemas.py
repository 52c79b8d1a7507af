"""The operators as the dispatcher knows them: schemas, kernels and, for `torch.compile`, fakes.

Each computes ``op(...) -> Tensor`` or changes ``op_(..., Tensor(a!) out) -> ()``; `ops` has checked what
they are given.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eigendamage_ext import _C, _eigh

OPS: Any = torch.ops.eigendamage_ext
_LIBRARY: Any = torch.library.Library("eigendamage_ext", "DEF")  # type: ignore[no-untyped-call]


def _define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"eigendamage_ext::{name}", fake, lib=_LIBRARY)


def _define_covariance(op: str, parameters: str, run: Callable[..., None], size: Callable[..., int]) -> None:
    """Define ``op(x, …, groups, divisor, alpha) -> out`` and ``op_(x, …, divisor, alpha, beta, out)``.

    Args:
        op: its name.
        parameters: the schema of what stands for "…".
        run: ``run(x, *parameters, alpha / divisor, beta, out)`` fills out ``(F, F)`` or ``(g, F, F)``.
        size: ``size(x, groups, *parameters)`` is F.
    """

    def allocate(x: Tensor, *arguments: Any) -> Tensor:
        *settings, groups, _, _ = arguments
        side = size(x, groups, *settings)
        shape = (side, side) if groups == 1 else (groups, side, side)
        return x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)

    def compute(x: Tensor, *arguments: Any) -> Tensor:
        *settings, _, divisor, alpha = arguments
        out = allocate(x, *arguments)
        run(x, *settings, alpha / divisor, 0.0, out)
        return out

    def update(x: Tensor, *arguments: Any) -> None:
        *settings, divisor, alpha, beta, out = arguments
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)  # the kernel writes behind autograd's back
        run(x, *settings, alpha / divisor, beta, out)

    new, into = (
        "SymInt groups, SymInt divisor, float alpha",
        "SymInt divisor, float alpha, float beta, Tensor(a!) out",
    )
    _define(f"{op}(Tensor x, {parameters}, {new}) -> Tensor", compute, allocate)
    _define(f"{op}_(Tensor x, {parameters}, {into}) -> ()", update, lambda *_: None)


_RUN_SECOND_MOMENT: Callable[..., None] = _C.gradient_second_moment_


def _new_weight(x: Tensor, g: Tensor, *arguments: Any) -> Tensor:
    kernel, _, _, _, groups, _, _ = arguments
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((g.shape[1], x.shape[1] // groups, *kernel), dtype=dtype)


def _second_moment(x: Tensor, g: Tensor, *arguments: Any) -> Tensor:
    *settings, _, divisor, alpha = arguments
    out = _new_weight(x, g, *arguments)
    _RUN_SECOND_MOMENT(x, g, *settings, alpha / divisor, 0.0, out)
    return out


def _update_second_moment(x: Tensor, g: Tensor, *arguments: Any) -> None:
    *settings, divisor, alpha, beta, out = arguments
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    _RUN_SECOND_MOMENT(x, g, *settings, alpha / divisor, beta, out)


_WINDOW = "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt[2] positions"

_define_covariance(
    "covariance",
    "int feature_dim, bool bias",
    _C.covariance_,
    lambda x, groups, feature_dim, bias: x.shape[feature_dim] // groups + int(bias),  # no SymInt takes a bool
)
_define_covariance(
    "channel_covariance",
    _WINDOW,
    _C.channel_covariance_,
    lambda x, groups, *_: x.shape[1] // groups,
)
_define_covariance(
    "patch_covariance",
    f"{_WINDOW}, bool bias",
    _C.patch_covariance_,
    lambda x, groups, kernel, *rest: x.shape[1] // groups * kernel[0] * kernel[1] + int(rest[-1]),
)
_CONVOLUTION = "SymInt[2] kernel, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
_define(
    f"gradient_second_moment(Tensor x, Tensor g, {_CONVOLUTION}, SymInt groups, SymInt divisor, float alpha)"
    " -> Tensor",
    _second_moment,
    _new_weight,
)
_define(
    f"gradient_second_moment_(Tensor x, Tensor g, {_CONVOLUTION}, SymInt divisor, float alpha, float beta,"
    " Tensor(a!) out) -> ()",
    _update_second_moment,
    lambda *_: None,
)
_define("eigh(Tensor[] matrices) -> (Tensor[], Tensor[], Tensor)", _eigh.solve, _eigh.fake)
