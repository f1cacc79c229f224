"""The weights of a bank that is made of another with a task more or less."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from lit_merge.bank.learnt import DIRECTIONS
from lit_merge.bank.low_rank import Delta, LowRank, rank_of
from lit_merge.bank.task_bank import TaskBank
from lit_merge.merge.growth.rows import all_dense, changed
from lit_merge.methods import CART, MergeMethod, TSVCompress

# What is said of CART's origin, here and in the recipe of a bank.
EXACT, APPROXIMATE = "origin exact", "origin approximate"


@dataclass(frozen=True)
class Change:
    """What became of a bank.

    Attributes:
        bank: the new one.
        cut: Frobenius norm of what the deltas of the tasks that were there lost when they were cut to their ranks
            again, relative to those deltas; 0 where none had to be.
        note: in words, what is exact and what is not.
    """

    bank: TaskBank
    cut: float
    note: str


def rank_for(method: MergeMethod, shape: Sequence[int], tasks: int) -> int:
    """Of a matrix in which the experts did not differ so far."""
    ratio = getattr(method, "rank_ratio", None)
    if ratio is None:
        return max(1, min(shape) // tasks) if isinstance(method, TSVCompress) else min(shape)
    return rank_of(ratio, *shape)


class Recut:
    """Deltas that move with the origin and are cut to their rank again."""

    def __init__(self) -> None:
        self.lost = self.whole = 0.0

    def __call__(
        self,
        delta: Delta | None,
        shifts: Float[Tensor, "T ..."],
        new: Tensor | None,
        rank: int | None,
        dtype: torch.dtype,
    ) -> Delta:
        """Every delta plus its shift, and the new task's after them; low-rank where there is a rank."""
        moved = shifts if delta is None else all_dense(delta) + shifts
        moved = moved if new is None else torch.cat([moved, new[None]])
        if rank is None:
            return moved.to(dtype)
        made = LowRank.from_dense(moved, min(rank, *moved.shape[1:]))
        apart = (moved - made.to_dense())[: len(shifts)]
        self.lost += apart.double().square().sum().item()
        self.whole += moved[: len(shifts)].double().square().sum().item()
        return made.to(dtype)

    @property
    def share(self) -> float:
        return (self.lost / self.whole) ** 0.5 if self.whole else 0.0


class GrownWeights:
    """Origins and deltas of a bank that is made of another."""

    def __init__(self, bank: TaskBank) -> None:
        self.bank = bank
        self.origin: dict[str, Tensor] = {}
        self.deltas: dict[str, Delta] = {}

    def keep(self, name: str, origin: Tensor, delta: Delta | None) -> None:
        self.origin[name] = origin
        if delta is not None:
            self.deltas[name] = delta

    def done(
        self,
        method: MergeMethod,
        tasks: Sequence[str],
        what: str,
        recut: Recut,
        grown: Mapping[str, Any] | None = None,
        removed: int | None = None,
        known: bool = True,
    ) -> Change:
        """The bank of these weights, and what is to be said of it.

        Args:
            method: of the bank.
            tasks: of the new one.
            what: became of it.
            recut: what was cut.
            grown: of a task that was added, task → what the recipe says of its file.
            removed: the place of a task that went.
            known: whether the expert that went was at hand.
        """
        rows = self._rows(len(tasks), method, grown is not None, removed)
        learnt = {key: self._learnt(key, value, grown is not None, removed) for key, value in self.bank.learnt.items()}
        recipe, before = dict(self.bank.recipe), cast(Any, self.bank.recipe)
        note = "exact, at the ranks that the bank has"
        if isinstance(method, CART):
            # What an earlier change or a limited size took from the origin does not come back.
            taken = "kept" in before or any(APPROXIMATE in change for change in before.get("changes", []))
            note = f"{EXACT if known and not taken else APPROXIMATE}, the other deltas recentred: this cuts off "
            note += f"{100 * recut.share:.2g} % of their norm"
        inputs = {task: file for task, file in (before.get("inputs", {}) | (grown or {})).items() if task in tasks}
        recipe |= {"inputs": inputs, "changes": [*before.get("changes", []), f"{what}: {note}"]}
        made = replace(
            self.bank,
            tasks=tuple(tasks),
            origin=self.origin,
            deltas=self.deltas,
            coefficients=rows,
            learnt=learnt,
            recipe=recipe,
        )
        return Change(made, recut.share, note)

    def _rows(self, count: int, method: MergeMethod, grown: bool, removed: int | None) -> Float[Tensor, "T L"]:
        """Coefficients of the weights that have deltas now; of a new task the mean of the others."""
        old, rows = self.bank.coefficients, []
        for name in self.deltas:
            if name in self.bank.deltas:
                column = changed(old[:, self.bank.column_of[name]], grown, removed)
            else:
                scale = old.double().mean().item() if old.numel() else method.start(name)
                column = old.new_full((count,), scale)
            rows.append(column)
        return torch.stack(rows, 1) if rows else old.new_zeros(count, 0)

    def _learnt(self, key: str, value: Tensor, grown: bool, removed: int | None) -> Tensor:
        kind, _, name = key.partition("/")
        if kind != DIRECTIONS:
            return value
        missing = self.deltas[name].rank - value.shape[-1]  # type: ignore[union-attr]
        return pad(changed(value, grown, removed), (0, max(0, missing)), value=1.0)
