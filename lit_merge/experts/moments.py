"""Second moments of every weight's inputs, by task: what ESM and RegMean know of the data, and their files."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from lit_merge.checkpoints import Checkpoint, SafetensorsFile, replacing, write_safetensors
from lit_merge.checkpoints.input_file import of_one_moment
from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import resolve
from lit_merge.checkpoints.own import check_own
from lit_merge.errors import MergeError
from lit_merge.experts.experts import Experts

Moments = Mapping[str, Mapping[str, Tensor]]
"""task → name of a weight W of y = x·Wᵀ, (m, n) → C = E[x xᵀ] over its inputs in that task's expert, (n, n)."""

FORMAT = "lit_merge moments"
FORMAT_VERSION = 1
# Elements of each weight that tell one expert from another.
SAMPLED = 64
# Of second moments in any dtype, as a share.
ROUNDING = 1e-2


def _are_moments(folder: Path) -> bool:
    return all(SafetensorsFile(path).metadata.get("format") == FORMAT for path in folder.iterdir())


MOMENTS = Kind("merge with moments", _are_moments, r"[^/]+\.safetensors")


class FileMoments(Mapping[str, Tensor]):
    """Moments of one task, read from its file when they are asked for."""

    def __init__(self, file: SafetensorsFile) -> None:
        self.file = file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.file.shapes:
            raise KeyError(name)
        return self.file.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.shapes)

    def __len__(self) -> int:
        return len(self.file.shapes)


