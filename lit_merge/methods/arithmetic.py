"""Weight averaging (arXiv 2203.05482) and task arithmetic (arXiv 2212.04089)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lit_merge.experts import Weight
from lit_merge.methods.base import MergeMethod, Scaling
from lit_merge.task_bank import Delta


@dataclass(frozen=True)
class WeightAveraging(MergeMethod):
    """W = mean_t θ_t, for every weight. Its bank has no deltas."""

    needs_base: ClassVar[bool] = False

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.experts.mean(0), None


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """W = θ₀ + scaling · Σ_t (θ_t − θ₀), for every weight.

    Args:
        scaling: the coefficient of every task vector; or a rule that finds it without labels.
    """

    scaling: Scaling = 0.3
    needs_base: ClassVar[bool] = True

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors
