"""Iso-C: one merged task vector with a flat spectrum (arXiv 2502.04959)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lit_merge.experts import Decompose, Weight
from lit_merge.low_rank import LowRank
from lit_merge.matrices import Matrices
from lit_merge.methods.base import MergeMethod, Scaling
from lit_merge.task_bank import Delta


def iso_c(task_vectors: Float[Tensor, "T m n"], svd: Decompose = LowRank.from_dense) -> LowRank:
    """The SVD of Σ_t τ_t with every singular value set to their mean: one delta, shared by all tasks."""
    total = svd(task_vectors.sum(0, keepdim=True), min(task_vectors.shape[1:]))
    return LowRank(total.U, total.S.mean(-1, keepdim=True).expand_as(total.S).contiguous(), total.V)


@dataclass(frozen=True)
class IsoC(MergeMethod):
    """W = θ₀ + scaling · iso(Σ_t τ_t); the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.
    """

    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, iso_c(weight.task_vectors, weight.svd("sum"))

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)
