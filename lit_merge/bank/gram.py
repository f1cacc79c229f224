"""Leading singular triplets and polar factors of large float32 matrices by matrix products and small decompositions.

Everything is read off the Gram matrix AᵀA, of the shorter side. Squaring costs digits: directions that are fainter than
`FAINT` times the strongest are sought in what the stronger ones leave of the matrix, where they are the strongest. So
matrices that are ill-conditioned, or lack rank, need no other decomposition. Imports nothing of the package.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

# Iterations end when this share of the captured energy is what further ones would add to it. Convergence is geometric,
# by the ratio of the last two rises; of which the first is no rise, and no ratio below this one is trusted.
MISSING, LEAST_RATIO = 1e-6, 0.01
# Singular values over the largest one, below which AᵀA in float32 has too few digits.
FAINT = 0.02
# Norm of what is left over that of the matrix, below which it is rounding.
ROUNDING = 1e-8
TINY, EPS = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).eps
# Norms below this are not scaled up to 1: their squares, and what they are divided by, must be numbers.
SMALL = 1e-15
# Powers of two up to which entries stay as they are: their squares, and the sums of those, are far from the ends.
MIDDLING = {torch.float32: 20, torch.float64: 200}
# Products with so many columns, or a multiple of it, take two thirds of the time that they take with one more.
LANES = 16
# Applications of AᵀA that an iteration takes, to tell whether forming it pays.
USUAL = 8

Times = Callable[[Tensor, Tensor], Tensor]
Triplets = tuple[Float[Tensor, "*T m r"], Float[Tensor, "*T r"], Float[Tensor, "*T n r"]]


def leading_triplets(matrices: Float[Tensor, "T m n"], rank: int) -> Triplets:
    """U, S, V of the `rank` largest singular values of matrices with m ≥ n, largest first.

    Directions that a matrix does not have are filled up by any, with a singular value of 0. The same matrix gives the
    same factors: where iterations start comes from a seed of its own.
    """
    if not rank:
        return matrices[..., :0], matrices[:, 0, :0], matrices.mT[..., :0]
    matrices, exponent = of_middling_size(matrices)
    u, s, v = _leading_triplets(matrices, rank)
    return u, shifted(s, exponent[..., 0]), v


def of_middling_size(matrices: Float[Tensor, "*T m n"]) -> tuple[Float[Tensor, "*T m n"], Int[Tensor, "*T 1 1"]]:
    """Matrices with entries of middling size, whose squares are numbers, and which power of two brings back what they
    were; no digit changes. Those that are so already stay as they are."""
    # One pass over the entries is enough where it says that all is well: a norm that overflows or vanishes does not.
    norms = matrices.norm(dim=(-2, -1), keepdim=True)
    limit = MIDDLING[matrices.dtype]
    middling = (norms > 2.0**-limit) & (norms < 2.0**limit)
    if middling.all():
        return matrices, torch.zeros_like(norms, dtype=torch.int32)
    exponent = torch.frexp(matrices.abs().amax((-2, -1), keepdim=True)).exponent
    exponent = torch.where(middling, 0, exponent)
    return shifted(matrices, -exponent), exponent


def of_one_size(
    matrices: Float[Tensor, "T m n"], rounding: float = 0.0
) -> tuple[Float[Tensor, "T m n"], float, Int[Tensor, "1 1"]]:
    """`of_middling_size` by one power of two for all, so that they can be added up; `rounding` likewise."""
    flat, exponent = of_middling_size(matrices.flatten(0, 1))
    return flat.view_as(matrices), math.ldexp(rounding, -int(exponent)), exponent


def norms_of(matrices: Float[Tensor, "*T m n"], dim: int) -> Float[Tensor, "*T _"]:
    """Norms of the columns (dim −2) or rows (dim −1) of matrices: numbers where the norms are, though squares of their
    entries overflow or vanish."""
    small, exponent = of_middling_size(matrices)
    return shifted(small.norm(dim=dim), exponent.squeeze(-1))


def shifted(values: Float[Tensor, "..."], exponent: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """values · 2^exponent."""
    # In two steps: below the normal numbers it takes more than the largest power.
    one, half = torch.ones_like(exponent, dtype=values.dtype), exponent // 2
    return values * torch.ldexp(one, half) * torch.ldexp(one, exponent - half)


def _leading_triplets(matrices: Float[Tensor, "T m n"], rank: int) -> Triplets:
    v = leading_directions(matrices, rank)
    images = images_of(matrices, v)
    s = images.norm(dim=-2)
    # Rayleigh quotients of neighbours may have changed places.
    s, order = s.sort(descending=True, stable=True)
    images, v = (one.gather(-1, order[:, None].expand_as(one)) for one in (images, v))
    u = orthonormal(images)
    for t in (s[:, -1] <= FAINT * s[:, 0]).nonzero().flatten().tolist():
        u[t], s[t], v[t] = _by_parts(matrices[t], u[t], s[t], v[t])
    return u, s, v


def leading_directions(matrices: Float[Tensor, "T m n"], rank: int) -> Float[Tensor, "T n r"]:
    """The right singular vectors: by subspace iteration where few are wanted, else as eigenvectors of AᵀA.

    A block somewhat wider than the rank goes through the Chebyshev polynomial that damps all which lies below the
    block, and is turned to its Ritz vectors, until the energy that it captures has as good as stopped rising.
    """
    tasks, m, n = matrices.shape
    width = max(_whole(7 * rank // 5 - LANES + 1), _whole(rank + 8))
    if 3 * width > n:
        return torch.linalg.eigh(gram(matrices)).eigenvectors[..., -rank:].flip(-1)
    scale = matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(SMALL) ** -2
    forms = 1.25 * m * n + 2 * USUAL * n * width < 4 * USUAL * m * width
    operand = gram(matrices) * scale if forms else matrices * scale.sqrt()
    times: Times = torch.matmul if forms else _times_gram
    block = torch.randn(n, width, generator=torch.Generator().manual_seed(0)).to(matrices).expand(tasks, -1, -1)
    block = orthonormal(times(operand, block))
    found = matrices.new_empty(tasks, n, rank)
    left = torch.arange(tasks, device=matrices.device)
    energy, rise = matrices.new_zeros(tasks), matrices.new_full((tasks,), torch.inf)
    while True:
        image = times(operand, block)
        values, turn = torch.linalg.eigh(block.mT @ image)
        block, image = block @ turn, image @ turn
        captured = values[:, -rank:].sum(-1)
        ratio = ((captured - energy) / rise).clamp_min(LEAST_RATIO)
        rise = captured - energy
        rises = (rise * ratio > MISSING * captured * (1 - ratio)) & (rise > EPS * captured)
        found[left[~rises]] = block[~rises, :, -rank:].flip(-1)
        if not rises.any():
            return found
        if not rises.all():
            left, operand, block, image, values, captured, rise = (
                one[rises] for one in (left, operand, block, image, values, captured, rise)
            )
        energy = captured
        block = orthonormal(_chebyshev(operand, times, block, image, values))


def _whole(width: int) -> int:
    """The next multiple of `LANES`."""
    return width + -width % LANES


def images_of(matrices: Float[Tensor, "*T m n"], v: Float[Tensor, "*T n r"]) -> Float[Tensor, "*T m r"]:
    """matrices·v."""
    rank = v.shape[-1]
    return (matrices @ pad(v, (0, _whole(rank) - rank)))[..., :rank]


def _chebyshev(operand: Tensor, times: Times, block: Tensor, image: Tensor, values: Tensor) -> Tensor:
    """h³/4·T₃(AᵀA/h − 1)·block: T₃ is between −1 and 1 below 2h, the edge of the block, and steep above."""
    h = values[:, :1].maximum(FAINT**2 * values[:, -1:])[..., None] / 2
    first = image.addcmul_(block, h, value=-1)
    second = times(operand, first).addcmul_(first, h, value=-1).addcmul_(block, h.square(), value=-0.5)
    return times(operand, second).addcmul_(second, h, value=-1).addcmul_(first, h.square(), value=-0.25)


def _times_gram(matrices: Tensor, block: Tensor) -> Tensor:
    return matrices.mT @ (matrices @ block)


def _by_parts(matrix: Float[Tensor, "m n"], u: Tensor, s: Tensor, v: Tensor) -> Triplets:
    """The strong ones of these triplets, and as many as are missing from what they leave of the matrix."""
    rank, strong = len(s), int((s > FAINT * s[0]).sum())
    u, s, v = u[:, :strong], s[:strong], v[:, :strong]
    # In float64: what is left may be as small as float32 rounds the whole.
    rest, left, right = (one.double() for one in (matrix, u, v))
    rest = rest - left @ (left.mT @ rest)
    rest = (rest - (rest @ right) @ right.mT).to(matrix)
    if rest.norm() <= ROUNDING * matrix.norm():
        further = tuple(completion(one, rank - strong)[None] for one in (u, v))
        further = further[0], s.new_zeros(1, rank - strong), further[1]
    else:
        faint = _leading_triplets(rest[None], rank - strong)
        # What is left has a rounding's share of the strong directions, which for the faintest of it is much.
        further = _apart(faint[0], u), faint[1], _apart(faint[2], v)
    return tuple(torch.cat([a, b[0]], -1) for a, b in zip((u, s, v), further, strict=True))  # type: ignore[return-value]


def _apart(blocks: Float[Tensor, "T n r"], basis: Float[Tensor, "n k"]) -> Float[Tensor, "T n r"]:
    """Orthonormal columns, made orthogonal to a basis."""
    return orthonormal(blocks - basis @ (basis.mT @ blocks))


def gram(matrices: Float[Tensor, "*T m n"]) -> Float[Tensor, "*T n n"]:
    """AᵀA from its upper blocks: five eighths of the products."""
    n = matrices.shape[-1]
    formed = matrices.new_empty(*matrices.shape[:-2], n, n)
    step = -(-n // 4)
    for i in range(0, n, step):
        formed[..., i : i + step, i:] = matrices[..., i : i + step].mT @ matrices[..., i:]
        formed[..., i + step :, i : i + step] = formed[..., i : i + step, i + step :].mT
    return formed


def orthonormal(blocks: Float[Tensor, "T n r"]) -> Float[Tensor, "T n r"]:
    """Q of the QR decompositions of blocks, R's diagonal not negative, so that every column leans towards its own: by
    Cholesky's of BᵀB, which is all products; by Householder's where columns are too close to dependent for that."""
    products = blocks.mT @ blocks
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt().clamp_min(TINY)
    factors, failed = torch.linalg.cholesky_ex(products / norms[:, :, None] / norms[:, None])
    dependent = (failed > 0) | (factors.diagonal(dim1=-2, dim2=-1).amin(-1) < FAINT)
    found = torch.linalg.solve_triangular(factors.mT * norms[:, None], blocks, upper=True, left=False)
    if dependent.any():
        q, r = torch.linalg.qr(blocks[dependent])
        # Householder's signs are any.
        found[dependent] = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[:, None]
    return found


def completion(basis: Float[Tensor, "m r"], count: int) -> Float[Tensor, "m k"]:
    """So many orthonormal columns that are orthogonal to these: any, but always the same."""
    block = torch.randn(len(basis), count, generator=torch.Generator().manual_seed(0)).to(basis)
    # Twice: what rounding leaves of the basis after one projection is gone after the second.
    for _ in range(2):
        block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
    return block


def isometry_from_gram(matrix: Float[Tensor, "m n"], floor: Callable[[Tensor], Tensor]) -> Float[Tensor, "m n"]:
    """The polar factor M·(MᵀM)^(−½) of a matrix with m ≥ n, without the directions whose singular values are not above
    `floor` of the largest one."""
    factor = torch.zeros_like(matrix)
    # Faint directions have digits again once they stand alone: rest is what M does to those that are still to come.
    own, rest, least = None, matrix, matrix.new_zeros(())
    while True:
        values, vectors = torch.linalg.eigh(gram(rest))
        largest = values[-1].clamp_min(0)
        least = floor(largest.sqrt()).square() if own is None else least
        # Sorted from the smallest.
        faint = int((values <= (FAINT**2 * largest).maximum(least)).sum())
        strong = vectors[:, faint:]
        part = rest @ ((strong * values[faint:].rsqrt()) @ strong.mT)
        factor = part if own is None else factor + part @ own.mT
        if not faint or least >= FAINT**2 * largest:
            return factor
        own = vectors[:, :faint] if own is None else own @ vectors[:, :faint]
        # In float64: what is faint may be as small as float32 rounds the whole.
        rest = (matrix.double() @ own.double()).to(matrix)
        # Twice, as in `completion`: factor·factorᵀ projects on what is settled.
        for _ in range(2):
            rest = rest - factor @ (factor.mT @ rest)
