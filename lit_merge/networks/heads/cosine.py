"""Heads that compare features with a row for every class by their cosine, from files of ours or of releases."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import Checkpoint, open_checkpoint
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.data.class_names import MIXED
from lit_merge.errors import MergeError, check_finite
from lit_merge.networks.heads.base import Heads, check_width, wide


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
        made.name_rows(read_row_names(file), file.label)
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


def read_row_names(file: Checkpoint) -> dict[str, list[str]]:
    """Task → names of the rows of its head, from the metadata of a file; nothing where there are none.

    Raises:
        MergeError: no JSON of this form.
    """
    try:
        found: Any = parse_json(file.metadata.get("class_names", "{}"))
    except ValueError:
        found = None
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
        raise MergeError(f"{file.label}: class_names in the metadata: expected JSON {{task: [name, …]}}")
    return dict(found)


def _scale(file: Checkpoint) -> float:
    text = file.metadata.get("logit_scale", "100")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise MergeError(f"{file.label}: logit_scale is {text!r} in the metadata, expected a number above 0")
    return scale


@dataclass(frozen=True)
class ReleasedHeads:
    """Heads of the task-arithmetic or TALL-masks release, where tasks are called otherwise than their files.

    Args:
        files: task → file (`head_Cars.pt`).
    """

    files: dict[str, str]

    def build(self, config: str) -> CosineHeads:
        """The heads. They do not depend on the configuration of the network.

        Raises:
            MergeError: a file that is missing or holds no such head.
        """
        return released_heads(self.files)


def released_heads(files: Mapping[str, str | os.PathLike[str]]) -> CosineHeads:
    """A file per task with `weight` (C, d), whose rows hold the logits' scale, and `bias` (C,), which is 0.

    Args:
        files: task → file.

    Raises:
        MergeError: no such file, no such tensors in it, or values that are not those of a zero-shot head.
    """
    return CosineHeads({task: _released_rows(task, file) for task, file in files.items()}, logit_scale=1.0)


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


def _released_rows(task: str, path: str | os.PathLike[str]) -> Float[Tensor, "C d"]:
    file = open_checkpoint(path, f"head {task}")
    if "weight" not in file.shapes:
        there = ", ".join(f"{name} {list(one)}" for name, one in file.shapes.items())
        raise MergeError(f"{file.label}: expected weight (classes, width) of head {task}, found {there}", task=task)
    rows = read_rows(file, "weight", task)
    bias = file.read("bias") if "bias" in file.shapes else torch.zeros(len(rows))
    if not bias.isfinite().all():
        raise MergeError(f"{file.label}: head {task} holds NaN or infinity", task=task)
    if bias.any():
        raise MergeError(f"{file.label}: head {task} has a bias that is not 0, so it is no zero-shot head", task=task)
    return rows
