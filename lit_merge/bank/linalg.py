"""Linear algebra on batches of matrices."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.bank.gram import (
    images_of,
    isometry_from_gram,
    leading_directions,
    leading_triplets,
    of_middling_size,
    shifted,
)

# From this many rows and columns on, float32 matrices are worth more than a whole decomposition of each.
LARGE = 384
# Up to so many, several threads do more for several matrices than for one.
MIDDLING = 2048
# Singular values over rounding's, from which on a direction is its own: it may have been turned by a twentieth.
CLEAR = 20
# Least squares of which less is left of a feature, given those before it, are singular: then a ridge is added.
SINGULAR, RIDGE = 1e-10, 1e-6
R = TypeVar("R")


def takes_shortcuts(matrices: Tensor, exact: bool = False) -> bool:
    """Whether matrices are decomposed only as far as is asked for: float64 asks for all digits, as `exact` does."""
    return matrices.dtype == torch.float32 and min(matrices.shape[-2:]) >= LARGE and not exact


def truncated_svd(
    matrices: Float[Tensor, "*T m n"], rank: int, exact: bool = False
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """The `rank` largest singular triplets U, S, V with A ≈ U·diag(S)·Vᵀ, in the dtype of the input.

    Exact to rounding for matrices with a side below 384, for float64 and where `exact` says so: every matrix is then
    decomposed as a whole. Otherwise found through the Gram matrix of the shorter side, until further iterations would
    add less than 1e-6 of the energy.
    Signs are fixed (the entry of largest size in every left vector is positive), so that the same matrix gives the same
    factors whatever the library chose.
    """
    if not takes_shortcuts(matrices, exact):
        u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
        u, s, v = u[..., :rank], s[..., :rank], vh[..., :rank, :].mT
    elif matrices.shape[-2] < matrices.shape[-1]:
        v, s, u = _leading(matrices.mT, rank)
    else:
        u, s, v = _leading(matrices, rank)
    sign = u.gather(-2, u.abs().argmax(-2, keepdim=True)).sign()
    return (u * sign).contiguous(), s.contiguous(), (v * sign).contiguous()


def _leading(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    parts = side_by_side(lambda some: leading_triplets(some, rank), _one_each(flat))
    u, s, v = (torch.cat(some) for some in zip(*parts, strict=True))
    return tuple(one.view(*matrices.shape[:-2], *one.shape[1:]) for one in (u, s, v))  # type: ignore[return-value]


def _one_each(matrices: Float[Tensor, "T m n"]) -> Sequence[Float[Tensor, "_ m n"]]:
    """Batches of one, on a CPU; on a GPU all at once."""
    return matrices.split(1) if matrices.device.type == "cpu" else [matrices]


def side_by_side(work: Callable[[Tensor], R], matrices: Sequence[Tensor]) -> Iterator[R]:
    """`work` of every one of these, in their order: on a CPU one thread each, as far as there are threads.

    Products of middling matrices, and small decompositions more so, take up to twice the CPU time on two threads that
    they take on one.
    """
    threads, first = torch.get_num_threads(), matrices[0]
    if min(threads, len(matrices)) == 1 or first.device.type != "cpu" or min(first.shape[-2:]) > MIDDLING:
        yield from map(work, matrices)
        return
    with ThreadPoolExecutor(min(threads, len(matrices)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from pool.map(work, matrices)
        finally:
            # What a thread sets of the libraries below torch holds for all.
            torch.set_num_threads(threads)


def approximation(matrix: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "m n"]:
    """U·diag(S)·Vᵀ of `truncated_svd`, for less, of a matrix that takes shortcuts."""
    small, exponent = of_middling_size(matrix)
    tall = small if matrix.shape[0] >= matrix.shape[1] else small.mT
    (v,) = leading_directions(tall[None], rank)
    found = images_of(tall, v) @ v.mT
    return shifted(found if tall is small else found.mT, exponent)


def polar_factor(matrix: Float[Tensor, "m n"], least: float = 0.0, exact: bool = False) -> Float[Tensor, "m n"]:
    """The nearest matrix with orthonormal columns (or rows, where m < n): U·Vᵀ of the singular value decomposition, of
    the directions that the matrix has. Where it lacks rank, that is a partial isometry: an SVD would complete it by
    directions of no meaning.

    Computed in float64, as the concatenated singular vectors of similar tasks are nearly dependent; of large float32
    matrices through the Gram matrix of the shorter side, faint directions apart.

    Args:
        matrix: of which the factor is wanted.
        least: a singular value that is not above it is no direction of the matrix; nor is one of rounding's size.
        exact: from the whole decomposition, however large the matrix is.
    """
    if not takes_shortcuts(matrix, exact):
        floor = rounding_share(matrix.shape, matrix.dtype)
        return partial_isometry(matrix.double(), least, floor)[0].to(matrix.dtype)
    small, exponent = of_middling_size(matrix)
    share, limit = rounding_share(matrix.shape, matrix.dtype), math.ldexp(least, -int(exponent))
    tall = small if matrix.shape[0] >= matrix.shape[1] else small.mT
    found = isometry_from_gram(tall, lambda largest: (share * largest).clamp_min(limit))
    return found if tall is small else found.mT.contiguous()


def rounding_share(shape: Sequence[int], dtype: torch.dtype) -> float:
    """Singular values of a matrix of this shape and dtype are rounding up to this share of the largest."""
    return (10 + max(shape[-2:]) ** 0.5) * torch.finfo(dtype).eps


def spectral_norms(matrices: Float[Tensor, "*T m n"]) -> Float[Tensor, "*T"]:
    """About the largest singular values, from below: a few steps of the power method."""
    small, exponent = of_middling_size(matrices)
    # Started from the longest row, which no norm of rows is above.
    place = small.norm(dim=-1, keepdim=True).argmax(-2, keepdim=True)
    vector = small.gather(-2, place.expand(*place.shape[:-1], small.shape[-1])).mT
    for _ in range(5):
        vector = small.mT @ (small @ normalised(vector, -2))
    return shifted(vector.norm(dim=-2).sqrt(), exponent.squeeze(-1)).squeeze(-1)


def normalised(vectors: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Vectors of length 1, but those of zeros."""
    return torch.nn.functional.normalize(vectors, dim=dim, eps=torch.finfo(vectors.dtype).tiny)


