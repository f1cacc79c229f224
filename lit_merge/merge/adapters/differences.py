"""What the weights of a bank add to a base: low-rank where they can be."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_merge.bank.learnt import of_weight
from lit_merge.bank.linalg import product_svd
from lit_merge.bank.low_rank import LowRank, rank_of
from lit_merge.bank.task_bank import TaskBank

# Of the smaller side: a difference of a higher rank is none of a low one.
LOW = 3
# Share of a difference that may be left out where all of it is kept: what float32 decomposes to.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Cut:
    """How much of a difference an adapter keeps: `rank_ratio` and `energy` as of `TaskBank.truncate`."""

    rank_ratio: float = 1.0
    energy: float = 1.0

    @property
    def exact(self) -> bool:
        return self.rank_ratio == self.energy == 1

    def of(self, difference: LowRank) -> LowRank:
        """One matrix with the directions that are kept, none of which is rounding."""
        _, m, n = difference.shape
        kept = difference.above(0.0)
        if self.rank_ratio < 1:
            kept = kept.truncate(rank_of(self.rank_ratio, m, n))
        return kept if self.energy == 1 or not kept.rank else kept.truncate(kept.rank_keeping(self.energy))


def change_of(bank: TaskBank, name: str) -> LowRank | Tensor | None:
    """What the bank's own coefficients add to the corrected origin of a weight: one matrix by its singular values, from
    the largest; or dense; None for nothing."""
    if name not in bank.deltas:
        return None
    delta, column = bank.deltas[name], bank.coefficients[:, bank.column_of[name]]
    if isinstance(delta, Tensor):
        kind = torch.promote_types(column.dtype, delta.dtype)
        found = torch.tensordot(column.to(kind), delta.to(kind), dims=1)
        return found if found.count_nonzero() else None
    factors = of_weight(bank.learnt, name).get("directions", column[:, None].expand_as(delta.S))
    values = delta.S * factors.to(delta.S)
    rows = [t for t in range(len(values)) if values[t].count_nonzero()]
    if not rows:
        return None
    u, v = (side.to(values.dtype) for side in (delta.U, delta.V))
    if len(rows) == 1 and bool((values[rows] >= 0).all()) and bool((values[rows].diff() <= 0).all()):
        return LowRank(u[rows], values[rows], v[rows])
    return summed([(u[t] * values[t], v[t].T) for t in rows])


def added(one: LowRank | Tensor | None, other: LowRank | Tensor | None) -> LowRank | Tensor | None:
    """The sum of two differences; low-rank where both are."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        return summed([(part.U[0] * part.S[0], part.V[0].T) for part in (one, other)])
    first, second = (part.to_dense()[0] if isinstance(part, LowRank) else part for part in (one, other))
    return first + second


def summed(products: list[tuple[Tensor, Tensor]]) -> LowRank:
    """Σ left·right by its singular values."""
    left, right = torch.cat([one for one, _ in products], 1), torch.cat([other for _, other in products])
    m, n = len(left), right.shape[1]
    if left.shape[1] > min(m, n):
        return LowRank.from_dense((left @ right)[None], min(m, n), exact=True)
    return LowRank(*(part[None] for part in product_svd(left, right)))


def low_rank_of(matrix: Tensor, cut: Cut, rounding: float = 0.0) -> LowRank | None:
    """A dense difference by its leading singular values, as many as are kept; None where that takes too many.

    Args:
        matrix: (m, n).
        cut: what is kept. Where all is, the rank has to be low.
        rounding: what the difference may be wrong by, in the Frobenius norm: directions below it are none.
    """
    m, n = matrix.shape
    most = min(m, n)
    limit = max(1, most // LOW) if cut.exact else most if cut.energy < 1 else rank_of(cut.rank_ratio, m, n)
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    found = LowRank.from_dense(wide[None], limit)
    found = found.above(rounding)
    if not cut.exact:
        return cut.of(found)
    left = float((wide - found.to_dense()[0]).norm())
    return found if left <= max(rounding, ROUNDING * float(wide.norm())) else None


def is_smaller(difference: LowRank) -> bool:
    """Whether factors take less than the matrix itself."""
    _, m, n = difference.shape
    return difference.rank * (m + n) < m * n


def relative(change: LowRank | Tensor, origin: Tensor) -> float:
    """‖change‖ / ‖origin‖ in the Frobenius norm."""
    size = float(change.S.norm() if isinstance(change, LowRank) else change.norm())
    whole = float(origin.float().norm())
    return size / whole if whole else float("inf")


def by_parts(change: LowRank | Tensor, parts: Sequence[str], transposed: bool) -> dict[str, LowRank | Tensor]:
    """A difference by the names that files have for the parts of its weight.

    Args:
        change: of the whole weight, (m, n).
        parts: names in the files of its parts, whose rows are one above the other.
        transposed: whether files have it the other way round.
    """
    if isinstance(change, Tensor):
        turned = change.mT if transposed else change
        return dict(zip(parts, turned.chunk(len(parts)), strict=True))
    u, v = (change.V, change.U) if transposed else (change.U, change.V)
    if len(parts) == 1:
        return dict.fromkeys(parts, LowRank(u, change.S, v))
    return {name: LowRank(rows, change.S, v) for name, rows in zip(parts, u.chunk(len(parts), 1), strict=True)}
