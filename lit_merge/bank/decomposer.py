"""How the matrices of one weight are decomposed: what a method's formula gets to work with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.linalg import (
    approximation,
    polar_factor,
    rounding_share,
    side_by_side,
    spectral_norms,
    takes_shortcuts,
)
from lit_merge.bank.low_rank import Delta, LowRank

Decompose = Callable[[Tensor, int], LowRank]
"""(T, m, n) and a rank → the leading directions."""


@dataclass(frozen=True)
class Decomposer:
    """Decompositions into factors, which a bank keeps; or sums, for a merge that is written as it is made.

    Attributes:
        exact: whether every matrix is decomposed as a whole, however large it is and whatever is wanted of it.
        sums: whether the sum over the tasks will do, where it costs less than factors.
        known: answers leading directions that are known or kept, whatever it is given.
    """

    exact: bool = False
    sums: bool = False
    known: Decompose | None = None

    def svd(self, matrices: Float[Tensor, "T m n"], rank: int) -> LowRank:
        """The leading directions of every matrix."""
        return LowRank.from_dense(matrices, rank, self.exact) if self.known is None else self.known(matrices, rank)

    def differences(self, matrices: Float[Tensor, "T m n"], origin: Float[Tensor, "m n"], rank: int) -> Delta:
        """SVD_k(A_t − origin) of every matrix A_t; or their sum (1, m, n), with one difference in memory at a time."""
        if not self.sums or not takes_shortcuts(matrices, self.exact):
            return self.svd(matrices - origin, rank)
        total = torch.zeros_like(origin)
        for one in side_by_side(lambda matrix: approximation(matrix - origin, rank), matrices.unbind()):
            total += one
        return total[None]

    def polar(self, matrix: Float[Tensor, "m n"], least: float = 0.0) -> tuple[Delta, Tensor]:
        """The polar factor U·Vᵀ (1, m, n) of the directions whose singular values are above `least`, and the mean of
        those values; 0 where there is none."""
        if self.sums:
            factor = polar_factor(matrix, least, self.exact)
            # Of a partial isometry, the squared norm is the rank.
            rank = factor.square().sum().round().clamp_min(1)
            return factor[None], torch.dot(factor.flatten(), matrix.flatten()) / rank
        whole = self.svd(matrix[None], min(matrix.shape))
        found = whole.above(least)
        mean = found.S.mean(-1) if found.rank else whole.S.new_zeros(1)
        found = whole.truncate(max(1, found.rank))
        return LowRank(found.U, torch.ones_like(found.S), found.V), mean

    def extended(self, common: LowRank, matrices: Float[Tensor, "T m n"], rank: int, least: float) -> LowRank:
        """Directions of one matrix and, with them in one (1, m, n), the `rank` leading ones of what they leave of every
        other matrix; but those with singular values that are rounding, or not above `least`."""
        own = LowRank.from_dense(matrices - common.U @ (common.U.mT @ matrices), rank, self.exact)
        # What is left of a matrix is rounding by the measure of the whole one.
        limits = (rounding_share(matrices.shape, own.S.dtype) * spectral_norms(matrices)).clamp_min(least)
        kept = torch.gt(own.S, limits[:, None])
        U, V = (
            torch.cat([shared, each.mT[kept].mT[None]], -1) for shared, each in ((common.U, own.U), (common.V, own.V))
        )
        return LowRank(U, torch.cat([common.S, own.S[kept][None]], -1), V)


FACTORS = Decomposer()
