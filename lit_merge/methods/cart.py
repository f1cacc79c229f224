"""CART: centred arithmetic with rank-reduced task vectors (arXiv 2412.12153)."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.decomposer import FACTORS, Decomposer
from lit_merge.bank.low_rank import Delta, rank_of
from lit_merge.errors import MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling


def cart(experts: Float[Tensor, "T m n"], rank: int, by: Decomposer = FACTORS) -> tuple[Float[Tensor, "m n"], Delta]:
    """Origin θ̄ = mean_t θ_t and deltas SVD_k(θ_t − θ̄), for one matrix of all experts."""
    origin = experts.mean(0)
    return origin, by.differences(experts, origin, rank)


@dataclass(frozen=True)
class CART(MergeMethod):
    """W = θ̄ + scaling · Σ_t SVD_k(θ_t − θ̄) for matrices; the rest keeps its whole centred differences, which cancel
    in a static merge and count once tasks are weighted or picked. The pretrained checkpoint cancels: none is needed.
    Use it for three tasks or more, also where that checkpoint is lost. Choose the rank first: it matters most.

    Args:
        rank_ratio: k = max(1, ⌊rank_ratio·min(m, n)⌋), in (0, 1]. The best one grows with the number of tasks: the
            authors release .12, .16 and .32 for 8, 14 and 20 tasks of CLIP ViT-B/32.
        scaling: λ of every task; the authors release 2.0, 1.5 and 1.9. Or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose attention and MLP weights of the blocks.
    """

    rank_ratio: float = 0.08
    scaling: Scaling = 2.0
    matrices: Matrices = "block"
    needs_base: ClassVar[bool] = False
    centred: ClassVar[bool] = True

    def check(self, experts: Experts) -> None:
        if len(experts.tasks) == 1:
            warnings.warn("CART of one expert is that expert", MergeWarning, stacklevel=3)
        if len(experts.tasks) == 2:
            text = "CART of two experts is their average at every rank and scaling: two centred task vectors are each "
            text += "other's negatives; TSVM or TaskArithmetic can do more with two"
            warnings.warn(text, MergeWarning, stacklevel=3)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        by, rank = weight.decomposer("centred", sums=True), rank_of(self.rank_ratio, *weight.experts.shape[1:])
        # Task vectors differ from their mean as the experts do; those of updates are exact.
        own = weight.experts if weight.vectors is None else weight.vectors
        origin, deltas = cart(own, rank, by)
        return (origin if weight.vectors is None else weight.experts.mean(0)), deltas

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.experts.mean(0), weight.centred
