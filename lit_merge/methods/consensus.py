"""Consensus task arithmetic: the entries that several tasks need (arXiv 2405.07813)."""

import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_merge.bank.low_rank import Delta
from lit_merge.errors import MergeError, MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling


def consensus_mask(task_vectors: Float[Tensor, "T ..."], kappa: list[float], agree: int) -> Bool[Tensor, "..."]:
    """Σ_t m_t ≥ agree with the TALL masks m_t = 1[|τ_t| ≥ κ_t·|Σ_s τ_s − τ_t|].

    >>> consensus_mask(torch.tensor([[1.0, 1.0], [1.0, 9.0]]), [0.5, 0.5], 2)
    tensor([ True, False])
    """
    # In float64: a mask must not depend on the order of the tasks.
    total = task_vectors.sum(0, dtype=torch.float64)
    votes = torch.zeros(total.shape, dtype=torch.int64)
    for vector, one in zip(task_vectors, kappa, strict=True):
        votes += vector.abs() >= one * (total - vector).abs()
    return votes >= agree


@dataclass(frozen=True)
class ConsensusTA(MergeMethod):
    """W = θ₀ + scaling · (Σ_t m_t ≥ agree) ⊙ Σ_t τ_t, for every weight: an entry stays where the masks of at least
    `agree` tasks keep it, m_t = 1[|τ_t| ≥ kappa·|Σ_s τ_s − τ_t|].

    Args:
        kappa: how much a task's own entry must weigh against those of all others; one number, or one for every task.
            The authors choose each from .2, .3, .4, .5 and .6 by validation accuracy; 0.4 when nothing is known.
        scaling: α of every task; or a rule that finds it without labels.
        agree: how many tasks must keep an entry.

    Raises:
        MergeError: a negative kappa, a task without one, one for no task; `agree` below 1.
    """

    kappa: float | dict[str, float] = 0.4
    scaling: Scaling = 0.3
    agree: int = 2
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in self.kappa.values() if isinstance(self.kappa, dict) else [self.kappa]:
            if not 0 <= value < float("inf"):
                raise MergeError(f"kappa={value}: expected a number from 0 up, 0.2 to 0.6 in the paper")
        if self.agree < 1:
            raise MergeError(f"agree={self.agree}: expected at least 1 task, 2 in the paper")

    def check(self, experts: Experts) -> None:
        self._kappas(experts.tasks)
        if self.agree > len(experts.tasks):
            warnings.warn(
                f"ConsensusTA with agree={self.agree} keeps nothing of {len(experts.tasks)} experts: the merge is the "
                "pretrained checkpoint",
                MergeWarning,
                stacklevel=3,
            )

    def prepare(self, weights: WeightStream) -> MergeMethod:
        """The same with one kappa for every task, in their order."""
        return replace(self, kappa=self._kappas(weights.experts.tasks))

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        vectors = weight.task_vectors
        kappa = [*self.kappa.values()] if isinstance(self.kappa, dict) else [float(self.kappa)] * len(vectors)
        return weight.base, vectors * consensus_mask(vectors, kappa, self.agree)

    def _kappas(self, tasks: tuple[str, ...]) -> dict[str, float]:
        if not isinstance(self.kappa, dict):
            return dict.fromkeys(tasks, float(self.kappa))
        for task in tasks:
            if task not in self.kappa:
                raise MergeError(f"kappa has no number for the task {task}: give one for every task, or one for all")
        for task in self.kappa:
            if task not in tasks:
                raise MergeError(f"kappa names {task!r}, which is no task of this merge: {', '.join(tasks)}")
        return {task: float(self.kappa[task]) for task in tasks}
