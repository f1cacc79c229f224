"""Consensus task arithmetic: the entries that several tasks need (arXiv 2405.07813)."""

import warnings
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.bank.low_rank import Delta
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling, per_task


def consensus_mask(task_vectors: Float[Tensor, "T ..."], kappa: list[float], agree: int) -> Bool[Tensor, "..."]:
    """Σ_t m_t ≥ agree with the TALL masks m_t = 1[|τ_t| ≥ κ_t·|Σ_s τ_s − τ_t|]."""
    # In float64: a mask must not depend on the order of the tasks.
    total = task_vectors.sum(0, dtype=torch.float64)
    masks = (vector.abs() >= one * (total - vector).abs() for vector, one in zip(task_vectors, kappa, strict=True))
    return sum(masks, torch.zeros(total.shape, dtype=torch.int64)) >= agree


@dataclass(frozen=True)
class ConsensusTA(MergeMethod):
    """W = θ₀ + scaling · (Σ_t m_t ≥ agree) ⊙ Σ_t τ_t for every weight, masks m_t = 1[|τ_t| ≥ kappa·|Σ_s τ_s − τ_t|].
    Use it in place of task arithmetic with many experts: it leaves out entries that serve one task only.

    Args:
        kappa: how much a task's own entry must weigh against those of all others; one number, or one for every task.
            The authors choose each from .2, .3, .4, .5 and .6 by validation accuracy; 0.4 when nothing is known.
        scaling, agree: α of every task, or a rule that finds it without labels; how many tasks must keep an entry.
    """

    kappa: float | dict[str, float] = 0.4
    scaling: Scaling = 0.3
    agree: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if (least := min(self.kappa.values() if isinstance(self.kappa, dict) else [self.kappa], default=0)) < 0:
            raise MergeError(f"kappa={least}: expected a number from 0 up, 0.2 to 0.6 in the paper")
        if self.agree < 1:
            raise MergeError(f"agree={self.agree}: expected at least 1 task, 2 in the paper")

    def check(self, experts: Experts) -> None:
        per_task("kappa", self.kappa, experts.tasks)
        if self.agree > (tasks := len(experts.tasks)):
            text = f"ConsensusTA with agree={self.agree} keeps nothing of {tasks} experts: the merge is the base"
            warnings.warn(text, MergeWarning, stacklevel=3)

    def prepare(self, weights: WeightStream) -> MergeMethod:
        return replace(self, kappa=per_task("kappa", self.kappa, weights.experts.tasks))

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        vectors = weight.task_vectors
        kappa = [*self.kappa.values()] if isinstance(self.kappa, dict) else [self.kappa] * len(vectors)
        return weight.base, vectors * consensus_mask(vectors, kappa, self.agree)
