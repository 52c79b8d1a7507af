from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eigendamage_ext._arguments import IntOrPair

def covariance(
    x: Tensor,
    feature_dim: int,
    groups: int,
    bias: bool,
    reduction: str,
    out: Tensor | None,
    alpha: float,
    beta: float,
) -> Tensor | None: ...
def channel_covariance(
    x: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
    reduction: str,
    out: Tensor | None,
    alpha: float,
    beta: float,
) -> Tensor | None: ...
def patch_covariance(
    x: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
    bias: bool,
    reduction: str,
    out: Tensor | None,
    alpha: float,
    beta: float,
) -> Tensor | None: ...
def gradient_second_moment(
    x: Tensor,
    g: Tensor,
    kernel_size: IntOrPair | None,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
    reduction: str,
    out: Tensor | None,
    alpha: float,
    beta: float,
) -> Tensor | None: ...
def covariance_(x: Tensor, feature_dim: int, bias: bool, alpha: float, beta: float, out: Tensor) -> None: ...
def channel_covariance_(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int],
    alpha: float,
    beta: float,
    out: Tensor,
) -> None: ...
def patch_covariance_(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_size: Sequence[int],
    bias: bool,
    alpha: float,
    beta: float,
    out: Tensor,
) -> None: ...
def eigh_directly(matrices: Any, most_rows: int, informs: bool) -> tuple[Any, Any, Tensor] | None: ...
def eigh(stacks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor, list[int]]: ...
def gradient_second_moment_(
    x: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    alpha: float,
    beta: float,
    out: Tensor,
) -> None: ...
def current_stream(device: int) -> int: ...
def may_round_to_tf32() -> bool: ...
def build_info() -> dict[str, str | None]: ...
