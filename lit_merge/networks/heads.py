"""Frozen classification heads, one per task."""

import math
import os
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_merge.checkpoints import SafetensorsFile
from lit_merge.errors import MergeError
from lit_merge.locations import resolve


class CosineHeads(nn.Module):
    """Zero-shot classifiers as CLIP's: logits = scale · normalise(features) · Wᵀ.

    Args:
        weights: task → (C, d), one row per class, of norm 1.
        logit_scale: the factor on the cosines.
    """

    def __init__(self, weights: Mapping[str, Float[Tensor, "C d"]], logit_scale: float = 100.0) -> None:
        super().__init__()
        self.tasks = tuple(weights)
        self.logit_scale = logit_scale
        # Parameters rather than buffers: DDP broadcasts buffers at every forward.
        self.rows = nn.ParameterList(nn.Parameter(w.float(), requires_grad=False) for w in weights.values())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CosineHeads":
        """From a safetensors file {task: (C, d)}, whose metadata may give `logit_scale` (100, CLIP's, otherwise).

        Raises:
            MergeError: no such file, a tensor that is no matrix or not finite, a scale that is no positive number.
        """
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
        if task not in self.tasks:
            raise MergeError(f"no head for task {task!r}; there are heads for {', '.join(self.tasks)}", task=task)
        return self.rows[self.tasks.index(task)]


def _scale(file: SafetensorsFile) -> float:
    text = file.metadata.get("logit_scale", "100")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale < math.inf:
        raise MergeError(f"{file.path}: logit_scale is {text!r} in the metadata, expected a number above 0")
    return scale
