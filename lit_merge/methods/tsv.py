"""TSV-M: task singular vectors, whitened against each other (arXiv 2412.00081)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lit_merge.deltas import Delta
from lit_merge.errors import MergeError
from lit_merge.linalg import polar_factor
from lit_merge.low_rank import LowRank
from lit_merge.matrices import Matrices
from lit_merge.methods.base import MergeMethod, Scaling
from lit_merge.ranks import check_rank_ratio, rank_of
from lit_merge.weights import Decompose, Weight


def tsv_merge(task_vectors: Float[Tensor, "T m n"], rank: int, svd: Decompose = LowRank.from_dense) -> LowRank:
    """The `rank` leading directions of every task, U and V of all tasks replaced by their polar factors."""
    tasks, m, n = task_vectors.shape
    own = svd(task_vectors, rank)
    u = polar_factor(own.U.transpose(0, 1).flatten(1)).view(m, tasks, rank).transpose(0, 1)
    v = polar_factor(own.V.transpose(0, 1).flatten(1)).view(n, tasks, rank).transpose(0, 1)
    return LowRank(u.contiguous(), own.S, v.contiguous())


def directions_per_task(weight: Weight, rank_ratio: float | None) -> int:
    """k = ⌊r/T⌋ with r = min(m, n), or ⌊rank_ratio·r⌋, of which T must fit into r.

    Raises:
        MergeError: more tasks than directions, or directions of all tasks that do not fit side by side.
    """
    tasks, *shape = weight.experts.shape
    r = min(shape)
    if tasks > r:
        raise MergeError(
            f"{weight.name} has {r} directions for {tasks} tasks, so none would be kept: "
            "leave it out with matrices=[patterns]",
            weight=weight.name,
        )
    if rank_ratio is None:
        return r // tasks
    if (rank := rank_of(rank_ratio, *shape)) * tasks > r:
        raise MergeError(
            f"rank_ratio={rank_ratio} keeps {rank} directions of {weight.name} for each of {tasks} tasks, "
            f"{rank * tasks} of {r}: take at most {1 / tasks:.4g}, or leave it out",
            weight=weight.name,
        )
    return rank


@dataclass(frozen=True)
class TSVM(MergeMethod):
    """W = θ₀ + scaling · Σ_t Ũ_t·Σ_t·Ṽ_tᵀ; the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        rank_ratio: share of min(m, n) that every task keeps; 1/T, the authors' choice and the most, by default.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.

    Raises:
        MergeError: more tasks than a matrix has directions, a ratio outside (0, 1/T].
    """

    rank_ratio: float | None = None
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_ratio is not None:
            check_rank_ratio(self.rank_ratio)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        rank = directions_per_task(weight, self.rank_ratio)
        return weight.base, tsv_merge(weight.task_vectors, rank, weight.svd("vectors"))

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors / len(weight.experts)


@dataclass(frozen=True)
class TSVCompress(MergeMethod):
    """θ₀ and the leading directions of every task vector, for tasks that are known when the model is used: its bank
    is for `expert`, export's format `task`, rather than for one merged model.

    Args:
        rank_ratio: share of min(m, n) that every task keeps; 1/T, the authors' choice, by default.
        matrices: see `select_matrices`; the authors take every 2-D weight, the text projection too.

    Raises:
        MergeError: a ratio outside (0, 1]; more tasks than a matrix has directions, where no ratio is given.
    """

    rank_ratio: float | None = None
    matrices: Matrices = "every"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_ratio is not None:
            check_rank_ratio(self.rank_ratio)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        rank = (
            directions_per_task(weight, None)
            if self.rank_ratio is None
            else rank_of(self.rank_ratio, *weight.experts.shape[1:])
        )
        return weight.base, weight.svd("vectors")(weight.task_vectors, rank)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors
