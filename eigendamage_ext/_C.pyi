from collections.abc import Sequence

from torch import Tensor

def covariance_(x: Tensor, bias: bool, alpha: float, beta: float, out: Tensor) -> None: ...
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
def build_info() -> dict[str, str | bool]: ...
