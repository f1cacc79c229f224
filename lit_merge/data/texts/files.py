"""TextFiles: your own texts, a table per task."""

import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_merge.checkpoints.locations import resolve
from lit_merge.console import say
from lit_merge.data.augmentation import WordDropout
from lit_merge.data.class_names import MIXED, MIXED_PROTOCOL, read_class_names
from lit_merge.data.datasets_tables import files_of, is_hub, place_and_split
from lit_merge.data.streams import Answers, ImageSource
from lit_merge.data.task_data import Labelled, TaskData
from lit_merge.data.texts.labels import RawLabels, names_in
from lit_merge.data.texts.tables import read_table
from lit_merge.data.texts.tokens import Text, TokenisedTexts, Tokens
from lit_merge.errors import MergeError, MergeWarning, check_choice

Columns = str | list[str]
OnEmpty = Literal["refuse", "skip"]


class TextFiles(TaskData):
    """Unlabelled texts per task to adapt on; labelled ones where accuracy is wanted.

    A table is a .csv, .tsv, .jsonl or .parquet file, or a folder that `datasets` saved or reads (`folder#train` names
    one of several splits), or `hf://org/name`. To adapt, the columns of texts are read and no other.

    Args:
        adapt: task → table; or `mixed` → table with texts of all tasks, where nobody says which is whose. Not needed
            to `test` and `validate`.
        tokenizer: folder of the pretrained model, or of any expert, with the tokenizer's files.
        test: task → table with labels.
        validation: the same, for `validate`.
        text: name of the column of texts, two names for pairs; or task → these.
        label: name of the column of labels; or task → it. Labels are rows of the task's head, from 0, or names of them.
        classes: task → the names of the head's rows in their order: a text file with one on every line, or the folder
            of the expert, whose config.json has them. By default those of a `ClassLabel`, or those that occur, sorted.
        max_length: the most tokens of a text; by default as many as tokenizer and model allow.
        online: adapt in one pass over the texts, in order, and predict each batch before it is used. These predictions
            are scored for tasks whose table to adapt on is the test table too.
        on_empty: `refuse` ends with the first text that is empty or missing; `skip` leaves such rows out, with a
            warning that counts them.
        encoding: of .csv, .tsv and .jsonl files.
        batch_size: texts of each task, or of the mixed table, per adaptation step and process.
        eval_batch_size: texts per batch of validation and test.
        seed: of the order in which texts are drawn.
        augment: changes texts to adapt on a little each time that they come up; see `WordDropout`.

    Raises:
        MergeError: a table, column, tokenizer or label that is missing or cannot be read.
    """

    def __init__(
        self,
        adapt: dict[str, str] | None = None,
        tokenizer: str | None = None,
        test: dict[str, str] | None = None,
        validation: dict[str, str] | None = None,
        text: str | list[str] | dict[str, str | list[str]] = "text",
        label: str | dict[str, str] = "label",
        classes: dict[str, str] | None = None,
        max_length: int | None = None,
        online: bool = False,
        on_empty: OnEmpty = "refuse",
        encoding: str = "utf-8",
        batch_size: int = 16,
        eval_batch_size: int = 128,
        seed: int = 0,
        augment: WordDropout | None = None,
    ) -> None:
        # Token ids come from memory: a reading process would only cost.
        super().__init__(batch_size, eval_batch_size, num_workers=0, seed=seed, augment=augment)
        check_choice("on_empty", on_empty, OnEmpty)
        if not (adapt or test or validation):
            raise MergeError("no task: give --data.adapt, a table of texts for every task")
        if tokenizer is None:
            raise MergeError("no tokenizer: give --data.tokenizer, the folder of the pretrained model or of any expert")
        adapt = adapt or {}
        self.online, self.mixed = online, MIXED in adapt
        if self.mixed and len(adapt) > 1:
            raise MergeError(f"adapt: {MIXED} means that all texts are in one table, so it goes without other tasks")
        self._adapt, self._labelled = dict(adapt), {"test": test or {}, "validation": validation or {}}
        for task in [*self._labelled["test"], *self._labelled["validation"]]:
            if adapt and task not in adapt and not self.mixed:
                raise MergeError(
                    f"task {task} has labelled texts but none to adapt on: give --data.adapt.{task}", task=task
                )
        self._text, self._label, self._classes = text, label, dict(classes or {})
        self._folder, self._max_length, self._encoding, self.on_empty = tokenizer, max_length, encoding, on_empty
        self._read: dict[tuple[str, ...], TokenisedTexts] = {}
        self._raw: dict[tuple[str, str], RawLabels] = {}
        for location in [*adapt.values(), *(test or {}).values(), *(validation or {}).values()]:
            if not is_hub(location) and not resolve(place_and_split(location)[0]).exists():
                raise MergeError(f"{location}: no such file or folder")

    @property
    def tasks(self) -> tuple[str, ...]:
        known = [task for tables in self._labelled.values() for task in tables]
        return tuple(dict.fromkeys(known) if known and (self.mixed or not self._adapt) else self._adapt)

    @property
    def protocol(self) -> str:
        online = ["online: one pass over the texts to adapt on, each batch predicted before"] if self.online else []
        return "; ".join([self._texts_used(), *online, *([MIXED_PROTOCOL] if self.mixed else [])])

    def _texts_used(self) -> str:
        test = self._labelled["test"]
        if not self._adapt:
            return "not adapted on any text"
        if not test:
            return "adapted on the given texts, tested on none"
        shared = [task for task, location in test.items() if location in self._adapt.values()]
        if not shared:
            return "inductive (adapted on other tables than tested on)"
        part = "the test texts" if len(shared) == len(test) else f"the test texts of {', '.join(shared)}"
        return f"transductive (adapted on {part}, without their labels)"

    def has(self, split: str) -> bool:
        return bool(self._labelled[split])

    def identity(self, split: str) -> list[Any]:
        options = [self._text, self._max_length, self._encoding, self.on_empty, _sizes(self._folder)]
        if split == "adaptation":
            # Contents, of the columns of texts alone: they are read anyway.
            texts = {task: _digest(self._texts(task, location)) for task, location in self._adapt.items()}
            return [*super().identity(split), options, texts]
        files = {task: _sizes(location) for task, location in self._labelled[split].items()}
        return [*super().identity(split), options, self._label, self._classes, files]

    def unlabelled(self) -> Mapping[str, ImageSource]:
        if not self._adapt:
            raise MergeError("no texts to adapt on: give --data.adapt, a table of texts for every task")
        return {task: self._texts(task, location) for task, location in self._adapt.items()}

    def answers(self) -> Mapping[str, Answers]:
        if not self.online:
            return {}
        test = self._labelled["test"]
        known = {task: location for task, location in self._adapt.items() if test.get(task) == location}
        return {
            task: Answers([task] * len(self._texts(task, location)), self._rows(task, location))
            for task, location in known.items()
        }

    def labelled(self, split: str) -> Mapping[str, Labelled]:
        if not self._labelled[split]:
            raise MergeError(f"no {split} texts: pass --data.{split} with a table with labels per task")
        return {
            task: (self._texts(task, location), self._rows(task, location))
            for task, location in self._labelled[split].items()
        }

    def class_names(self, task: str) -> list[str] | None:
        if task in self._classes:
            return read_class_names(task, self._classes[task])
        tables = dict.fromkeys(tables[task] for tables in self._labelled.values() if task in tables)
        return names_in([self._labels(task, location) for location in tables]) if tables else None

    def label_names(self, task: str, split: str) -> list[str] | None:
        # Without `classes` names are those that the labels have.
        return None if split == "adaptation" and task not in self._classes else self.class_names(task)

    def check_classes(self, split: str, classes: Callable[[str], int]) -> None:
        for task, location in self._labelled[split].items():
            names, expected = self.class_names(task), classes(task)
            if names is not None and len(names) != expected:
                raise MergeError(
                    f"{self._classes.get(task, location)} names {len(names)} classes of task {task} "
                    f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''}), its head has {expected}: name all in "
                    f"the order of the head's rows with --data.classes.{task}",
                    task=task,
                )
            labels = self._rows(task, location)
            if (highest := int(labels.max())) >= expected:
                row = self._texts(task, location).rows[int(labels.argmax())]
                raise MergeError(
                    f"{location}: row {row} has the label {highest}, the head of task {task} has {expected} classes, "
                    f"from 0 to {expected - 1}",
                    task=task,
                )

    @functools.cached_property
    def _tokens(self) -> Tokens:
        return Tokens(self._folder, self._max_length)

    def _texts(self, task: str, location: str) -> TokenisedTexts:
        """The texts of a table, tokenised once; no label is read."""
        columns = _of_task(self._text, task, "text")
        columns = [columns] if isinstance(columns, str) else columns
        if not 1 <= len(columns) <= 2:
            raise MergeError(f"text={columns}: expected the name of one column, or of two for pairs")
        if (key := (location, *columns)) not in self._read:
            table = read_table(location, columns, self._encoding)
            texts, rows = self._whole(location, table.columns)
            name = location if is_hub(location) else Path(location).name
            found = self._tokens.tokenise(texts, name, rows, f"tokenising {task}")
            cut = f", {found.cut:,} of them cut to {self._tokens.max_length}" if found.cut else ""
            say(f"{task}: {len(found):,} texts in {location}, {len(found.ids) / len(found):.0f} tokens each{cut}")
            self._read[key] = found
        return self._read[key]

    def _whole(self, location: str, columns: Mapping[str, list[Any]]) -> tuple[list[Text], list[int]]:
        """The texts that are not empty, and their rows."""
        for name, values in columns.items():
            for row, value in enumerate(values):
                if not isinstance(value, str | None):
                    raise MergeError(f"{location}: row {row}: {name} is {value!r}, expected a text")
        found = list(zip(*columns.values(), strict=True))
        full = [row for row, text in enumerate(found) if all(part is not None and part.strip() for part in text)]
        if len(full) < len(found):
            first = next(row for row in range(len(found)) if row >= len(full) or full[row] != row)
            message = f"{location}: {len(found) - len(full)} of {len(found)} texts are empty, the first in row {first}"
            if self.on_empty == "refuse" or not full:
                raise MergeError(f"{message}: mend them, or leave them out with --data.on_empty skip")
            warnings.warn(f"{message}: they are left out", MergeWarning, stacklevel=2)
        return [found[row] for row in full], full

    def _labels(self, task: str, location: str) -> RawLabels:
        column = _of_task(self._label, task, "label")
        if (key := (location, column)) not in self._raw:
            table = read_table(location, [column], self._encoding)
            self._raw[key] = RawLabels(location, table.columns[column], table.class_names.get(column))
        return self._raw[key]

    def _rows(self, task: str, location: str) -> Tensor:
        rows = self._texts(task, location).rows
        return self._labels(task, location).of(rows, task, self.class_names(task))


def _of_task(option: Any, task: str, name: str) -> Any:
    if not isinstance(option, dict):
        return option
    if task not in option:
        raise MergeError(f"{name}: no column of task {task}, there are those of {', '.join(option)}", task=task)
    return option[task]


def _digest(texts: TokenisedTexts) -> str:
    digest = hashlib.blake2b(texts.ids.numpy().tobytes(), digest_size=16)
    digest.update(repr(texts.ends).encode())
    return digest.hexdigest()


def _sizes(location: str) -> list[Any]:
    """Names and sizes of the files behind a location."""
    if is_hub(location):
        return [location]
    path = resolve(place_and_split(location)[0])
    files = files_of(path) if path.is_dir() else [path]
    return [location, *((file.name, file.stat().st_size) for file in files)]
