"""Linear algebra on batches of matrices. Imports nothing of the package."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def truncated_svd(
    matrices: Float[Tensor, "*T m n"], rank: int
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """The `rank` largest singular triplets U, S, V with A ≈ U·diag(S)·Vᵀ, in the dtype of the input.

    Signs are fixed (the entry of largest size in every left vector is positive), so that the same matrix gives the
    same factors whatever the library chose.
    """
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    u, s, v = u[..., :rank], s[..., :rank], vh[..., :rank, :].mT
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return (u * sign).contiguous(), s.contiguous(), (v * sign).contiguous()


def polar_factor(matrix: Float[Tensor, "*T m n"]) -> Float[Tensor, "*T m n"]:
    """The nearest matrix with orthonormal columns (or rows, where m < n).

    Computed in float64: the concatenated singular vectors of similar tasks are nearly dependent.
    """
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u @ vh).to(matrix.dtype)


def numerical_rank(
    values: Float[Tensor, "*T r"], shape: tuple[int, ...], tolerance: float | None = None
) -> Int[Tensor, "*T"]:
    """How many singular values, sorted from the largest, are no rounding: above `tolerance` times the largest, which
    is max(m, n)·eps by default."""
    smallest = max(shape[-2:]) * torch.finfo(values.dtype).eps if tolerance is None else tolerance
    return (values > smallest * values[..., :1]).sum(-1)


def partial_isometry(matrix: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, " r"]]:
    """The polar factor of a matrix that may lack rank, and its singular values, in the dtype of the input.

    Directions that the matrix does not have stay out: an SVD completes them by directions of no meaning.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int(numerical_rank(s, matrix.shape))
    return u[:, :rank] @ vh[:rank], s


def square_root(moment: Float[Tensor, "n n"]) -> Float[Tensor, "n r"]:
    """L with L·Lᵀ = C for a symmetric C without negative eigenvalues, r its rank.

    Eigenvalues below n·eps·λ_max are rounding and count as 0.
    """
    values, vectors = torch.linalg.eigh(moment)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()


def product_svd(
    left: Float[Tensor, "*T m r"], right: Float[Tensor, "*T r n"]
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """U, S, V of the product left·right with r ≤ min(m, n), from an SVD of r × r."""
    q, r = torch.linalg.qr(left)
    p, t = torch.linalg.qr(right.mT)
    u, s, v = truncated_svd(r @ t.mT, left.shape[-1])
    return q @ u, s, p @ v
