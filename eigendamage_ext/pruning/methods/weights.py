"""Scores of single weights, from which those of filters descend.

They are no methods of `plan`: a zero among the weights saves no arithmetic. The ½ is dropped, so half a score
is the loss increase ½ δᵀHδ that the quadratic model predicts for setting that weight alone to zero.
"""

import torch
from torch import Tensor


def obd(weight: Tensor, hessian: Tensor) -> Tensor:
    """w_q² H_qq: nothing else changes (LeCun, Denker & Solla 1989, Optimal Brain Damage).

    Args:
        weight: ``(n,)``.
        hessian: ``(n, n)``.

    Returns:
        ``(n,)``.
    """
    return weight.square() * hessian.diagonal()


def obs(weight: Tensor, hessian: Tensor) -> Tensor:
    """w_q² / [H⁻¹]_qq: the others make up for it (Hassibi & Stork 1992, Optimal Brain Surgeon).

    Args:
        weight: ``(n,)``.
        hessian: ``(n, n)``, positive definite.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: The Hessian is not positive definite.
    """
    return weight.square() / inverse_diagonal("obs", "hessian", hessian)


def kronecker_obd(weight: Tensor, A: Tensor, G: Tensor) -> Tensor:
    """`obd` with H = G ⊗ A, which is never formed: w_ij² G_ii A_jj.

    Args:
        weight: ``(…, c_out, D)``; leading dimensions are groups.
        A: ``(…, D, D)``.
        G: ``(…, c_out, c_out)``.

    Returns:
        ``(…, c_out, D)``.
    """
    rows, columns = (factor.diagonal(dim1=-2, dim2=-1) for factor in (G, A))
    return weight.square() * rows[..., :, None] * columns[..., None, :]


def kronecker_obs(weight: Tensor, A: Tensor, G: Tensor) -> Tensor:
    """`obs` with H = G ⊗ A, which is never formed: w_ij² / ([G⁻¹]_ii [A⁻¹]_jj).

    Args:
        weight: ``(…, c_out, D)``; leading dimensions are groups.
        A: ``(…, D, D)``, positive definite.
        G: ``(…, c_out, c_out)``, positive definite.

    Returns:
        ``(…, c_out, D)``.

    Raises:
        ValueError: A factor is not positive definite.
    """
    rows = inverse_diagonal("kronecker_obs", "G", G)
    columns = inverse_diagonal("kronecker_obs", "A", A)
    return weight.square() / (rows[..., :, None] * columns[..., None, :])


def inverse_diagonal(function: str, argument: str, matrices: Tensor) -> Tensor:
    """Diagonals of M⁻¹ ``(…, n)``, M ``(…, n, n)``: with M = L Lᵀ they are Σ_i (L⁻¹)_ij², sums of squares.

    Raises:
        ValueError: In the name of `function`: an M is not positive definite.
    """
    lower, info = torch.linalg.cholesky_ex(matrices)
    if info.any():
        raise ValueError(
            f"{function}: {argument} must be positive definite, got a matrix that is not; add a "
            "multiple of the identity to it"
        )
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.square().sum(-2)
