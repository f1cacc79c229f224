"""Folders of one model: Hugging Face's, open_clip's, and those of PEFT's adapters."""

from pathlib import Path

from lit_merge.errors import MergeError
from lit_merge.weight_names import ADAPTER_CONFIG, SUFFIXES, choose_weights, expected_weights


def weight_file(folder: Path) -> Path:
    """The file with a folder's weights, or its index of shards, as transformers chooses it.

    Raises:
        MergeError: there is none, or the folder cannot be read.
    """
    names = _names(folder)
    chosen = choose_weights(names)
    if chosen is None:
        others = [name for name in names if name.endswith(SUFFIXES)]
        hint = f"; name a file of it instead: {', '.join(others[:5])}" if others else ""
        raise MergeError(f"{folder} holds no weights: expected one of {', '.join(expected_weights(names))}{hint}")
    return folder / chosen


def holds_model(folder: Path) -> bool:
    """Whether a folder is one model's, whole or not."""
    names = _names(folder)
    return choose_weights(names) is not None or ADAPTER_CONFIG in names


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise MergeError(f"{folder} cannot be read: {error.strerror}") from error