def save_moments(
    path: str | os.PathLike[str],
    moments: Moments | Iterable[tuple[str, Mapping[str, Tensor]]],
    experts: Experts,
    samples: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a folder with one safetensors file per task, whole or not at all.

    Args:
        path: the folder.
        moments: of every task; or pairs of a task and its moments, of which one is in memory at a time.
        experts: whose moments these are.
        samples: how many images of each task they come from, for the record.
        overwrite: replace a folder that exists.

    Raises:
        MergeError: moments that do not fit the experts; a folder that exists or cannot be written.
    """
    pairs = moments.items() if isinstance(moments, Mapping) else moments
    with replacing(path, overwrite, MOMENTS) as draft:
        draft.mkdir()
        missing = set(experts.tasks)
        for task, own in pairs:
            if task not in experts.tasks:
                raise MergeError(f"moments of {task}: no such expert, there are {', '.join(experts.tasks)}", task=task)
            _check_shapes(f"moments of {task}", task, _shapes(own), experts)
            about = {
                "format": FORMAT,
                "format_version": str(FORMAT_VERSION),
                "task": task,
                "samples": "" if samples is None else str(samples),
                "expert": fingerprint(experts.checkpoints[task]),
            }
            write_safetensors(_file_of(draft, task), own, about)
            missing.discard(task)
            del own  # before the next one is collected
        if missing:
            raise MergeError(f"moments: none of task {min(missing)}: collect them for every task", task=min(missing))


def load_moments(path: str | os.PathLike[str], experts: Experts) -> Moments:
    """Opens a folder that `save_moments` wrote, for these experts; matrices stay on disk until they are used.

    Tasks that are not merged may lie in the folder too.

    Raises:
        MergeError: no such folder, a task that is missing, a file that is damaged, of a newer format, of another
            model, task or expert.
    """
    folder = lists(resolve(path))
    if not folder.is_dir():
        raise MergeError(f"{folder}: no such folder of moments: collect them, or mend the path")
    check_own(folder)
    return of_one_moment(folder, lambda: {task: FileMoments(_open(folder, task, experts)) for task in experts.tasks})


def check_moments(moments: Mapping[str, Mapping[str, Any]], experts: Experts) -> None:
    """Raises MergeError where moments that are in memory lack one of the experts or do not fit their weights."""
    for task in experts.tasks:
        if task not in moments:
            there = ", ".join(moments) or "none"
            raise MergeError(f"moments: none of task {task}, there are {there}: collect them for every task", task=task)
        _check_shapes(f"moments of {task}", task, _shapes(moments[task]), experts)


def second_moment(moments: Moments, task: str, name: str) -> Tensor | None:
    """C (n, n) in float64 of one task and weight; None where none is known.

    Raises:
        MergeError: NaN or infinity in it, or no second moment.
    """
    if name not in moments.get(task, {}):
        return None
    moment = moments[task][name].double()
    check_finite(moment, task, name)
    _check_possible(moment, task, name)
    return moment


def check_finite(moment: Tensor, task: str, name: str) -> None:
    """Raises MergeError where a second moment holds NaN or infinity."""
    if not moment.isfinite().all():
        raise MergeError(
            f"moments of {task}: {name} holds NaN or infinity: look at this expert's activations, or leave it out",
            task=task,
            weight=name,
        )


def _check_possible(moment: Tensor, task: str, name: str) -> None:
    """Raises MergeError where no inputs have this second moment: C = Cᵀ, and |C_ij|² ≤ C_ii·C_jj."""
    roots = moment.diagonal().clamp(min=0).sqrt()
    most = roots[:, None] * roots
    # Sums of products in float32 or bfloat16 are off by their rounding.
    spare = ROUNDING * (most + most.mean())
    skewed = ((moment - moment.T).abs() > spare).any()
    if (moment.diagonal() < 0).any() or skewed or (moment.abs() > most + spare).any():
        raise MergeError(
            f"moments of {task}: {name} is no second moment of any inputs (symmetric, |C_ij|² at most C_ii·C_jj): "
            "it is damaged, collect it again",
            task=task,
            weight=name,
        )


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest of names, shapes, dtypes and some values of every weight: cheap, and fine-tuning changes it."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(checkpoint.shapes):
        value = checkpoint.read(name).flatten()
        digest.update(f"{name} {checkpoint.dtypes[name]} {checkpoint.shapes[name]}".encode())
        some = value[:: max(1, len(value) // SAMPLED)].contiguous()
        digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shapes(own: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if isinstance(own, FileMoments):
        return own.file.shapes
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise MergeError(f"moments: {name} is a {type(value).__name__}, expected a tensor", weight=name)
    return {name: tuple(value.shape) for name, value in own.items()}


def _check_shapes(label: str, task: str, shapes: Mapping[str, tuple[int, ...]], experts: Experts) -> None:
    for name, shape in shapes.items():
        weight = experts.shapes.get(name)
        if weight is None or len(weight) != 2:
            raise MergeError(
                f"{label}: the experts have no 2-D weight {name}: these are moments of another model",
                task=task,
                weight=name,
            )
        if shape != (weight[1], weight[1]):
            raise MergeError(
                f"{label}: {name} has shape {list(shape)}, expected {[weight[1]] * 2} for a weight of {list(weight)}",
                task=task,
                weight=name,
            )


def _file_of(folder: Path, task: str) -> Path:
    return folder / f"{quote(task, safe=' ')}.safetensors"


def _open(folder: Path, task: str, experts: Experts) -> SafetensorsFile:
    path = _file_of(folder, task)
    if not path.exists():
        raise MergeError(f"{folder} has no moments of task {task} ({path.name}): collect them again", task=task)
    check_own(path)
    file = SafetensorsFile(path)
    about = file.metadata
    version = about.get("format_version", "")
    if about.get("format") != FORMAT or not version.isdecimal():
        raise MergeError(f"{path} holds no moments of lit_merge: collect them again", task=task)
    if int(version) > FORMAT_VERSION:
        raise MergeError(f"{path} has format version {version}; this lit_merge reads up to {FORMAT_VERSION}: update it")
    if about.get("task") != task:
        raise MergeError(f"{path} holds moments of task {about.get('task')}, expected {task}", task=task)
    _check_shapes(str(path), task, file.shapes, experts)
    if about.get("expert") != fingerprint(experts.checkpoints[task]):
        raise MergeError(
            f"{path} holds moments of another expert than {experts.checkpoints[task].label}: collect them again",
            task=task,
        )
    return file
