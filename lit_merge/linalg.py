"""Linear algebra on batches of matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.gram import leading_triplets, polar_from_gram

# From this many rows and columns on, float32 matrices are worth more than a whole decomposition of each.
LARGE = 384
_exact: ContextVar[bool] = ContextVar("exact", default=False)


@contextmanager
def exact_decompositions(exact: bool = True) -> Iterator[None]:
    """Inside, every matrix is decomposed as a whole, however large and whatever is wanted of it; unless `exact` is off,
    which changes nothing."""
    token = _exact.set(exact or _exact.get())
    try:
        yield
    finally:
        _exact.reset(token)


def _is_large(matrices: Tensor) -> bool:
    """Whether shortcuts are taken: float64 asks for all digits."""
    return matrices.dtype == torch.float32 and min(matrices.shape[-2:]) >= LARGE and not _exact.get()


def truncated_svd(
    matrices: Float[Tensor, "*T m n"], rank: int
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """The `rank` largest singular triplets U, S, V with A ≈ U·diag(S)·Vᵀ, in the dtype of the input.

    Exact to rounding for matrices with a side below 384, for float64 and inside `exact_decompositions`. Otherwise found
    through the Gram matrix of the shorter side, until one more iteration raises the captured energy by less than 1e-4.
    Signs are fixed (the entry of largest size in every left vector is positive), so that the same matrix gives the same
    factors whatever the library chose.
    """
    if not _is_large(matrices):
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        u, s, v = u[..., :rank], s[..., :rank], vh[..., :rank, :].mT
    elif matrices.shape[-2] < matrices.shape[-1]:
        v, s, u = _leading(matrices.mT, rank)
    else:
        u, s, v = _leading(matrices, rank)
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return (u * sign).contiguous(), s.contiguous(), (v * sign).contiguous()


def _leading(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, v = leading_triplets(matrices.reshape(-1, *matrices.shape[-2:]), rank)
    return tuple(one.view(*matrices.shape[:-2], *one.shape[1:]) for one in (u, s, v))  # type: ignore[return-value]


def polar_factor(matrix: Float[Tensor, "*T m n"]) -> Float[Tensor, "*T m n"]:
    """The nearest matrix with orthonormal columns (or rows, where m < n).

    Computed in float64, as the concatenated singular vectors of similar tasks are nearly dependent; of large float32
    matrices through the Gram matrix of the shorter side, faint directions apart.
    """
    if _is_large(matrix) and matrix.ndim == 2:
        tall = matrix.shape[0] >= matrix.shape[1]
        return polar_from_gram(matrix) if tall else polar_from_gram(matrix.mT).mT.contiguous()
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
