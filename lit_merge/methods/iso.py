"""Iso-C and Iso-CTS: one merged task vector with a flat spectrum (arXiv 2502.04959)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.deltas import Delta
from lit_merge.errors import MergeError
from lit_merge.linalg import polar_factor
from lit_merge.low_rank import LowRank
from lit_merge.matrices import Matrices
from lit_merge.methods.base import MergeMethod, Scaling
from lit_merge.weights import Decompose, Weight


def iso_c(task_vectors: Float[Tensor, "T m n"], svd: Decompose = LowRank.from_dense) -> LowRank:
    """The SVD of Σ_t τ_t with every singular value set to their mean: one delta, shared by all tasks."""
    total = svd(task_vectors.sum(0, keepdim=True), min(task_vectors.shape[1:]))
    return LowRank(total.U, total.S.mean(-1, keepdim=True).expand_as(total.S).contiguous(), total.V)


def flat(total: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The product of what `iso_c` makes of M = Σ_t τ_t: its polar factor times ⟨polar, M⟩/min(m, n), which is the mean
    of its singular values."""
    factor = polar_factor(total)
    return factor * (torch.dot(factor.flatten(), total.flatten()) / min(total.shape))


def directions_of_tasks(tasks: int, r: int, common_ratio: float) -> int:
    """q = (r − ⌊common_ratio·r⌋)/T, rounded half to even, of which T must fit into r.

    >>> directions_of_tasks(8, 768, 0.8), directions_of_tasks(8, 12, 0.8)
    (19, 0)
    """
    # The small number for the same reason as in `rank_of`; Python's round is half to even.
    return min(round((r - int(common_ratio * r + 1e-9)) / tasks), r // tasks)


def iso_cts(
    task_vectors: Float[Tensor, "T m n"], common_ratio: float = 0.8, svd: Decompose = LowRank.from_dense
) -> LowRank:
    """c = r − T·q leading directions of Σ_t τ_t and q of what they leave of every τ_t, side by side; both sides are
    replaced by their polar factors, and every singular value by the mean of those kept: one delta for all tasks.

    With q = 0 this is `iso_c`.

    >>> iso_cts(torch.randn(2, 10, 12)).shape
    (1, 10, 12)
    """
    tasks, *shape = task_vectors.shape
    q = directions_of_tasks(tasks, min(shape), common_ratio)
    if q == 0:
        return iso_c(task_vectors, svd)
    common = svd(task_vectors.sum(0, keepdim=True), min(shape) - tasks * q)
    own = LowRank.from_dense(task_vectors - common.U @ (common.U.mT @ task_vectors), q)
    u, s, v = (
        torch.cat([shared.squeeze(0), *each], -1)
        for shared, each in ((common.U, own.U), (common.S, own.S), (common.V, own.V))
    )
    return LowRank(polar_factor(u)[None], s.mean().expand(1, len(s)).contiguous(), polar_factor(v)[None])


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
    elementwise: ClassVar[bool] = True

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, iso_c(weight.task_vectors, weight.svd("sum"))

    def product(self, weight: Weight, selected: bool) -> tuple[Tensor, Delta | None]:
        if not selected or weight.decompositions is not None:
            return super().product(weight, selected)
        assert weight.base is not None
        total, vector = torch.zeros_like(weight.base), torch.empty_like(weight.base)
        for expert in weight.experts:
            total += torch.sub(expert, weight.base, out=vector)
        return weight.base, flat(total)[None]

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)


@dataclass(frozen=True)
class IsoCTS(MergeMethod):
    """W = θ₀ + scaling · iso(directions of Σ_t τ_t, and of every τ_t beside); the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        common_ratio: share of the directions that come from Σ_t τ_t, in [0, 1]; the others are divided among the tasks
            as evenly as they can be. A matrix with too few for one each is merged as by `IsoC`.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.

    Raises:
        MergeError: `common_ratio` outside [0, 1].
    """

    common_ratio: float = 0.8
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.common_ratio <= 1:
            raise MergeError(f"common_ratio={self.common_ratio} is outside [0, 1]: 0.8 in the paper")

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, iso_cts(weight.task_vectors, self.common_ratio, weight.svd("sum"))

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)
