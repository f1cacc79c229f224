"""ESM: essential subspaces of what the task vectors change in the outputs (arXiv 2602.20208, 2606.19164)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.essential_subspaces import essential_subspaces, independent_directions
from lit_merge.bank.gram import of_one_size, shifted
from lit_merge.bank.layer_level import emphasis, layer_level, relative
from lit_merge.bank.linalg import partial_isometry, product_svd
from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import Scaling, shares
from lit_merge.methods.tsv import tsv_merge
from lit_merge.methods.with_moments import MomentsMethod

Preset = Literal["paper", "official"]
# In names of open_clip: what the authors' code treats by essential subspaces, and what it weighs by layer.
ESSENTIAL = re.compile(r"(in_proj_weight|in_proj\.weight|c_fc\.weight|c_proj\.weight)$")
WEIGHED = re.compile(ESSENTIAL.pattern + r"|out_proj\.weight$")
POWER = 0.15


def esm(
    task_vectors: Float[Tensor, "T m n"],
    second_moments: Iterable[Tensor | None],
    rank: int,
    preset: Preset = "paper",
    rounding: float = 0.0,
) -> LowRank:
    """Block t of P̃·Ã for every task, for one matrix: everything but the layer factor. In float64.

    A_t = P_tᵀ·ΔW_t, times (‖A_t‖_F / mean_i ‖A_i‖_F)²; side by side P = [P_1 … P_T] and A = [A_1; …; A_T], whose column
    j is multiplied by (‖A[:, j]‖ / mean_i ‖A[:, i]‖)²; P̃ and Ã are the polar factors of P and A, without directions
    that no ΔW_t has.

    Args:
        task_vectors: ΔW_t; of which singular values up to `rounding` are rounding.
        second_moments: C_t (n, n) of the inputs, to any factor; None for C = I. One is in memory at a time.
        rank: k of every task, T·k ≤ m; a task with fewer essential directions keeps those, one without any is left out.
    """
    T, m, n = task_vectors.shape
    delta, rounding, exponent = of_one_size(task_vectors.double(), rounding)
    P, l = essential_subspaces(delta, second_moments, rank, rounding)
    A = P.mT @ delta
    outputs, inputs = independent_directions(P, A, l, rounding, task_vectors.dtype)
    A = A * emphasis(torch.linalg.matrix_norm(A if preset == "paper" else delta))[:, None, None]
    if preset == "official":
        weights = relative(l.pow(POWER), l.pow(POWER).sum(1, keepdim=True) / rank)
        P, A = P * weights[:, None, :], A * weights[:, :, None]
    P, A = P.transpose(0, 1).flatten(1), A.flatten(0, 1)
    A = A * emphasis(A.norm(dim=0))
    (P, s_P), (A, s_A) = partial_isometry(P, rank=outputs), partial_isometry(A, rank=inputs)
    if preset == "official":
        # Means over all T·k directions, with those that are lacking.
        A = shifted(A * (2 * s_P.sum() / (T * rank) * s_A.sum() / min(T * rank, n)), exponent)
    # Rounding has left something where a task lacks directions: all of it, where it changed nothing.
    A = A.view(T, -1, n) * (l > 0)[:, :, None]
    return LowRank(*(one.to(task_vectors.dtype) for one in product_svd(P.view(m, T, -1).transpose(0, 1), A)))


@dataclass(frozen=True)
class ESM(MomentsMethod):
    """W = θ₀ + scaling · Σ_t β_l · P̃_t·Ã_t for matrices; the rest is θ₀ + scaling · mean_t τ_t.
    Use it with the pretrained checkpoint and a few unlabelled inputs of every task; choose its scale by data.

    Args:
        preset: `paper`, the equations as published (P̃·Ã has norm 1: `scaling` brings it to size); `official`, what the
            authors' code does to open_clip's image towers: essential subspaces, and `scaling`, for in_proj, c_fc and
            c_proj only, directions weighted, scaled by 2·m_P·m_A (mean singular values of P and A); TSV-M elsewhere.
        rank_ratio: k = max(1, ⌊rank_ratio·m⌋) of m outputs, at most 1/T; ⌊m/T⌋, the authors' choice, by default.
        scaling: α; or a rule that finds it without labels. The authors search it on validation images.
        matrices: see `select_matrices`. One with fewer outputs, or directions, than there are tasks goes with the rest.
        samples, moments: see `MomentsMethod`. Matrices without moments are taken with C = I, and a warning says so.
    """

    preset: Preset = "paper"
    rank_ratio: float | None = None
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    without_moments = "their essential subspaces are taken with C = I, as if all inputs were alike"
    rest = shares

    def wants_moments(self, name: str) -> bool:
        return self.preset == "paper" or bool(ESSENTIAL.search(name))

    def start(self, name: str) -> float:
        return super().start(name) if self.preset == "paper" or ESSENTIAL.search(name) else 1.0

    def check(self, experts: Experts) -> None:
        if not any(self.wants_moments(name) for name in self.selected(experts.shapes, len(experts.tasks))):
            raise MergeError("preset=official is for in_proj, c_fc and c_proj, and there are none: take preset=paper")

    def has_room(self, shape: tuple[int, ...], tasks: int) -> bool:
        # In the official preset either side of a matrix may count, as of TSV-M.
        return tasks <= (shape[0] if self.preset == "paper" else min(shape))

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        (m, n), vectors = weight.base.shape, weight.task_vectors
        if self.wants_moments(weight.name):
            rank, moments = weight.rank_per_task(m, self.rank_ratio), self.second_moments(weight)
            return weight.base, esm(vectors, moments, rank, self.preset, weight.rounding)
        rank = weight.rank_per_task(min(m, n), self.rank_ratio)
        return weight.base, tsv_merge(vectors, rank, weight.decomposer("vectors"), weight.rounding)

    def finish(self, deltas: dict[str, Delta]) -> dict[str, Delta]:
        return layer_level(deltas, {name for name in deltas if self.preset == "paper" or WEIGHED.search(name)})
