"""Linear algebra on batches of matrices."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_merge.gram import images_of, leading_directions, leading_triplets, polar_from_gram

# From this many rows and columns on, float32 matrices are worth more than a whole decomposition of each.
LARGE = 384
# Up to so many, several threads do more for several matrices than for one.
MIDDLING = 2048
R = TypeVar("R")
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


def takes_shortcuts(matrices: Tensor) -> bool:
    """Whether matrices are decomposed only as far as is asked for: float64 asks for all digits."""
    return matrices.dtype == torch.float32 and min(matrices.shape[-2:]) >= LARGE and not _exact.get()


def truncated_svd(
    matrices: Float[Tensor, "*T m n"], rank: int
) -> tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]:
    """The `rank` largest singular triplets U, S, V with A ≈ U·diag(S)·Vᵀ, in the dtype of the input.

    Exact to rounding for matrices with a side below 384, for float64 and inside `exact_decompositions`. Otherwise found
    through the Gram matrix of the shorter side, until further iterations would add less than 1e-6 of the energy.
    Signs are fixed (the entry of largest size in every left vector is positive), so that the same matrix gives the same
    factors whatever the library chose.
    """
    if not takes_shortcuts(matrices):
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
    contexts = [copy_context() for _ in matrices]
    with ThreadPoolExecutor(min(threads, len(matrices)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            # Threads do not inherit whether decompositions are exact.
            yield from pool.map(lambda context, one: context.run(work, one), contexts, matrices)
        finally:
            # What a thread sets of the libraries below torch holds for all.
            torch.set_num_threads(threads)


def approximation(matrix: Float[Tensor, "m n"], rank: int) -> Float[Tensor, "m n"]:
    """U·diag(S)·Vᵀ of `truncated_svd`, for less, of a matrix that takes shortcuts."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    (v,) = leading_directions(tall[None], rank)
    found = images_of(tall, v) @ v.mT
    return found if tall is matrix else found.mT


def polar_factor(matrix: Float[Tensor, "*T m n"]) -> Float[Tensor, "*T m n"]:
    """The nearest matrix with orthonormal columns (or rows, where m < n).

    Computed in float64, as the concatenated singular vectors of similar tasks are nearly dependent; of large float32
    matrices through the Gram matrix of the shorter side, faint directions apart.
    """
    if takes_shortcuts(matrix) and matrix.ndim == 2:
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
