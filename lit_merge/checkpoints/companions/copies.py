"""What is copied next to written weights; entries of its config.json that are not true of them are mended."""

import copy
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.companions.cropping import is_vocabulary, rows_of
from lit_merge.checkpoints.companions.files import (
    CONFIG,
    Companions,
    companions_of,
    configurations_of,
    with_most_tokens,
)
from lit_merge.checkpoints.companions.judging import Files, Loaded, load, related
from lit_merge.checkpoints.companions.trimming import trim, without_numbers
from lit_merge.checkpoints.json_text import read_object
from lit_merge.console import say
from lit_merge.errors import MergeError

# Entries that are written only where they stand already.
OPTIONAL = ("dtype", "torch_dtype")
# Entries whose changes are reported to the user.
REPORTED = ("architectures", "tie_word_embeddings", "vocab_size", "id2label")
_FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class CopiedFiles:
    """The files that are copied next to weights.

    Attributes:
        companions: whose configuration and tokenizer are copied.
        rows: of a vocabulary that is cut.
        changes: entries of the configuration that are no longer true.
        others: configurations of all models that have one.
        copies: weights that are not written, being equal to others.
        lost: weights that are left out of the merge, and of what is written.
        expert: one whose weights show which of them are equal, where they are at hand.
    """

    companions: Companions
    rows: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    others: Sequence[Mapping[str, Any]] = ()
    copies: frozenset[str] = frozenset()
    lost: tuple[str, ...] = ()
    expert: Checkpoint | None = None

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[Checkpoint],
        shapes: Mapping[str, tuple[int, ...]],
        rows: int | None = None,
        most_tokens: bool = False,
    ) -> "CopiedFiles | None":
        """The files of the first of these checkpoints that has a configuration; None where none has.

        Args:
            checkpoints: in the order in which they are asked.
            shapes: of the weights that are written.
            rows: of a vocabulary that is cut.
            most_tokens: whether the tokenizer may be another's, that has more tokens.

        Raises:
            MergeError: a tokenizer or a configuration that is no JSON.
        """
        found = companions_of(checkpoints, shapes)
        if found is None:
            return None
        found = with_most_tokens(found, checkpoints, shapes) if most_tokens else found
        return cls(found, rows, {} if rows is None else {"vocab_size": rows}, configurations_of(checkpoints))

    def with_changes(self, **entries: Any) -> "CopiedFiles":
        """These files, with more entries that are true."""
        return replace(self, changes={**self.changes, **entries})

    def fitted(self, files: Files, kept: Collection[str]) -> "CopiedFiles":
        """These files, with entries that are true where config.json is not, so that the weights load whole.

        Args:
            files: the weights that are written.
            kept: weights that are the base's own, which may be of another dtype than all others.

        Raises:
            MergeError: a configuration that is no JSON, or with which the weights do not load whole.
        """
        file = self.companions.folder / CONFIG
        about = read_object(file, "configuration")
        if self.rows is not None:
            about = without_numbers(about, self.rows)
        merged = {name: one for name, one in files.items() if name not in kept}
        changes = {**_dtype(about, merged), **self.changes}
        try:
            first = load(changed(about, changes), files)
        except MergeError as error:
            raise MergeError(f"{file}: {error}") from error
        if first is None or first.whole:
            if first is not None and not all(self._equal(*names) for names in first.tied):
                changes["tie_word_embeddings"] = False
            return replace(self, changes=changes)
        named = [one.get("architectures") for one in self.others]
        others = [str(name) for names in named if isinstance(names, list) for name in names]
        for kind in (None, *dict.fromkeys([*others, *related(about)])):
            tried = changes if kind is None else {**changes, "architectures": [kind]}
            if (found := self._mended(about, tried, files)) is not None:
                message = {name: value for name, value in found.items() if name not in changes and name in REPORTED}
                if message:
                    say(f"{CONFIG} is written with {', '.join(f'{name}: {value}' for name, value in message.items())}")
                return replace(self, changes=found)
        raise MergeError(
            f"the merged weights do not load whole as {about['architectures'][0]} by {file}: {first}; mend its "
            "entries, leave out what is too much with exclude, or write to a name that ends in .safetensors"
        )

    @property
    def names(self) -> list[str]:
        """Names of the files that are copied."""
        return [name.as_posix() for _, name in self.companions.files()]

    def copy_to(self, target: Path) -> list[str]:
        """Copies what belongs to the model into the folder of its weights; answers the names of the files.

        Raises:
            MergeError: a file that cannot be read, or a configuration that is no JSON.
        """
        copied = []
        for file, name in self.companions.files():
            place = target / name
            if file.is_file() and not place.exists():
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place)
                except OSError as error:
                    raise MergeError(f"{file} cannot be copied next to the weights: {error.strerror}") from error
                copied.append(str(name))
        if self.changes:
            about = changed(read_object(target / CONFIG, "configuration"), self.changes)
            (target / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if self.rows is not None:
            trim(target, self.rows)
        return copied

    def _mended(self, about: Mapping[str, Any], changes: Mapping[str, Any], files: Files) -> dict[str, Any] | None:
        """The changes, with what loading by them shows, where the weights then load whole."""
        tried = dict(changes)
        tied = any(one.get("tie_word_embeddings") for one in self.others)
        try:
            for _ in range(2):
                loaded = load(changed(about, tried), files)
                if loaded is None or loaded.whole:
                    return None if loaded is None else tried
                tried |= _of_shapes(loaded)
                # Missing since they are tied to others.
                copies = loaded.missing <= self.copies or (tied and not loaded.missing & set(self.lost))
                if loaded.missing and copies:
                    tried["tie_word_embeddings"] = True
        except MergeError:  # of another architecture, which this configuration may not be for
            pass
        return None

    def _equal(self, one: str, other: str) -> bool:
        """Whether two matrices are the same in an expert; so where there is none that has both."""
        held = self.expert
        if held is None or one not in held.shapes or other not in held.shapes:
            return True
        return torch.equal(held.read(one), held.read(other))


def changed(about: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with entries that are true. Language models with several towers keep those of each in a part of
    its own; what stands nowhere comes to the top, but for what is `OPTIONAL`."""
    found = copy.deepcopy(dict(about))
    places = [found, *(value for value in found.values() if isinstance(value, dict))]
    for name, value in changes.items():
        for place in [one for one in places if name in one]:
            place[name] = value
        if name not in OPTIONAL and (name == "tie_word_embeddings" or not any(name in one for one in places)):
            found[name] = value
    return found


def _of_shapes(loaded: Loaded) -> dict[str, Any]:
    """What shapes say about the numbers of tokens and of classes."""
    found: dict[str, Any] = {}
    tokens = {rows_of(name, here) for name, (here, _) in loaded.mismatched.items() if is_vocabulary(name)}
    if len(tokens) == 1:
        found["vocab_size"] = tokens.pop()
    heads = {here[0] for name, (here, there) in loaded.mismatched.items() if here[1:] == there[1:] and here}
    heads = heads if not found else set()
    if len(heads) == 1:
        count = heads.pop()
        found["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
        found["label2id"] = {f"LABEL_{i}": i for i in range(count)}
    return found


def _dtype(about: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The dtype of the weights, where the configuration names one that none of them has."""
    sizes: dict[str, int] = {}
    for shape, dtype in files.values():
        if dtype.is_floating_point:
            name = str(dtype).removeprefix("torch.")
            sizes[name] = sizes.get(name, 0) + torch.Size(shape).numel()
    parts = [about, *(value for value in about.values() if isinstance(value, dict))]
    message = {part[name] for part in parts for name in OPTIONAL if part.get(name) in _FLOATS}
    if not sizes or message <= sizes.keys():
        return {}
    return dict.fromkeys(OPTIONAL, max(sizes, key=sizes.__getitem__))
