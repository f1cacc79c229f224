"""Which file of a folder holds a model's weights: folders of Hugging Face, of open_clip, and of PEFT's adapters."""

from collections.abc import Collection
from pathlib import Path

from lit_merge.checkpoints.families import FAMILIES
from lit_merge.errors import MergeError

WEIGHTS = tuple(dict.fromkeys(file for family in FAMILIES for file in family.files))
ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
"""Suffixes of files of weights."""


def expected_weights(names: Collection[str]) -> tuple[str, ...]:
    """What the weights of a folder with these files may be called, the first that is there counts."""
    return ADAPTERS if ADAPTER_CONFIG in names else WEIGHTS


def choose_weights(names: Collection[str]) -> str | None:
    """The file of weights, or the index of them, among those of a folder; None where it holds no model."""
    return next((name for name in expected_weights(names) if name in names), None)


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
