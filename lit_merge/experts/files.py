"""Which files the experts of a configuration are, and the checkpoints in them."""

from collections.abc import Mapping

from lit_merge.checkpoints import Checkpoint, Source, canonical, holds_model, open_checkpoint
from lit_merge.checkpoints.folders import ADAPTER_CONFIG, SUFFIXES
from lit_merge.checkpoints.inputs import lists
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError


def expert_files(experts: dict[str, str] | str) -> dict[str, str]:
    """task → file or folder. A folder's tasks are the names of the models in it, sorted: of its files of weights, and
    of its folders of Hugging Face, open_clip or PEFT.

    Raises:
        MergeError: no such folder, none with models, one that is a model itself, or two models of one name.
    """
    if not isinstance(experts, str):
        return experts
    folder = lists(resolve(experts))
    if folder.is_file():
        raise MergeError(
            f"{experts} is one file: name the task of each expert, as --model.experts.{folder.stem} {experts}, or give "
            "a folder of experts"
        )
    if not folder.is_dir():
        raise MergeError(f"{experts}: no such folder of experts")
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MergeError(f"{folder} cannot be read: {error.strerror}") from error
    if any(path.name.endswith(".index.json") or path.name == ADAPTER_CONFIG for path in entries):
        raise MergeError(f"{experts} is the folder of one model, expected one with a model for every task")
    found: dict[str, str] = {}
    for path in entries:
        if holds_model(path) if path.is_dir() else path.suffix in SUFFIXES:
            task = path.name if path.is_dir() else path.stem
            if task in found:
                raise MergeError(f"{experts} holds task {task} twice: {found[task]} and {path}; keep one", task=task)
            found[task] = str(path)
    if not found:
        raise MergeError(
            f"{experts} holds no model, expected one for every task: a file ({', '.join(SUFFIXES)}) or a model's folder"
        )
    return found


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
