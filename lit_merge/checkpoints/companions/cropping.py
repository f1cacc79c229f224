"""Vocabularies that differ by tokens which were added: a view of the rows that all checkpoints have."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.companions.vocabularies import token_count, tokenizer_of
from lit_merge.checkpoints.families import has_role
from lit_merge.checkpoints.json_text import entries_of
from lit_merge.checkpoints.selection import Selection
from lit_merge.checkpoints.updates import Update

_NUMBER = re.compile(r"(^|\.)\d+(\.|$)")


def is_vocabulary(name: str) -> bool:
    """Whether a weight of this name has a row for every token."""
    return has_role("vocabulary", name)


def vocabulary(checkpoint: Checkpoint) -> set[str]:
    """Names of the weights with a row for every token: by their names, or by as many rows as the configuration or the
    tokenizer next to them has tokens, where nothing in the blocks has that many."""
    if isinstance(checkpoint, Cropped):
        return vocabulary(checkpoint.source) & checkpoint.shapes.keys()
    named = {name for name in checkpoint.shapes if is_vocabulary(name)}
    blocks = {shape[0] for name, shape in checkpoint.shapes.items() if shape and _NUMBER.search(name)}
    others = {
        name: shape[0]
        for name, shape in checkpoint.shapes.items()
        if shape and shape[0] not in blocks and not _NUMBER.search(name) and not has_role("no_tokens", name)
    }
    sizes = _sizes(checkpoint, bool(named)) if others.keys() - named else set()
    return named | {name for name, rows in others.items() if rows in sizes}


def rows_of(name: str, shape: tuple[int, ...]) -> int:
    """How many tokens a weight of a vocabulary has rows for; BART's bias has a column for each."""
    return shape[_axis(name)]


def resized(name: str, shape: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The shape of a vocabulary of so many tokens."""
    axis = _axis(name)
    return (*shape[:axis], rows, *shape[axis + 1 :])


def _axis(name: str) -> int:
    return int(has_role("token_columns", name))


def _sizes(checkpoint: Checkpoint, named: bool) -> set[int]:
    """Numbers of tokens that the files of a model's folder name; of its tokenizer only where nothing else does."""
    folders = dict.fromkeys(file.parent for file in checkpoint.files)
    found = {size for folder in folders for size in _vocabulary_sizes(folder / "config.json")}
    if found or named:
        return found
    folder = tokenizer_of(checkpoint)
    return {token_count(folder)} - {0} if folder is not None else set()


def _vocabulary_sizes(file: Path) -> Iterator[int]:
    about = entries_of(file)
    parts: list[Any] = [about, *about.values()]
    yield from (part["vocab_size"] for part in parts if isinstance(part, dict) and type(part.get("vocab_size")) is int)


class Cropped(Selection):
    """A checkpoint of some of whose weights only the first rows are read.

    Args:
        source: the whole.
        rows: weight → number of rows.
    """

    def __init__(self, source: Checkpoint, rows: Mapping[str, int]) -> None:
        super().__init__(source, {name: name for name in source.shapes})
        self.rows = {name: count for name, count in rows.items() if name in self.shapes}
        self.shapes |= {name: resized(name, self.shapes[name], count) for name, count in self.rows.items()}

    def read(self, name: str) -> Tensor:
        value = super().read(name)
        return value.narrow(_axis(name), 0, self.rows[name]).contiguous() if name in self.rows else value

    def read_into(self, name: str, out: Tensor, row: int = 0) -> None:
        if name in self.rows and _axis(name):
            out.copy_(self.read(name)[row : row + len(out)])
        else:
            super().read_into(name, out, row)

    def update(self, name: str) -> Update | None:
        update = super().update(name)
        if update is None or name not in self.rows:
            return update
        return None if _axis(name) else update.first_rows(self.rows[name])
