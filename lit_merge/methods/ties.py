"""TIES: task vectors trimmed, their signs elected, and merged where they agree (arXiv 2306.01708)."""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from lit_merge.bank.kth_largest import kth_largest
from lit_merge.bank.low_rank import Delta
from lit_merge.errors import MergeError
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import PART, Weight
from lit_merge.methods.base import MergeMethod, Scaling


def trim(task_vectors: Float[Tensor, "T ..."], thresholds: Float[Tensor, " T"]) -> Float[Tensor, "T ..."]:
    """τ_t with every entry below its task's threshold set to 0."""
    # |x| ≥ threshold where |x| is above the number before it.
    rounded = thresholds.to(task_vectors.dtype)
    below = torch.nextafter(rounded, rounded.new_tensor(-torch.inf))
    before = torch.where(rounded.double() >= thresholds.double(), below, rounded)
    return torch.stack([hardshrink(one, limit.item()) for one, limit in zip(task_vectors, before, strict=True)])


def elect(trimmed: Float[Tensor, "T ..."]) -> Float[Tensor, "..."]:
    """The sign of the sum of all tasks, 0 where they cancel."""
    # In float64, so that tasks which cancel do so in every order.
    return trimmed.sum(0, dtype=torch.float64).sign()


def ties(
    trimmed: Float[Tensor, "T ..."], majority: float = 1.0, merge: Literal["mean", "sum"] = "mean"
) -> Float[Tensor, "T ..."]:
    """The entries of trimmed task vectors that have the elected sign, divided by how many those are; others are 0.

    Where the sum is 0 that is the sign of `majority`, +1 or −1. `sum` does not divide.

    >>> ties(torch.tensor([[2.0, 1.0], [4.0, -3.0], [-1.0, 0.0]]))
    tensor([[ 1.,  0.],
            [ 2., -3.],
            [ 0.,  0.]])
    """
    sign = elect(trimmed).to(trimmed.dtype)
    sign = torch.where(sign == 0, majority, sign)
    # Adding 0 makes −0 a 0.
    selected = (trimmed * sign).relu_().mul_(sign).add_(0.0)
    if merge == "mean":
        selected /= selected.sign().sum(0).abs_().clamp_min_(1)
    return selected


@dataclass(frozen=True)
class TIES(MergeMethod):
    """W = θ₀ + scaling · Σ_t τ̂_t: of every τ_t the largest entries, where they have the sign that the sum of all has,
    divided by the number of tasks that agree there.

    Use it where signs interfere in task arithmetic: every entry is treated by itself, so models of any kind merge.

    A task keeps the entries at least as large as the ⌊keep·P⌋-th largest of its whole vector of P floating-point
    entries: more than that many where several equal it, whatever their order. Where what is left of all tasks sums to 0
    they take the sign that most entries of the model have elected (the negative one where those are as many, as in the
    released code). Reads the experts four times, six where weights are in float64.

    Args:
        keep: share of the entries that a task keeps, in (0, 1].
        merge: `mean` divides by the number of agreeing tasks; `sum` does not (AdaMerging's, with scaling 0.3).
        scaling: λ of every task; or a rule that finds it without labels.
    """

    keep: float = 0.2
    merge: Literal["mean", "sum"] = "mean"
    scaling: Scaling = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise MergeError(f"keep={self.keep} is outside (0, 1]: 0.2 keeps a fifth of the entries")
        if self.merge not in ("mean", "sum"):
            raise MergeError(f"merge={self.merge!r}: expected mean or sum")

    def prepare(self, weights: WeightStream) -> MergeMethod:
        """Every task's threshold over its whole vector, then the majority of the elected signs."""
        experts = weights.experts
        learnt = experts.dtypes.keys() - experts.statistics
        floating = {name: dtype for name, dtype in experts.widest.items() if dtype.is_floating_point and name in learnt}
        size = sum(prod(experts.shapes[name]) for name in floating)
        # Not the binary number: 0.29 of 100 entries are 29, though 0.29·100 is 28.999….
        k = int(Fraction(str(self.keep)) * size)
        if not k:
            raise MergeError(f"keep={self.keep} keeps none of {size} entries")
        dtype = torch.float64 if torch.float64 in floating.values() else torch.float32
        read = partial(weights.vector_parts, doing="looking for thresholds")
        # Longer parts: a table of 2¹⁶ numbers is added up for each.
        thresholds = kth_largest(partial(read, 2 * PART), k, len(experts.tasks), dtype)
        signs = sum(elect(trim(part, thresholds)).sum().item() for part in read(PART))
        majority = 1.0 if signs > 0 else -1.0
        return _Trimming(self.keep, self.merge, self.scaling, thresholds=thresholds, majority=majority)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        raise MergeError("TIES looks at all weights first: take what prepare answers, as build_bank does")


@dataclass(frozen=True, eq=False)
class _Trimming(TIES):
    """TIES of certain experts: it knows their thresholds and the majority of their signs."""

    thresholds: Tensor = field(kw_only=True)
    majority: float = field(kw_only=True)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        return weight.base, weight.merge_entries(self._trimmed)

    def _trimmed(self, task_vectors: Float[Tensor, "T _"]) -> Float[Tensor, "T _"]:
        return ties(trim(task_vectors, self.thresholds), self.majority, self.merge)
