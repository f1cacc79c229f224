"""Frozen classification heads, one per task: what all kinds share, and those of CLIP."""

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
from lit_merge.errors import MergeError
from lit_merge.finite import check_finite
from lit_merge.mixed import MIXED


class Heads(nn.Module, ABC):
    """A frozen classifier for every task. Its parameters are all that it computes with.

    Beside the heads of the tasks there is one called `mixed`: the classes of all of them, one head after the other.

    Attributes:
        where: the file that they are of, for messages; empty where they are of none.
    """

    where = ""

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        if MIXED in tasks:
            raise MergeError(f"a task called {MIXED!r}: that is the name of all heads together; rename it", task=MIXED)
        self.tasks = self.mixed = tuple(tasks)

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
        """From a file {task: (C, d)} of any format; metadata of safetensors may give `logit_scale` (else 100, CLIP's).

        Raises:
            MergeError: no such file, a tensor that is no matrix or not finite, a scale that is no positive number.
        """
        file = open_checkpoint(path)
        return cls({task: read_rows(file, task, task) for task in file.shapes}, _scale(file))

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
