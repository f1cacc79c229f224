"""TSV-M: task singular vectors, whitened against each other (arXiv 2412.00081)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lit_merge.errors import MergeError
from lit_merge.experts import Weight
from lit_merge.linalg import polar_factor
from lit_merge.low_rank import LowRank
from lit_merge.matrices import Matrices
from lit_merge.methods.base import MergeMethod
from lit_merge.task_bank import Delta


def tsv_merge(task_vectors: Float[Tensor, "T m n"]) -> LowRank:
    """The ⌊min(m, n)/T⌋ leading directions of every task, U and V of all tasks replaced by their polar factors."""
    tasks, m, n = task_vectors.shape
    rank = min(m, n) // tasks
    own = LowRank.from_dense(task_vectors, rank)
    u = polar_factor(own.U.transpose(0, 1).flatten(1)).view(m, tasks, rank).transpose(0, 1)
    v = polar_factor(own.V.transpose(0, 1).flatten(1)).view(n, tasks, rank).transpose(0, 1)
    return LowRank(u.contiguous(), own.S, v.contiguous())


@dataclass(frozen=True)
class TSVM(MergeMethod):
    """W = θ₀ + scaling · Σ_t Ũ_t·Σ_t·Ṽ_tᵀ; the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        scaling: α.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.

    Raises:
        MergeError: more tasks than a matrix has directions.
    """

    scaling: float = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True

    def start(self) -> float:
        return self.scaling

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        tasks, m, n = weight.experts.shape
        if tasks > min(m, n):
            raise MergeError(
                f"{weight.name} has {min(m, n)} directions for {tasks} tasks, so TSVM would keep none: "
                "leave it out with matrices=[patterns]",
                weight=weight.name,
            )
        return weight.base, tsv_merge(weight.task_vectors)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors / len(weight.experts)
