"""Linear algebra on batches of matrices. Imports nothing of the package."""

import torch
from jaxtyping import Float
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
