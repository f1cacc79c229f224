"""Deltas of a weight with a task more or less: the first dimension of what a bank holds is that of the tasks."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.low_rank import Delta, LowRank


def changed(rows: Float[Tensor, "T ..."], grown: bool, removed: int | None) -> Float[Tensor, "_ ..."]:
    if removed is not None:
        return without_row_of(rows, removed)
    if not grown:
        return rows
    # Equal numbers stay what they are: their mean may be another.
    same = torch.equal(rows, rows[:1].expand_as(rows))
    return torch.cat([rows, rows[:1] if same else rows.mean(0, keepdim=True)])


def without_row_of(rows: Float[Tensor, "T ..."], place: int) -> Float[Tensor, "_ ..."]:
    return torch.cat([rows[:place], rows[place + 1 :]])


def of_parts(delta: Delta, change: Callable[[Tensor], Tensor]) -> Delta:
    if isinstance(delta, LowRank):
        return LowRank(change(delta.U), change(delta.S), change(delta.V))
    return change(delta)


def without_row(delta: Delta, place: int) -> Delta:
    return of_parts(delta, lambda rows: without_row_of(rows, place))


def with_row(delta: Delta, row: Delta | None) -> Delta:
    """With a delta more; None for zeros."""
    if row is None:
        return of_parts(delta, lambda rows: torch.cat([rows, torch.zeros_like(rows[:1])]))
    if isinstance(delta, LowRank) and isinstance(row, LowRank):
        rank = max(delta.rank, row.rank)
        one, other = padded(delta, rank), padded(row, rank)
        pairs = ((one.U, other.U), (one.S, other.S), (one.V, other.V))
        return LowRank(*(torch.cat([a, b.to(a.dtype)]) for a, b in pairs))
    assert isinstance(delta, Tensor)
    assert isinstance(row, Tensor)
    return torch.cat([delta, row.to(delta.dtype)])


def padded(delta: LowRank, rank: int) -> LowRank:
    missing = (0, rank - delta.rank)
    return LowRank(pad(delta.U, missing), pad(delta.S, missing), pad(delta.V, missing))


def zeros_like(delta: Delta, count: int) -> Delta:
    """As many deltas of zeros, of the rank and dtype of this one."""
    return of_parts(delta, lambda rows: rows.new_zeros(count, *rows.shape[1:]))


def dense_of(delta: Delta | None, place: int) -> Tensor:
    assert delta is not None
    return all_dense(of_parts(delta, lambda rows: rows[place : place + 1]))[0]


def all_dense(delta: Delta) -> Float[Tensor, "T ..."]:
    return delta.to_dense() if isinstance(delta, LowRank) else wide(delta)


def stored_dtype(delta: Delta) -> torch.dtype:
    return delta.U.dtype if isinstance(delta, LowRank) else delta.dtype


def wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
