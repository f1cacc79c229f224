"""TSV-M: task singular vectors, whitened against each other (arXiv 2412.00081)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.linalg import CLEAR, numerical_rank, polar_factor
from lit_merge.bank.low_rank import Delta, LowRank, check_rank_ratio, rank_of
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Decompose, Weight
from lit_merge.methods.base import MergeMethod, Scaling


def tsv_merge(
    task_vectors: Float[Tensor, "T m n"], rank: int, svd: Decompose = LowRank.from_dense, rounding: float = 0.0
) -> LowRank:
    """The `rank` leading directions of every task, U and V of all tasks replaced by their polar factors Ũ and Ṽ.

    The published formula fills up, by directions of no meaning, where task vectors lack rank or share directions. Here
    Ũ and Ṽ are partial isometries: what no task vector spans stays out. A task with fewer directions ends with zeros.

    Args:
        task_vectors: τ_t.
        rank: k of every task, T·k ≤ min(m, n).
        svd: answers the leading directions.
        rounding: singular values of τ_t that are not clear of it are rounding.
    """
    tasks = len(task_vectors)
    own = svd(task_vectors, rank)
    counts = numerical_rank(own.S, task_vectors.shape, CLEAR * rounding)
    own = own.truncate(max(1, int(counts.max())))
    kept = torch.arange(own.rank, device=own.S.device) < counts[:, None]
    # Rounding turns a direction by its share of the singular value: so much apart, two directions are the same.
    least = (rounding / own.S[kept].min()).item() if kept.any() else 0.0
    u, v = (
        polar_factor((side * kept[:, None]).transpose(0, 1).flatten(1), least).unflatten(1, (tasks, -1)).transpose(0, 1)
        for side in (own.U, own.V)
    )
    return LowRank(u.contiguous(), own.S * kept, v.contiguous())


def directions_per_task(weight: Weight, rank_ratio: float | None) -> int:
    """k = ⌊r/T⌋ with r = min(m, n) ≥ T, or ⌊rank_ratio·r⌋, of which T must fit into r.

    Raises:
        MergeError: directions of all tasks that do not fit side by side.
    """
    tasks, *shape = weight.experts.shape
    r = min(shape)
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

    Ũ and Ṽ are polar factors of the directions that task vectors have: see `tsv_merge`.

    Args:
        rank_ratio: share of min(m, n) that every task keeps; 1/T, the authors' choice and the most, by default.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.

    Raises:
        MergeError: a ratio outside (0, 1/T].

    A matrix with fewer directions than there are tasks, as a short positional embedding, goes with the rest.
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

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        return tasks <= min(shape)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        rank = directions_per_task(weight, self.rank_ratio)
        return weight.base, tsv_merge(weight.task_vectors, rank, weight.svd("vectors"), weight.rounding)

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
        MergeError: a ratio outside (0, 1].

    Where no ratio is given, a matrix with fewer directions than there are tasks goes with the rest.
    """

    rank_ratio: float | None = None
    matrices: Matrices = "every"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_ratio is not None:
            check_rank_ratio(self.rank_ratio)

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        return self.rank_ratio is not None or tasks <= min(shape)

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
        return weight.base, weight.low_rank or weight.task_vectors
