"""Labels of texts: rows of a head by number, or by the names of its classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from lit_merge.data.class_names import match, pair
from lit_merge.errors import MergeError


@dataclass(frozen=True)
class RawLabels:
    """A column of labels, as it stands there.

    Attributes:
        location: the table.
        values: of every row.
        names: names of the classes, where the table itself knows them.
    """

    location: str
    values: Sequence[Any]
    names: list[str] | None = None

    def of(self, rows: Sequence[int], task: str, names: Sequence[str] | None) -> Int64[Tensor, " N"]:
        """Labels as rows of the task's head.

        Args:
            rows: of the table, whose labels are wanted.
            task: for messages.
            names: of the head's rows.

        Raises:
            MergeError: a label that is missing, below 0, or no name of a class.
        """
        values = [self.values[row] for row in rows]
        for row, value in zip(rows, values, strict=True):
            if value is None or value == "":
                raise MergeError(f"{self.location}: row {row} has no label", task=task)
        # Classes may be called by digits, in an order of their own.
        named = names is not None and all(isinstance(value, str) and value in names for value in values)
        if all(map(_is_number, values)) and not named:
            numbers = torch.tensor([self._number(row, task) for row in rows])
            # Numbers count the table's own classes, which may stand in another order than the head's.
            order = None if names is None or self.names is None else pair(task, self.names, names)
            return numbers if order is None or numbers.max() >= len(order) else torch.tensor(order)[numbers]
        there = list(dict.fromkeys(map(str, values)))
        places = {there[i]: row for i, row in match(there, names or ()).items()}
        for row, value in zip(rows, values, strict=True):
            if str(value) not in places:
                raise MergeError(
                    f"{self.location}: row {row} has the label {value!r}, which is no class of task {task}: "
                    f"{', '.join(names or ())}",
                    task=task,
                )
        return torch.tensor([places[str(value)] for value in values])

    def _number(self, row: int, task: str) -> int:
        if (label := int(self.values[row])) < 0:
            raise MergeError(
                f"{self.location}: row {row} has the label {label}, as data sets have whose labels are kept secret: "
                "take a split with labels",
                task=task,
            )
        return label


def _is_number(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.strip().removeprefix("-").isdecimal())


def names_in(labels: Sequence[RawLabels]) -> list[str] | None:
    """Names of a task's classes from its labels: the table's own, or those that occur, sorted; None for numbers."""
    for one in labels:
        if one.names is not None:
            return one.names
    if all(_is_number(value) for one in labels for value in one.values if value not in (None, "")):
        return None
    return sorted({str(value) for one in labels for value in one.values if value not in (None, "")})
