"""Linear heads, and reading heads of either kind from a file."""

import os
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_merge.checkpoints import open_checkpoint
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError
from lit_merge.networks.heads.base import Heads, check_width, wide
from lit_merge.networks.heads.cosine import CosineHeads, head_files, read_row_names, read_rows, released_heads

WEIGHT, BIAS = ".weight", ".bias"


class LinearHeads(Heads):
    """Ordinary classifiers: logits = features · Wᵀ + b.

    Args:
        weights: task → W (C, d).
        biases: task → b (C,); 0 for tasks without one.

    Raises:
        MergeError: a task called `mixed`; a bias of another number of classes.
    """

    def __init__(
        self, weights: Mapping[str, Float[Tensor, "_ d"]], biases: Mapping[str, Float[Tensor, " _"]] | None = None
    ) -> None:
        super().__init__(list(weights))
        biases = biases or {}
        for task, rows in weights.items():
            if task in biases and biases[task].shape != (len(rows),):
                raise MergeError(
                    f"head {task} has {len(rows)} classes in its weight and shape {list(biases[task].shape)} in its "
                    "bias: expected one number for every class",
                    task=task,
                )
        # In pairs: parameters, not buffers, which DDP broadcasts at every forward.
        pairs = [(rows, biases.get(task, rows.new_zeros(len(rows)))) for task, rows in weights.items()]
        self.parts = nn.ParameterList(nn.Parameter(one.float(), requires_grad=False) for pair in pairs for one in pair)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LinearHeads":
        """From a file {task.weight: (C, d), task.bias: (C,)} of any format; biases may be left out, and metadata of
        safetensors may give `class_names`: JSON, task → the names of its rows.

        Raises:
            MergeError: no such file, other names, a weight that is no matrix, a bias without one or of another number
                of classes, NaN or infinity, more or fewer names than rows.
        """
        file = open_checkpoint(path)
        tasks = [name.removesuffix(WEIGHT) for name in file.shapes if name.endswith(WEIGHT)]
        for name in file.shapes:
            if name.removesuffix(WEIGHT) not in tasks and name.removesuffix(BIAS) not in tasks:
                raise MergeError(
                    f"{file.label}: {name} is no part of linear heads, which are called TASK.weight and TASK.bias"
                )
        biases = {task: file.read(task + BIAS) for task in tasks if task + BIAS in file.shapes}
        for task, bias in biases.items():
            if not bias.isfinite().all():
                raise MergeError(f"{file.label}: head {task}{BIAS} holds NaN or infinity", task=task)
        try:
            made = cls({task: read_rows(file, task + WEIGHT, task) for task in tasks}, biases)
            made.name_rows(read_row_names(file), file.label)
            return made
        except MergeError as error:
            line = str(error) if file.label in str(error) else f"{file.label}: {error}"
            raise MergeError(line, task=error.task) from error

    def count(self, task: str) -> int:
        return len(self._pair(task)[0])

    def one(self, features: Float[Tensor, "B d"], task: str) -> Float[Tensor, "B C"]:
        weight, bias = self._pair(task)
        check_width(weight, features, task, self.where)
        features, weight, bias = wide(features, weight, bias)
        return torch.addmm(bias, features, weight.T)

    def _pair(self, task: str) -> tuple[Tensor, Tensor]:
        place = 2 * self.tasks.index(task)
        return self.parts[place], self.parts[place + 1]


def load_heads(path: str | os.PathLike[str]) -> Heads:
    """Heads from a file, whose names say which kind they are: {task.weight, task.bias} are linear, {task} are the rows
    of `CosineHeads`. From a folder of `head_{task}.pt`, the heads of a release.

    Raises:
        MergeError: what `LinearHeads.load` and `CosineHeads.load` raise.
    """
    if (folder := resolve(path)).is_dir():
        heads: Heads = released_heads(head_files(folder))
    else:
        names = open_checkpoint(path).shapes
        heads = (LinearHeads if any(name.endswith(WEIGHT) for name in names) else CosineHeads).load(path)
    heads.where = str(path)
    return heads
