"""RegMean: the linear weights that answer as the experts do, in least squares (arXiv 2212.09849)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.low_rank import Delta
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import Scaling
from lit_merge.methods.with_moments import MomentsMethod

RIDGE = 1e-6
SINGULAR = 1e-10


def regmean(
    task_vectors: Float[Tensor, "T m n"], second_moments: Iterable[Tensor], shrinkage: float = 0.9
) -> Float[Tensor, "m n"]:
    """W − θ₀ of Wᵀ = (Σ_t C_t)⁻¹ Σ_t C_t W_tᵀ, off-diagonal entries of C_t multiplied by `shrinkage`.

    Where Σ_t C_t is singular a ridge of 1e-6 of its mean diagonal is added, the same share to every C_t: directions
    that no task's inputs have are then averaged. In float64; θ₀ cancels from the equation.

    Args:
        task_vectors: W_t − θ₀.
        second_moments: C_t (n, n) of the inputs, to one common factor; one is in memory at a time.
        shrinkage: in [0, 1].
    """
    m, n = task_vectors.shape[1:]
    tau = task_vectors.double()
    left, right = tau.new_zeros(n, n), tau.new_zeros(n, m)
    for C, own in zip(second_moments, tau, strict=True):
        shrunk = shrinkage * C.double()
        shrunk.diagonal().copy_(C.diagonal())
        left += shrunk
        right += shrunk @ own.T
    unit = left.diagonal().mean()
    if not unit:
        return task_vectors.mean(0)
    left, right = left / unit, right / unit
    factor, failed = torch.linalg.cholesky_ex(left)
    # The share of every feature that those before it do not explain: free of the features' units.
    if failed or (factor.diagonal().square() / left.diagonal()).min() < SINGULAR:
        left.diagonal().add_(RIDGE)
        right += RIDGE * tau.mean(0).T
        factor = torch.linalg.cholesky(left)
    return torch.cholesky_solve(right, factor).T.to(task_vectors.dtype)


@dataclass(frozen=True)
class RegMean(MomentsMethod):
    """W = θ₀ + scaling · (regmean − θ₀) for matrices with second moments; all others are averaged.

    Args:
        scaling: of the merged task vector; 1 is RegMean. Or a rule that finds it without labels.
        shrinkage: factor on the off-diagonal entries of the moments, in [0, 1].
        matrices: see `select_matrices`.
        samples, moments: see `MomentsMethod`.

    Raises:
        MergeError: `shrinkage` outside [0, 1]; moments that do not fit the experts.
    """

    scaling: Scaling = 1.0
    shrinkage: float = 0.9
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrinkage <= 1:
            raise MergeError(f"shrinkage={self.shrinkage} is outside [0, 1]: 0.9 is the authors' choice")

    @property
    def without_moments(self) -> str:
        return "they are averaged"

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        if not self.knows(weight.name):
            return self.rest(weight)
        moments = (moment for moment in self.second_moments(weight) if moment is not None)
        return weight.base, regmean(weight.task_vectors, moments, self.shrinkage)[None]

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)
