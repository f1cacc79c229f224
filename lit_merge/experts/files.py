"""Which files the experts of a configuration are, and the checkpoints in them."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from lit_merge.checkpoints import Checkpoint, Source, canonical, holds_model, open_checkpoint
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, SUFFIXES
from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError, MergeWarning

BASES = ("base", "pretrained", "zeroshot")
"""Names of a base that lies among its experts."""
HEADS = "head_"
"""What the names of a release's heads begin with, which lie among its experts."""


def expert_files(experts: dict[str, str] | str, base: Source | None = None) -> dict[str, str]:
    """task → file or folder. A folder's tasks are the names of the models in it, sorted: of its files of weights, and
    of its folders of Hugging Face, open_clip, PEFT or a release.

    Args:
        experts: these, or their folder.
        base: the pretrained model, which is none of the experts of a folder. Another one that is called so is left out,
            too, with a warning.

    Raises:
        MergeError: no such folder, none with models, one that is a model itself, or two models of one name.
    """
    if not isinstance(experts, str):
        return experts
    found, bases = models_in(experts)
    own = resolve(base).resolve() if isinstance(base, str | Path) else None
    others = [path for path in bases.values() if Path(path).resolve() != own]
    if others:
        warnings.warn(
            f"{', '.join(others)}: a base by its name, so none of the experts: to merge it too, name every expert",
            MergeWarning,
            stacklevel=2,
        )
    return {task: path for task, path in found.items() if Path(path).resolve() != own} or found


def models_in(folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """Experts and bases of a folder of models, by their names; all are experts where there is nothing but bases.

    Raises:
        MergeError: see `expert_files`.
    """
    place = lists(resolve(folder))
    if place.is_file():
        raise MergeError(
            f"{folder} is one file: name the task of each expert, as --model.experts.{place.stem} {folder}, or give "
            "a folder of experts"
        )
    if not place.is_dir():
        raise MergeError(f"{folder}: no such folder of experts")
    try:
        entries = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MergeError(f"{place} cannot be read: {error.strerror}") from error
    if any(path.name.endswith(".index.json") or path.name == ADAPTER_CONFIG for path in entries):
        raise MergeError(f"{folder} is the folder of one model, expected one with a model for every task")
    found: dict[str, str] = {}
    for path in entries:
        if holds_model(path) if path.is_dir() else path.suffix in SUFFIXES and not path.name.startswith(HEADS):
            # Releases call what was trained without the validation images CarsVal.
            task = path.name.removesuffix("Val") if path.is_dir() else path.stem
            if task in found:
                raise MergeError(f"{folder} holds task {task} twice: {found[task]} and {path}; keep one", task=task)
            found[task] = str(path)
    if not found:
        raise MergeError(
            f"{folder} holds no model, expected one for every task: a file ({', '.join(SUFFIXES)}) or a model's folder"
        )
    bases = {task: path for task, path in found.items() if task.lower() in BASES}
    return ({task: path for task, path in found.items() if task not in bases}, bases) if bases != found else (found, {})


def open_all(
    sources: Mapping[str, Source], base: Source | None = None
) -> tuple[dict[str, Checkpoint], Checkpoint | None]:
    """The experts' checkpoints by task, and the base.

    Raises:
        MergeError: no experts; a file that is missing or broken.
    """
    if not sources:
        raise MergeError("no experts given, expected a mapping from task to checkpoint")
    pretrained = None if base is None else open_checkpoint(base, "base", lenient=True)
    opened: dict[str, Checkpoint] = {}
    for task, source in sources.items():
        try:
            opened[task] = canonical(open_checkpoint(source, f"expert {task}", pretrained, lenient=True))
        except MergeError as error:
            raise MergeError(f"expert {task}: {error}", task=task, weight=error.weight) from error
    return opened, None if pretrained is None else canonical(pretrained)
