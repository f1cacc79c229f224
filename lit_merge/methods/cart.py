"""CART: centred arithmetic with rank-reduced task vectors (arXiv 2412.12153)."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.linalg import approximation, side_by_side, takes_shortcuts
from lit_merge.bank.low_rank import Delta, LowRank, check_rank_ratio, rank_of
from lit_merge.errors import MergeWarning
from lit_merge.experts.experts import Experts
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Decompose, Weight
from lit_merge.methods.base import MergeMethod, Scaling


def cart(
    experts: Float[Tensor, "T m n"], rank: int, svd: Decompose = LowRank.from_dense
) -> tuple[Float[Tensor, "m n"], LowRank]:
    """Origin θ̄ = mean_t θ_t and deltas SVD_k(θ_t − θ̄), for one matrix of all experts.

    >>> import torch
    >>> origin, deltas = cart(torch.randn(3, 6, 4), rank=2)
    >>> origin.shape, deltas.rank
    (torch.Size([6, 4]), 2)
    """
    origin = experts.mean(0)
    return origin, svd(experts - origin, rank)


@dataclass(frozen=True)
class CART(MergeMethod):
    """W = θ̄ + scaling · Σ_t SVD_k(θ_t − θ̄) for matrices; the rest keeps its whole centred differences, which cancel
    in a static merge and count once tasks are weighted or picked. The pretrained checkpoint cancels: none is needed.

    Args:
        rank_ratio: k = max(1, ⌊rank_ratio·min(m, n)⌋), in (0, 1]. The best one grows with the number of tasks: the
            authors release .12, .16 and .32 for 8, 14 and 20 tasks of CLIP ViT-B/32.
        scaling: λ of every task; the authors release 2.0, 1.5 and 1.9. Or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose attention and MLP weights of the blocks.

    Raises:
        MergeError: `rank_ratio` outside (0, 1].
    """

    rank_ratio: float = 0.08
    scaling: Scaling = 2.0
    matrices: Matrices = "block"
    needs_base: ClassVar[bool] = False
    elementwise: ClassVar[bool] = True
    centred: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank_ratio(self.rank_ratio)

    def check(self, experts: Experts) -> None:
        if len(experts.tasks) == 1:
            warnings.warn("CART of one expert is that expert", MergeWarning, stacklevel=3)
        if len(experts.tasks) == 2:
            warnings.warn(
                "CART of two experts is their average at every rank and scaling: two centred task vectors are each "
                "other's negatives; TSVM or TaskArithmetic can do more with two",
                MergeWarning,
                stacklevel=3,
            )

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        rank = rank_of(self.rank_ratio, *weight.experts.shape[1:])
        return weight.experts.mean(0), weight.svd("centred")(weight.centred, rank)

    def product(self, weight: Weight, selected: bool) -> tuple[Tensor, Delta | None]:
        kept = weight.decompositions is not None or weight.vectors is not None
        if not selected or kept or not takes_shortcuts(weight.experts):
            return super().product(weight, selected)
        rank = rank_of(self.rank_ratio, *weight.experts.shape[1:])
        origin = weight.experts.mean(0)
        total = torch.zeros_like(origin)
        for delta in side_by_side(lambda expert: approximation(expert - origin, rank), weight.experts.unbind()):
            total += delta
        return origin, total[None]

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.experts.mean(0), weight.centred
