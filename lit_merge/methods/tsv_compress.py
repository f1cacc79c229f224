"""TSV-C: task vectors cut to their leading directions (arXiv 2412.00081)."""

from dataclasses import dataclass

from torch import Tensor

from lit_merge.bank.low_rank import Delta, rank_of
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, whole_vectors


@dataclass(frozen=True)
class TSVCompress(MergeMethod):
    """θ₀ and the leading directions of every task vector, for tasks that are known when the model is used: its bank
    is for `expert`, export's format `task`, rather than for one merged model.

    Use it to store many experts in the space of about two models, where it is known which task an input is of.

    Args:
        rank_ratio: share of min(m, n) that every task keeps; 1/T, the authors' choice, by default: a matrix with fewer
            directions than there are tasks then goes with the rest.
        matrices: see `select_matrices`; the authors take every 2-D weight, the text projection too.
    """

    rank_ratio: float | None = None
    matrices: Matrices = "every"
    rest = whole_vectors

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        return self.rank_ratio is not None or tasks <= min(shape)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        m, n = weight.base.shape
        rank = min(m, n) // len(weight.experts) if self.rank_ratio is None else rank_of(self.rank_ratio, m, n)
        return weight.base, weight.svd("vectors")(weight.task_vectors, rank)