def numerical_rank(
    values: Float[Tensor, "*T r"], shape: Sequence[int], least: float = 0.0, share: float | None = None
) -> Int[Tensor, "*T"]:
    """How many singular values, sorted from the largest, are above `least` and above a `share` of the largest:
    `rounding_share` by default."""
    share = rounding_share(shape, values.dtype) if share is None else share
    return (values > (share * values[..., :1]).clamp_min(least)).sum(-1)


def partial_isometry(
    matrix: Float[Tensor, "m n"], least: float = 0.0, share: float | None = None, rank: int | None = None
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " r"]]:
    """The polar factor of a matrix that may lack rank, and its singular values, in the dtype of the input.

    Directions that the matrix does not have stay out: an SVD completes them by directions of no meaning. How many it
    has says `rank` at most, and `numerical_rank`.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = int(numerical_rank(s, matrix.shape, least, share))
    kept = kept if rank is None else min(kept, rank)
    return u[:, :kept] @ vh[:kept], s


def independent(rows: Float[Tensor, "k n"], apart: float = 0.0) -> int:
    """How many of these rows are independent, where rounding may have turned each by so much."""
    unit = normalised(of_middling_size(rows[:, None])[0][:, 0], -1)
    return int(numerical_rank(torch.linalg.svdvals(unit), unit.shape, apart))


def square_root(moment: Float[Tensor, "n n"]) -> Float[Tensor, "n r"]:
    """L with L·Lᵀ = C for a symmetric C without negative eigenvalues, r its rank.

    Eigenvalues below n·eps·λ_max are rounding and count as 0.
    """
    values, vectors = torch.linalg.eigh(moment)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp_min(0)
    return vectors[:, kept] * values[kept].sqrt()


def ridge_solve(
    left: Float[Tensor, "n n"], right: Float[Tensor, "n m"], towards: Float[Tensor, "n m"]
) -> Float[Tensor, "n m"]:
    """X of left·X = right, for a symmetric `left` without negative eigenvalues and a mean diagonal of 1. Where it is
    singular a ridge draws X to `towards`: in the directions that `left` does not have, X is that."""
    factor, failed = torch.linalg.cholesky_ex(left)
    # The share of every feature that those before it do not explain: free of the features' units.
    if failed or (factor.diagonal().square() / left.diagonal()).min() < SINGULAR:
        factor = torch.linalg.cholesky(left + RIDGE * torch.eye(len(left)).to(left))
        right = right + RIDGE * towards
    return torch.cholesky_solve(right, factor)


def product_svd(
    left: Float[Tensor, "*T m r"], right: Float[Tensor, "*T r n"]
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """U, S, V of the product left·right with r ≤ min(m, n), from an SVD of r × r."""
    q, r = torch.linalg.qr(left)
    p, t = torch.linalg.qr(right.mT)
    u, s, v = truncated_svd(r @ t.mT, left.shape[-1])
    return q @ u, s, p @ v
