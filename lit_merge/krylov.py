"""Leading singular triplets of large float32 matrices from products with them, without a whole decomposition.

Block Krylov with Rayleigh–Ritz: the subspace spanned by Q, AᵀA·Q, (AᵀA)²·Q, … of a random block Q holds the leading
right singular vectors long before it holds all (Musco and Musco, arXiv 1504.05477). Two to three times the rank is
enough for spectra of fine-tuning. Imports nothing of the package.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Columns of a block: wide enough for fast products, narrow enough for many powers of AᵀA in a small subspace.
BLOCK = 32
# One more block brings less than this share of the captured energy: convergence is geometric, and what is missing by
# then is a tenth of it or less.
RISE = 1e-3
# How far from orthonormal a basis may be in float32 before it counts as broken, as by a matrix that lacks rank.
BROKEN = 1e-4
# Below this share of the largest singular value a Gram matrix in float32 has no digits left.
FAINT = 1e-3

Triplets = tuple[Float[Tensor, "m r"], Float[Tensor, " r"], Float[Tensor, "n r"]]


def leading_triplets(matrix: Float[Tensor, "m n"], rank: int) -> Triplets | None:
    """U, S, V of the `rank` largest singular values of a matrix with m ≥ n, by whichever way is shorter.

    None where they cannot be had like this: directions too faint for float32, as in a matrix that lacks rank. The same
    matrix gives the same factors: random blocks are drawn from a seed of their own.
    """
    few = 4 * rank <= matrix.shape[1]
    return (krylov(matrix, rank) if few else None) or from_gram(matrix, rank)


def krylov(matrix: Float[Tensor, "m n"], rank: int) -> Triplets | None:
    """By block Krylov; None where half of the matrix's directions were not enough, or it lacks rank."""
    m, n = matrix.shape
    most = n // 2 // BLOCK * BLOCK
    generator = torch.Generator().manual_seed(0)
    block = matrix.mT @ torch.randn(m, BLOCK, generator=generator).to(matrix)
    basis, images, gram = (matrix.new_zeros(rows, most) for rows in (n, m, most))
    energy = 0.0
    for start in range(0, most, BLOCK):
        known, end = basis[:, :start], start + BLOCK
        # Twice: what is left of a block that lies almost inside the basis is mostly rounding.
        for _ in range(2):
            block = torch.linalg.qr(block - known @ (known.mT @ block)).Q
        if start and (known.mT @ block).abs().max() > BROKEN:
            return None
        basis[:, start:end], images[:, start:end] = block, matrix @ block
        gram[:end, start:end] = images[:, :end].mT @ images[:, start:end]
        gram[start:end, :end] = gram[:end, start:end].mT
        if end >= 2 * rank:
            values, vectors = torch.linalg.eigh(gram[:end, :end])
            captured = values[-rank:].sum().item()
            if captured - energy <= RISE * captured:
                found = _ritz(images[:, :end], vectors[:, -rank:])
                return found and (*found[:2], basis[:, :end] @ found[2])
            energy = captured
        block = matrix.mT @ images[:, start:end]
    return None


def from_gram(matrix: Float[Tensor, "m n"], rank: int) -> Triplets | None:
    """By the eigenvectors of AᵀA; None where float32 has not enough digits for it."""
    return _ritz(matrix, torch.linalg.eigh(matrix.mT @ matrix).eigenvectors[:, -rank:])


def _ritz(images: Float[Tensor, "m d"], chosen: Float[Tensor, "d r"]) -> Triplets | None:
    """U, S and coordinates of V, from A times a basis. A small SVD of what was chosen makes up for the digits that a
    Gram matrix loses."""
    q, r = torch.linalg.qr(images @ chosen)
    u, s, vh = torch.linalg.svd(r)
    if s[-1] <= FAINT * s[0] or not s[0] > 0:
        return None
    return q @ u, s, chosen @ vh.mT


def polar_from_gram(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"] | None:
    """The polar factor M·(MᵀM)^(−½) of a matrix with m ≥ n; None where its columns are dependent.

    In float32 where they are far from it, as those of a tall matrix are; in float64 otherwise.
    """
    if 2 * matrix.shape[0] >= 3 * matrix.shape[1] and (found := _polar(matrix, 1e-4)) is not None:
        return found
    found = _polar(matrix.double(), 1e-12)
    return None if found is None else found.to(matrix.dtype)


def _polar(matrix: Tensor, least: float) -> Tensor | None:
    """`least`: the smallest eigenvalue of MᵀM over the largest for which this precision has digits enough."""
    values, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    if values[0] <= least * values[-1]:
        return None
    factor = matrix @ ((vectors * values.rsqrt()) @ vectors.mT)
    if matrix.dtype == torch.float64:
        return factor
    # One step of Newton and Schulz: what rounding has left is squared.
    return 1.5 * factor - 0.5 * factor @ (factor.mT @ factor)
