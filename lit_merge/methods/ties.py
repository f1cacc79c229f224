"""TIES: task vectors trimmed, their signs elected, and merged where they agree (arXiv 2306.01708)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import prod
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from lit_merge.bank.low_rank import Delta
from lit_merge.console import track_weights
from lit_merge.errors import MergeError
from lit_merge.experts.stream import WeightStream
from lit_merge.experts.weight import Weight
from lit_merge.methods.base import MergeMethod, Scaling

_DIGIT = 16
"""Bits of a floating-point number that one pass over the weights settles."""
_PART = 2**17
"""Entries of a task that are worked on at once: so few stay in the processor's own memory from one step to the next."""


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

    Args:
        trimmed: what `trim` leaves of one weight.
        majority: +1 or −1, the sign that is elected where the sum is 0.
        merge: `sum` does not divide.

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


def kth_largest(
    read: Callable[[], Iterable[Float[Tensor, "T _"]]], k: int, tasks: int, dtype: torch.dtype
) -> Float[Tensor, " T"]:
    """The k-th largest |entry| of T vectors that come in parts, exactly, and never whole in memory.

    Floating-point numbers that are not negative are ordered like the integers of the same bits. Every pass counts how
    often each value of the next 16 bits occurs among the numbers that share the leading bits found so far: two passes
    for float32, four for float64.

    Args:
        read: the parts of all vectors, once more at every call.
        k: from 1 to the length of the vectors.
        tasks: T.
        dtype: float32 or float64, at least as precise as the parts.
    """
    integer, bits = (torch.int32, 32) if dtype == torch.float32 else (torch.int64, 64)
    prefix, left = torch.zeros(tasks, dtype=torch.int64), torch.full((tasks, 1), k)
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(tasks, 2**_DIGIT, dtype=torch.int64)
        for part in read():
            for t, row in enumerate(part.to(dtype).abs().view(integer)):
                if shift < bits - _DIGIT:
                    row = row[(row >> (shift + _DIGIT)) == prefix[t]]
                counts[t] += torch.bincount((row >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT)
        above = counts.flip(1).cumsum(1)  # how many have the j-th digit from the top, or a higher one
        place = torch.searchsorted(above, left)
        digit = 2**_DIGIT - 1 - place
        left = left - above.gather(1, place) + counts.gather(1, digit)
        prefix = (prefix << _DIGIT) | digit.squeeze(1)
    return prefix.to(integer).view(dtype)


@dataclass(frozen=True)
class TIES(MergeMethod):
    """W = θ₀ + scaling · Σ_t τ̂_t: of every τ_t the largest entries, where they have the sign that the sum of all has,
    divided by the number of tasks that agree there.

    A task keeps the entries at least as large as the ⌊keep·P⌋-th largest of its whole vector of P floating-point
    entries: more than that many where several equal it, whatever their order. Where what is left of all tasks sums to 0
    they take the sign that most entries of the model have elected (the negative one where those are as many, as in the
    released code). Reads the experts four times, six where weights are in float64.

    Args:
        keep: share of the entries that a task keeps, in (0, 1].
        merge: `mean` divides by the number of agreeing tasks; `sum` does not (AdaMerging's, with scaling 0.3).
        scaling: λ of every task; or a rule that finds it without labels.

    Raises:
        MergeError: `keep` outside (0, 1], or so small that nothing is kept; another `merge`.
    """

    keep: float = 0.2
    merge: Literal["mean", "sum"] = "mean"
    scaling: Scaling = 1.0
    needs_base: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

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
        if k == 0:
            raise MergeError(f"keep={self.keep} keeps none of {size} entries")
        dtype = torch.float64 if torch.float64 in floating.values() else torch.float32
        # Longer parts: a table of 2¹⁶ numbers is added up for each.
        thresholds = kth_largest(lambda: _task_vectors(weights, 2 * _PART), k, len(experts.tasks), dtype)
        signs = sum(elect(trim(part, thresholds)).sum().item() for part in _task_vectors(weights, _PART))
        majority = 1.0 if signs > 0 else -1.0
        return _Trimming(self.keep, self.merge, self.scaling, thresholds=thresholds, majority=majority)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        raise MergeError("TIES looks at all weights first: take what prepare answers, as build_bank does")


def _task_vectors(weights: WeightStream, length: int) -> Iterator[Float[Tensor, "T _"]]:
    """τ_t of all floating-point weights, in parts of at most this length."""
    experts = weights.experts
    pieces = [piece for name in experts.shapes for piece in weights.blocks(name)]
    for weight in track_weights(weights.stream(pieces), experts.sizes_of(pieces), "looking for thresholds"):
        if weight.experts.is_floating_point():
            yield from _parts(weight, length)


def _parts(weight: Weight, length: int) -> Iterator[Float[Tensor, "T _"]]:
    if weight.base is None:
        raise MergeError(f"task vectors of {weight.name} need the pretrained checkpoint: pass base=…")
    if weight.vectors is not None:
        yield from weight.vectors.reshape(len(weight.vectors), -1).split(length, 1)
        return
    experts = weight.experts.reshape(len(weight.experts), -1).split(length, 1)
    for part, base in zip(experts, weight.base.flatten().split(length), strict=True):
        yield part - base


@dataclass(frozen=True, eq=False)
class _Trimming(TIES):
    """TIES of certain experts: it knows their thresholds and the majority of their signs."""

    thresholds: Tensor = field(kw_only=True)
    majority: float = field(kw_only=True)

    def rest(self, weight: Weight) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        merged = torch.empty_like(weight.experts)
        for part, own in zip(merged.view(len(merged), -1).split(_PART, 1), self._merge(weight), strict=True):
            part.copy_(own)
        return weight.base, merged

    def product(self, weight: Weight, selected: bool) -> tuple[Tensor, Delta | None]:
        assert weight.base is not None
        return weight.base, torch.cat([own.sum(0) for own in self._merge(weight)]).view(1, *weight.base.shape)

    def _merge(self, weight: Weight) -> Iterator[Float[Tensor, "T _"]]:
        for vectors in _parts(weight, _PART):
            yield ties(trim(vectors, self.thresholds), self.majority, self.merge)
