"""Frozen classification heads, one per task."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import SafetensorsFile, open_checkpoint
from lit_merge.errors import MergeError
from lit_merge.locations import resolve
from lit_merge.mixed import MIXED


class CosineHeads(nn.Module):
    """Zero-shot classifiers as CLIP's: logits = scale · normalise(features) · Wᵀ.

    Beside the heads of the tasks there is one called `mixed`: the rows of all of them, one head after the other.

    Args:
        weights: task → (C, d), one row per class, of norm 1 where `logit_scale` is the scale of the logits.
        logit_scale: the factor on the cosines.

    Raises:
        MergeError: a task called `mixed`.
    """

    def __init__(self, weights: Mapping[str, Float[Tensor, "C d"]], logit_scale: float = 100.0) -> None:
        super().__init__()
        if MIXED in weights:
            raise MergeError(f"a task called {MIXED!r}: that is the name of all heads together; rename it", task=MIXED)
        self.tasks = self.mixed = tuple(weights)
        self.logit_scale = logit_scale
        # Parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.rows = nn.ParameterList(nn.Parameter(w.float(), requires_grad=False) for w in weights.values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CosineHeads":
        """From a safetensors file {task: (C, d)}, whose metadata may give `logit_scale` (100, CLIP's, otherwise); or
        from a folder of `head_{task}.pt`, see `released`.

        Raises:
            MergeError: no such file, a tensor that is no matrix or not finite, a scale that is no positive number.
        """
        if resolve(path).is_dir():
            return cls.released(head_files(resolve(path)))
        file = SafetensorsFile(resolve(path))
        for task, shape in file.shapes.items():
            if len(shape) != 2:
                raise MergeError(
                    f"{file.path}: head {task} has shape {list(shape)}, expected classes × width", task=task
                )
        rows = {task: file.read(task) for task in file.shapes}
        for task, row in rows.items():
            if not row.isfinite().all():
                raise MergeError(f"{file.path}: head {task} holds NaN or infinity", task=task)
        return cls(rows, _scale(file))

    @classmethod
    def released(cls, files: Mapping[str, str | os.PathLike[str]]) -> "CosineHeads":
        """Heads as the task-arithmetic and TALL-masks releases have them: a file per task with `weight` (C, d), whose
        rows hold the logits' scale, and `bias` (C,), which is 0.

        Args:
            files: task → file.

        Raises:
            MergeError: no such file, no such tensors in it, or values that are not those of a zero-shot head.
        """
        return cls({task: _released_rows(task, file) for task, file in files.items()}, logit_scale=1.0)

    def mix(self, tasks: Sequence[str]) -> None:
        """Says which heads make up `mixed`, all by default: those of the tasks that are merged.

        Raises:
            MergeError: a task without a head.
        """
        for task in tasks:
            self._row(task)
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
        return len(self._row(task))

    def forward(self, features: Float[Tensor, "B d"], task: str) -> Float[Tensor, "B C"]:
        rows = self._row(task)
        if rows.shape[1] != features.shape[1]:
            raise MergeError(
                f"head {task} is {rows.shape[1]} wide, the encoder's features {features.shape[1]}", task=task
            )
        # float32 whatever the autocast: entropies of confident predictions live in the last digits.
        with torch.autocast(features.device.type, enabled=False):
            return self.logit_scale * F.normalize(features.float(), dim=-1) @ rows.T

    def _row(self, task: str) -> Tensor:
        if task == MIXED:
            rows = [self._row(one) for one in self.mixed]
            if len({row.shape[1] for row in rows}) > 1:
                raise MergeError("heads of several widths cannot be mixed: they are of several networks")
            return torch.cat(rows)
        if task not in self.tasks:
            raise MergeError(f"no head for task {task!r}; there are heads for {', '.join(self.tasks)}", task=task)
        return self.rows[self.tasks.index(task)]


@dataclass(frozen=True)
class ReleasedHeads:
    """Heads of the task-arithmetic or TALL-masks release, where tasks are called otherwise than their files.

    Args:
        files: task → file (`head_Cars.pt`).
    """

    files: dict[str, str]

    def build(self, config: str) -> CosineHeads:
        """The heads; the configuration of the network tells nothing about them.

        Raises:
            MergeError: a file that is missing or holds no such head.
        """
        return CosineHeads.released(self.files)


def head_files(folder: Path) -> dict[str, Path]:
    """task → file of a folder with `head_{task}.pt`, or `.safetensors`; the releases write `CarsVal` for Cars too.

    Raises:
        MergeError: there is none, or two of a task.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("head_*")):
        if path.suffix not in (".pt", ".pth", ".safetensors"):
            continue
        task = path.stem.removeprefix("head_").removesuffix("Val")
        if task in found:
            raise MergeError(f"{folder} has two heads of task {task}: {found[task].name} and {path.name}", task=task)
        found[task] = path
    if not found:
        raise MergeError(
            f"{folder} holds no head_TASK.pt or head_TASK.safetensors: name a file of heads, or their folder"
        )
    return found


def _released_rows(task: str, path: str | os.PathLike[str]) -> Tensor:
    file = open_checkpoint(path, f"head {task}")
    shape = file.shapes.get("weight", ())
    if len(shape) != 2:
        there = ", ".join(f"{name} {list(one)}" for name, one in file.shapes.items())
        raise MergeError(f"{file.label}: expected weight (classes, width) of head {task}, found {there}", task=task)
    rows = file.read("weight")
    bias = file.read("bias") if "bias" in file.shapes else torch.zeros(shape[0])
    if not (rows.isfinite().all() and bias.isfinite().all()):
        raise MergeError(f"{file.label}: head {task} holds NaN or infinity", task=task)
    if bias.any():
        raise MergeError(f"{file.label}: head {task} has a bias that is not 0, so it is no zero-shot head", task=task)
    return rows


def _scale(file: SafetensorsFile) -> float:
    text = file.metadata.get("logit_scale", "100")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise MergeError(f"{file.path}: logit_scale is {text!r} in the metadata, expected a number above 0")
    return scale
