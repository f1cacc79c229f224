"""Iso-C: one merged task vector with a flat spectrum (arXiv 2502.04959)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lit_merge.bank.decomposer import FACTORS, Decomposer
from lit_merge.bank.low_rank import Delta
from lit_merge.experts.matrices import Matrices
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling, mean_vector


def iso_c(total: Float[Tensor, "m n"], by: Decomposer = FACTORS, rounding: float = 0.0) -> Delta:
    """The polar factor of M = Σ_t τ_t times the mean of its singular values, which flattens the spectrum: one delta
    (1, m, n) for all tasks. Singular values of M up to `rounding` are none.

    The published formula fills up, by directions of no meaning, where M lacks rank; here they stay out, of the delta
    and of the mean, so that the sum of the singular values stays what it was.
    """
    polar, mean = by.polar(total, rounding)
    return polar * mean


def of_sum(rounding: float, tasks: int) -> float:
    """Rounding in the sum of so many task vectors: errors that know nothing of each other."""
    return rounding * tasks**0.5


@dataclass(frozen=True)
class IsoC(MergeMethod):
    """W = θ₀ + scaling · iso(Σ_t τ_t); the rest is θ₀ + scaling · mean_t τ_t.

    Use it for tasks that have much in common, with the pretrained checkpoint and without data. With many different
    tasks `IsoCTS` keeps more of each.

    Args:
        scaling: α; or a rule that finds it without labels.
        matrices: see `select_matrices`; the authors decompose every 2-D weight but the text projection.
    """

    scaling: Scaling = 1.0
    matrices: Matrices = "all"
    rest = mean_vector

    def matrix(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        rounding = of_sum(weight.rounding, len(weight.experts))
        return weight.base, iso_c(weight.total, weight.decomposer("sum", sums=True), rounding)
