"""RegMean: the linear weights that answer as the experts do, in least squares (arXiv 2212.09849)."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.gram import of_one_size, shifted
from lit_merge.bank.linalg import ridge_solve
from lit_merge.bank.low_rank import Delta
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import Scaling, mean_vector
from lit_merge.methods.with_moments import MomentsMethod


def regmean(task_vectors: Float[Tensor, "T m n"], second_moments: Iterable[Tensor], shrinkage: float = 0.9) -> Tensor:
    """W − θ₀ of Wᵀ = (Σ_t C_t)⁻¹ Σ_t C_t θ_tᵀ, in float64, with second moments C_t (n, n) to one common factor, whose
    off-diagonal entries are multiplied by `shrinkage`. Directions that no inputs have are averaged: `ridge_solve`."""
    (_, m, n), (tau, _, exponent) = task_vectors.shape, of_one_size(task_vectors.double())
    left, right = tau.new_zeros(n, n), tau.new_zeros(n, m)
    for C, own in zip(second_moments, tau, strict=True):
        shrunk = shrinkage * C.double()
        shrunk.diagonal().copy_(C.diagonal())
        left += shrunk
        right += shrunk @ own.T
    if not (unit := left.diagonal().mean()):
        return task_vectors.mean(0)
    return shifted(ridge_solve(left / unit, right / unit, tau.mean(0).T).T, exponent).to(task_vectors.dtype)


@dataclass(frozen=True)
class RegMean(MomentsMethod):
    """W = θ₀ + scaling · (regmean − θ₀) for matrices with second moments; all others are averaged.
    Use it where a few unlabelled inputs of every task are at hand; it looks at them first, and `moments` keeps that.

    Args:
        scaling: of the merged task vector; 1 is RegMean. Or a rule that finds it without labels.
        shrinkage: factor on the off-diagonal entries of the moments, in [0, 1].
        matrices, samples, moments: see `select_matrices` and `MomentsMethod`.
    """

    scaling: Scaling = 1.0
    shrinkage: float = 0.9
    matrices: Matrices = "all"
    without_moments = "they are averaged"
    rest = mean_vector

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrinkage <= 1:
            raise MergeError(f"shrinkage={self.shrinkage} is outside [0, 1]: 0.9 is the authors' choice")

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        if not self.knows(weight.name):
            return self.rest(weight)
        moments = (moment for moment in self.second_moments(weight) if moment is not None)
        return weight.base, regmean(weight.task_vectors, moments, self.shrinkage)[None]
