"""The accuracy policy: as good as plain float32 PyTorch, measured against float64."""

import torch
from torch import Tensor

# With float64 input the float64 result is no more exact than ours: both sum up to some 10⁵ terms.
FLOAT64_TOLERANCE = 128 * torch.finfo(torch.float64).eps


def assert_accurate(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    """‖ours − exact‖ ≤ 2·‖plain − exact‖ + eps·‖exact‖ in the Frobenius norm, all of it finite.

    Args:
        ours: what is tested, of any shape.
        plain: the same by one plain PyTorch expression in the dtype of `ours`.
        exact: the same in float64, from the same input.
    """
    assert exact.dtype == torch.float64 and ours.dtype == plain.dtype
    assert ours.shape == plain.shape == exact.shape
    assert exact.isfinite().all() and ours.isfinite().all()
    error, plain_error = (torch.linalg.norm((t.double() - exact).flatten()) for t in (ours, plain))
    norm = torch.linalg.norm(exact.flatten())
    if ours.dtype == torch.float64:
        tolerance = FLOAT64_TOLERANCE * norm
    else:
        tolerance = 2 * plain_error + torch.finfo(ours.dtype).eps * norm
    if not (error <= tolerance):
        raise AssertionError(
            f"the error is {error / norm:.2e} of the norm; allowed are {tolerance / norm:.2e}, "
            f"plain PyTorch's is {plain_error / norm:.2e}"
        )
