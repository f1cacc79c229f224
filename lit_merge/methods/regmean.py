"""RegMean: the linear weights that answer as the experts do, in least squares (arXiv 2212.09849)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.errors import MergeError
from lit_merge.experts import Weight
from lit_merge.matrices import Matrices
from lit_merge.methods.base import Scaling
from lit_merge.methods.moments import MomentsMethod
from lit_merge.task_bank import Delta

RIDGE = 1e-6


def regmean(
    task_vectors: Float[Tensor, "T m n"], second_moments: Float[Tensor, "T n n"], shrinkage: float = 0.9
) -> Float[Tensor, "m n"]:
    """W − θ₀ of Wᵀ = (Σ_t C_t)⁻¹ Σ_t C_t W_tᵀ, off-diagonal entries of C_t multiplied by `shrinkage`.

    Where Σ_t C_t is singular a ridge of 1e-6 of its mean diagonal is added, the same share to every C_t: directions
    that no task's inputs have are then averaged. In float64; θ₀ cancels from the equation.
    """
    tau, C = task_vectors.double(), second_moments.double()
    # A common factor changes nothing; without it thresholds need no unit.
    C = C / (C.diagonal(dim1=1, dim2=2).sum(0).mean() or 1)
    C = torch.lerp(torch.diag_embed(C.diagonal(dim1=1, dim2=2)), C, shrinkage)
    factor, failed = torch.linalg.cholesky_ex(C.sum(0))
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= len(pivots) * torch.finfo(pivots.dtype).eps * pivots.max():
        C = C + RIDGE / len(C) * torch.eye(len(pivots), dtype=C.dtype, device=C.device)
        factor = torch.linalg.cholesky(C.sum(0))
    return torch.cholesky_solve((C @ tau.mT).sum(0), factor).T.to(task_vectors.dtype)


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.shrinkage <= 1:
            raise MergeError(f"shrinkage={self.shrinkage} is outside [0, 1]: 0.9 is the authors' choice")

    @property
    def without_moments(self) -> str:
        return "they are averaged"

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        moments = self.second_moments(weight.name)
        known = [moment for moment in moments if moment is not None]
        if len(known) < len(moments):
            return self.rest(weight)
        return weight.base, regmean(weight.task_vectors, torch.stack(known), self.shrinkage)[None]

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)
