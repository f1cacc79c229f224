"""Weight averaging (arXiv 2203.05482) and task arithmetic (arXiv 2212.04089)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_merge.bank.low_rank import Delta, rank_of
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling, whole_vectors


@dataclass(frozen=True)
class WeightAveraging(MergeMethod):
    """W = mean_t θ_t, for every weight. Its bank has no deltas.

    Use it as the baseline, and for runs of one task that differ by their seeds or options (model soups): it needs no
    pretrained checkpoint and has nothing to choose. For several tasks the other methods keep more of each."""

    needs_base: ClassVar[bool] = False

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.experts.mean(0), None


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """W = θ₀ + scaling · Σ_t (θ_t − θ₀), for every weight.

    Use it as the baseline of most papers, for few tasks, and to start AdaMerging from. With many tasks the sum of all
    task vectors needs a small scale, and accuracy falls.

    Args:
        scaling: the coefficient of every task vector; or a rule that finds it without labels.
        rank_ratio: where it is given, the task vectors of matrices are decomposed and cut to this share of min(m, n): 1
            changes nothing but lets AdaRank choose among their directions.
        matrices: which those are, see `select_matrices`.

    Raises:
        MergeError: `rank_ratio` outside (0, 1].
    """

    scaling: Scaling = 0.3
    rank_ratio: float | None = None
    matrices: Matrices = "block"

    def selected(self, shapes: Mapping[str, tuple[int, ...]], tasks: int = 1) -> frozenset[str]:
        return frozenset() if self.rank_ratio is None else super().selected(shapes, tasks)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        rank = rank_of(self.rank_ratio or 1.0, *weight.experts.shape[1:])
        return weight.base, weight.svd("vectors")(weight.task_vectors, rank)

    rest = whole_vectors
