"""Iso-C and Iso-CTS: one merged task vector with a flat spectrum (arXiv 2502.04959)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.linalg import CLEAR, numerical_rank, polar_factor, rounding_share, spectral_norms
from lit_merge.bank.low_rank import Delta, LowRank
from lit_merge.errors import MergeError
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Decompose, Weight
from lit_merge.methods.base import MergeMethod, Scaling


def iso_c(task_vectors: Float[Tensor, "T m n"], svd: Decompose = LowRank.from_dense, rounding: float = 0.0) -> LowRank:
    """The SVD of Σ_t τ_t with every singular value set to their mean: one delta, shared by all tasks.

    Of directions that Σ_t τ_t has. The published formula fills up, by directions of no meaning, where it lacks rank;
    here they stay out, of the delta and of the mean, so that the sum of the singular values stays what it was.

    Args:
        task_vectors: τ_t.
        svd: answers the leading directions.
        rounding: singular values of τ_t that are not above it are rounding.
    """
    total = svd(task_vectors.sum(0, keepdim=True), min(task_vectors.shape[1:]))
    rank = int(numerical_rank(total.S, total.shape, of_sum(rounding, len(task_vectors))))
    total = total.truncate(max(1, rank))
    mean = total.S.mean(-1, keepdim=True) if rank else torch.zeros_like(total.S)
    return LowRank(total.U, mean.expand_as(total.S).contiguous(), total.V)


def of_sum(rounding: float, tasks: int) -> float:
    """Of the sum of so many task vectors: errors that know nothing of each other."""
    return rounding * tasks**0.5


def flat(total: Float[Tensor, "m n"], rounding: float = 0.0) -> Float[Tensor, "m n"]:
    """The product of what `iso_c` makes of M = Σ_t τ_t, whose singular values up to `rounding` are rounding: its polar
    factor times ⟨polar, M⟩/rank, which is the mean of its singular values."""
    factor = polar_factor(total, rounding)
    # Of a partial isometry, the squared norm is the rank.
    rank = factor.square().sum().round().clamp_min(1)
    return factor * (torch.dot(factor.flatten(), total.flatten()) / rank)


def directions_of_tasks(tasks: int, r: int, common_ratio: float) -> int:
    """q = (r − ⌊common_ratio·r⌋)/T, rounded half to even, of which T must fit into r.

    >>> directions_of_tasks(8, 768, 0.8), directions_of_tasks(8, 12, 0.8)
    (19, 0)
    """
    # The small number for the same reason as in `rank_of`; Python's round is half to even.
    return min(round((r - int(common_ratio * r + 1e-9)) / tasks), r // tasks)


def iso_cts(
    task_vectors: Float[Tensor, "T m n"],
    common_ratio: float = 0.8,
    svd: Decompose = LowRank.from_dense,
    rounding: float = 0.0,
) -> LowRank:
    """c = r − T·q leading directions of Σ_t τ_t and q of what they leave of every τ_t, side by side; both sides are
    replaced by their polar factors, and every singular value by the mean of those kept: one delta for all tasks.

    With q = 0 this is `iso_c`, whose arguments these are, and from whose formula it differs by the same: directions
    that no task vector has stay out.

    >>> iso_cts(torch.randn(2, 10, 12)).shape
    (1, 10, 12)
    """
    tasks, *shape = task_vectors.shape
    q = directions_of_tasks(tasks, min(shape), common_ratio)
    if q == 0:
        return iso_c(task_vectors, svd, rounding)
    common = svd(task_vectors.sum(0, keepdim=True), min(shape) - tasks * q)
    common = common.truncate(int(numerical_rank(common.S, shape, CLEAR * of_sum(rounding, tasks))))
    own = LowRank.from_dense(task_vectors - common.U @ (common.U.mT @ task_vectors), q)
    # What is left of a task vector is rounding by the measure of the whole one.
    least = (rounding_share(shape, own.S.dtype) * spectral_norms(task_vectors)).clamp_min(CLEAR * rounding)
    kept = torch.gt(own.S, least[:, None])
    u, s, v = (
        torch.cat([shared.squeeze(0), *(one[..., there] for one, there in zip(each, kept, strict=True))], -1)
        for shared, each in ((common.U, own.U), (common.S, own.S), (common.V, own.V))
    )
    if not len(s):
        return iso_c(task_vectors, svd, rounding)
    # As in `tsv_merge`.
    apart = (of_sum(rounding, tasks) / s.min()).item()
    return LowRank(polar_factor(u, apart)[None], s.mean().expand(1, len(s)).contiguous(), polar_factor(v, apart)[None])


@dataclass(frozen=True)
class IsoC(MergeMethod):
    """W = θ₀ + scaling · iso(Σ_t τ_t); the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.
    """

    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, iso_c(weight.task_vectors, weight.svd("sum"), weight.rounding)

    def product(self, weight: Weight, selected: bool) -> tuple[Tensor, Delta | None]:
        if not selected or weight.decompositions is not None or weight.vectors is not None:
            return super().product(weight, selected)
        assert weight.base is not None
        total, vector = torch.zeros_like(weight.base), torch.empty_like(weight.base)
        for expert in weight.experts:
            total += torch.sub(expert, weight.base, out=vector)
        return weight.base, flat(total, of_sum(weight.rounding, len(weight.experts)))[None]

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)


@dataclass(frozen=True)
class IsoCTS(MergeMethod):
    """W = θ₀ + scaling · iso(directions of Σ_t τ_t, and of every τ_t beside); the rest is θ₀ + scaling · mean_t τ_t.

    Args:
        common_ratio: share of the directions that come from Σ_t τ_t, in [0, 1]; the others are divided among the tasks
            as evenly as they can be. A matrix with too few for one each is merged as by `IsoC`.
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.

    Raises:
        MergeError: `common_ratio` outside [0, 1].
    """

    common_ratio: float = 0.8
    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.common_ratio <= 1:
            raise MergeError(f"common_ratio={self.common_ratio} is outside [0, 1]: 0.8 in the paper")

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, iso_cts(weight.task_vectors, self.common_ratio, weight.svd("sum"), weight.rounding)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, weight.task_vectors.mean(0, keepdim=True)
