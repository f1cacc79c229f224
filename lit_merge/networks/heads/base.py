"""Frozen classification heads, one per task: what all kinds share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_merge.data.class_names import MIXED, pair
from lit_merge.errors import MergeError


class Heads(nn.Module, ABC):
    """A frozen classifier for every task. Its parameters are all that it computes with.

    There is one more head, `mixed`: the classes of all tasks, one head after the other.

    Attributes:
        where: the file that they were read from, for messages; empty where there is none.
        names: task → names of the rows of its head, where they are known.
    """

    where = ""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        if MIXED in tasks:
            raise MergeError(f"a task called {MIXED!r}: that is the name of all heads together; rename it", task=MIXED)
        self.tasks = self.mixed = tuple(tasks)
        self.names: dict[str, tuple[str, ...]] = {}

    @abstractmethod
    def count(self, task: str) -> int:
        """Number of classes of a task that has a head."""

    @abstractmethod
    def one(self, features: Any, task: str) -> Float[Tensor, "B C"]:
        """Logits of a task that has a head, in float32 or wider whatever the autocast."""

    def values(self) -> list[Tensor]:
        """All that logits depend on except the features. Heads with other values are other heads."""
        return list(self.parameters())

    def mix(self, tasks: Sequence[str]) -> None:
        """Says which heads make up `mixed`, all by default: those of the tasks that are merged.

        Raises:
            MergeError: a task without a head.
        """
        for task in tasks:
            self.require(task)
        self.mixed = tuple(tasks)

    def first_row(self, head: str, task: str) -> int:
        """Where the classes of a task begin in a head: at 0 in its own, after those of other tasks in `mixed`.

        Raises:
            MergeError: a task that is not mixed.
        """
        if head != MIXED:
            return 0
        if task not in self.mixed:
            raise MergeError(f"task {task} is not among those that are mixed: {', '.join(self.mixed)}", task=task)
        return sum(self.classes(before) for before in self.mixed[: self.mixed.index(task)])

    def name_rows(self, names: Mapping[str, Sequence[str]], where: str) -> None:
        """Says what the rows are called; `where` says it in messages.

        Raises:
            MergeError: more or fewer names than rows.
        """
        for task, given in names.items():
            if len(given) != (classes := self.classes(task)):
                raise MergeError(
                    f"{where} names {len(given)} classes of task {task}, its head has {classes}", task=task
                )
            self.names[task] = tuple(given)

    def rows_of(self, task: str, names: Sequence[str] | None, strict: bool = True) -> list[int] | None:
        """Which row of a task's head each class of the data is, by name; None where that is not known: go by place.

        Args:
            task: whose head.
            names: of the data's classes, where it knows them.
            strict: whether other names are a mistake.

        Raises:
            MergeError: a class that only one of them has.
        """
        known = self.names.get(task)
        return None if names is None or known is None else pair(task, names, known, strict)

    def classes(self, task: str) -> int:
        """Number of classes of a head."""
        if task == MIXED:
            return sum(self.classes(one) for one in self.mixed)
        self.require(task)
        return self.count(task)

    def forward(self, features: Any, task: str) -> Float[Tensor, "B C"]:
        """Logits of one head.

        Args:
            features: what the network's encoder answers: (B, d), but for heads that take whole sequences.
            task: name of the head.

        Raises:
            MergeError: no such head, or one of another width than the features.
        """
        if task == MIXED:
            return torch.cat([self(features, one) for one in self.mixed], dim=-1)
        self.require(task)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.one(features, task)

    def alone(self, task: str) -> nn.Module:
        """What makes logits of features, as a module that an exporter can trace.

        Raises:
            MergeError: no such head.
        """
        self.require(task)
        return _One(self, task)

    def require(self, task: str) -> None:
        """Raises MergeError where a task has no head."""
        if task not in self.tasks:
            there = f"; there are heads for {', '.join(self.tasks)}" if self.tasks else ""
            raise MergeError(f"no head for task {task!r}{there}", task=task)


class _One(nn.Module):
    def __init__(self, heads: Heads, task: str) -> None:
        super().__init__()
        self.heads, self.task = heads, task

    def forward(self, features: Any) -> Float[Tensor, "B C"]:
        return self.heads.one(features, self.task)


def wide(features: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """All in one precision, float32 or wider: entropies of confident predictions live in the last digits."""
    dtype = torch.promote_types(features.dtype, weights[0].dtype)
    return tuple(one.to(dtype) for one in (features, *weights))


def check_width(rows: Float[Tensor, "C d"], features: Float[Tensor, "B e"], task: str, where: str = "") -> None:
    """Raises MergeError where a head takes other features than these."""
    if rows.shape[1] != features.shape[1]:
        raise MergeError(
            f"{where}{': ' if where else ''}head {task} is {rows.shape[1]} wide, the encoder's features "
            f"{features.shape[1]}: give heads that were made for this encoder (--model.network.heads)",
            task=task,
        )
