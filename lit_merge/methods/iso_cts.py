"""Iso-CTS: common and task-specific directions with a flat spectrum (arXiv 2502.04959)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.decomposer import FACTORS, Decomposer
from lit_merge.bank.linalg import CLEAR, polar_factor
from lit_merge.bank.low_rank import Delta, LowRank, ranks_left
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling, mean_vector
from lit_merge.methods.iso import iso_c, of_sum


def iso_cts(
    task_vectors: Float[Tensor, "T m n"], common_ratio: float = 0.8, by: Decomposer = FACTORS, rounding: float = 0.0
) -> Delta:
    """c = r − T·q leading directions of Σ_t τ_t and q of what they leave of every τ_t, side by side; both sides are
    replaced by their polar factors, and every singular value by the mean of those kept: one delta for all tasks.
    With q = 0 this is `iso_c`. As there, directions that no task vector has stay out."""
    (tasks, *shape), total = task_vectors.shape, task_vectors.sum(0)
    q, rounded = ranks_left(common_ratio, min(shape), tasks), of_sum(rounding, tasks)
    if q == 0:
        return iso_c(total, by, rounded)
    common = by.svd(total[None], min(shape) - tasks * q).above(CLEAR * rounded)
    both = by.extended(common, task_vectors, q, CLEAR * rounding)
    if not both.rank:
        return iso_c(total, by, rounded)
    # Rounding turns a direction by its share of the singular value: so much apart, two directions are the same.
    U, V = (polar_factor(side[0], (rounded / both.S.min()).item(), by.exact)[None] for side in (both.U, both.V))
    return LowRank(U, both.S.mean().expand_as(both.S).contiguous(), V)


@dataclass(frozen=True)
class IsoCTS(MergeMethod):
    """W = θ₀ + scaling · iso(directions of Σ_t τ_t, and of what they leave of every τ_t); the rest as in `IsoC`.
    Use it in place of `IsoC` where the tasks are many, or differ much: every task keeps directions of its own.

    Args:
        common_ratio: share of the directions that come from Σ_t τ_t, in [0, 1]; the others are divided among the tasks
            as evenly as they can be. A matrix with too few for one each is merged as by `IsoC`.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.
    """

    common_ratio: float = 0.8
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    rest = mean_vector

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.common_ratio <= 1:
            raise MergeError(f"common_ratio={self.common_ratio} is outside [0, 1]: 0.8 in the paper")

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.base, iso_cts(weight.task_vectors, self.common_ratio, weight.decomposer("sum"), weight.rounding)
