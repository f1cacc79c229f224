"""TSV-M: task singular vectors, whitened against each other (arXiv 2412.00081)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.decomposer import FACTORS, Decomposer
from lit_merge.bank.linalg import CLEAR, numerical_rank, polar_factor
from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling, shares


def tsv_merge(
    task_vectors: Float[Tensor, "T m n"], rank: int, by: Decomposer = FACTORS, rounding: float = 0.0
) -> LowRank:
    """The `rank` leading directions of every task (T·rank ≤ min(m, n)), U and V of all tasks replaced by their polar
    factors Ũ and Ṽ. Singular values that are not clear of `rounding` are none.

    The published formula fills up, by directions of no meaning, where task vectors lack rank or share directions. Here
    Ũ and Ṽ are partial isometries: what no task vector spans stays out. A task with fewer directions ends with zeros.
    """
    own = by.svd(task_vectors, rank)
    counts = numerical_rank(own.S, task_vectors.shape, CLEAR * rounding)
    own = own.truncate(max(1, int(counts.max())))
    kept = torch.arange(own.rank, device=own.S.device) < counts[:, None]
    # Rounding turns a direction by its share of the singular value: so much apart, two directions are the same.
    least = (rounding / own.S[kept].min()).item() if kept.any() else 0.0
    sides = ((side * kept[:, None]).transpose(0, 1).flatten(1) for side in (own.U, own.V))
    polar = (polar_factor(side, least, by.exact).unflatten(1, (len(task_vectors), -1)) for side in sides)
    U, V = (side.transpose(0, 1).contiguous() for side in polar)
    return LowRank(U, own.S * kept, V)


@dataclass(frozen=True)
class TSVM(MergeMethod):
    """W = θ₀ + scaling · Σ_t Ũ_t·Σ_t·Ṽ_tᵀ (see `tsv_merge`); the rest is θ₀ + scaling · mean_t τ_t.
    Use it with the pretrained checkpoint and without any data: there is no rank to choose, and its scale is near 1.

    Args:
        rank_ratio: share of min(m, n) that every task keeps; 1/T, the authors' choice and the most, by default.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection. One with fewer
            directions than there are tasks, as a short positional embedding, goes with the rest.
    """

    rank_ratio: float | None = None
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    rest = shares

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        return tasks <= min(shape)

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        rank = weight.rank_per_task(min(weight.base.shape), self.rank_ratio)
        return weight.base, tsv_merge(weight.task_vectors, rank, weight.decomposer("vectors"), weight.rounding)
