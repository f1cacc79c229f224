"""Frozen classification heads, one per task: what all kinds share, and those of CLIP."""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import Checkpoint, open_checkpoint
from lit_merge.data.class_names import MIXED, pair
from lit_merge.errors import MergeError, check_finite


class Heads(nn.Module, ABC):
    """A frozen classifier for every task. Its parameters are all that it computes with.

    Beside the heads of the tasks there is one called `mixed`: the classes of all of them, one head after the other.

    Attributes:
        where: the file that they are of, for messages; empty where they are of none.
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
        """All that logits depend on beside the features: what tells these heads from others."""
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

    def require(self, task: str) -> None:
        """Raises MergeError where a task has no head."""
        if task not in self.tasks:
            there = f"; there are heads for {', '.join(self.tasks)}" if self.tasks else ""
            raise MergeError(f"no head for task {task!r}{there}", task=task)


class CosineHeads(Heads):
    """Zero-shot classifiers as CLIP's: logits = scale · normalise(features) · Wᵀ.

    Args:
        weights: task → (C, d), one row per class, of norm 1.
        logit_scale: the factor on the cosines.

    Raises:
        MergeError: a task called `mixed`.
    """

    def __init__(self, weights: Mapping[str, Float[Tensor, "C d"]], logit_scale: float = 100.0) -> None:
        super().__init__(list(weights))
        check_finite({"logit_scale": logit_scale}, type(self).__name__)
        self.logit_scale = logit_scale
        # Parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.rows = nn.ParameterList(nn.Parameter(w.float(), requires_grad=False) for w in weights.values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CosineHeads":
        """From a file {task: (C, d)} of any format; metadata of safetensors may give `logit_scale` (else 100, CLIP's),
        and `class_names`: JSON, task → the names of its rows.

        Raises:
            MergeError: no such file, a tensor that is no matrix or not finite, a scale that is no positive number, more
                or fewer names than rows.
        """
        file = open_checkpoint(path)
        made = cls({task: read_rows(file, task, task) for task in file.shapes}, _scale(file))
        made.name_rows(read_names(file), file.label)
        return made

    def count(self, task: str) -> int:
        return len(self._row(task))

    def one(self, features: Float[Tensor, "B d"], task: str) -> Float[Tensor, "B C"]:
        rows = self._row(task)
        check_width(rows, features, task, self.where)
        features, rows = wide(features, rows)
        return self.logit_scale * F.normalize(features, dim=-1) @ rows.T

    def values(self) -> list[Tensor]:
        return [*super().values(), torch.tensor(self.logit_scale)]

    def classes(self, task: str) -> int:
        if task == MIXED and len({self._row(one).shape[1] for one in self.mixed}) > 1:
            raise MergeError("heads of several widths cannot be mixed: they are of several networks")
        return super().classes(task)

    def _row(self, task: str) -> Float[Tensor, "C d"]:
        return self.rows[self.tasks.index(task)]


def wide(features: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """All in one precision, float32 or wider: entropies of confident predictions live in the last digits."""
    dtype = torch.promote_types(features.dtype, weights[0].dtype)
    return tuple(one.to(dtype) for one in (features, *weights))


def read_rows(file: Checkpoint, name: str, task: str) -> Float[Tensor, "C d"]:
    """The matrix of a head.

    Raises:
        MergeError: no matrix, or one that holds NaN or infinity.
    """
    if len(shape := file.shapes[name]) != 2:
        raise MergeError(f"{file.label}: head {name} has shape {list(shape)}, expected classes × width", task=task)
    rows = file.read(name)
    if not rows.isfinite().all():
        raise MergeError(f"{file.label}: head {name} holds NaN or infinity", task=task)
    return rows


def read_names(file: Checkpoint) -> dict[str, list[str]]:
    """Task → names of the rows of its head, from the metadata of a file; nothing where there are none.

    Raises:
        MergeError: no JSON of this form.
    """
    try:
        found: Any = json.loads(file.metadata.get("class_names", "{}"))
    except ValueError:
        found = None
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
        raise MergeError(f"{file.label}: class_names in the metadata: expected JSON {{task: [name, …]}}")
    return dict(found)


def check_width(rows: Float[Tensor, "C d"], features: Float[Tensor, "B e"], task: str, where: str = "") -> None:
    """Raises MergeError where a head takes other features than these."""
    if rows.shape[1] != features.shape[1]:
        raise MergeError(
            f"{where}{': ' if where else ''}head {task} is {rows.shape[1]} wide, the encoder's features "
            f"{features.shape[1]}: give heads that were made for this encoder (--model.network.heads)",
            task=task,
        )


def _scale(file: Checkpoint) -> float:
    text = file.metadata.get("logit_scale", "100")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise MergeError(f"{file.label}: logit_scale is {text!r} in the metadata, expected a number above 0")
    return scale
