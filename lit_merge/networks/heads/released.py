"""Heads as the task-arithmetic and TALL-masks releases have them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lit_merge.checkpoints import open_checkpoint
from lit_merge.errors import MergeError
from lit_merge.networks.heads.cosine import CosineHeads


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
