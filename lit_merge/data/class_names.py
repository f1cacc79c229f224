"""Names of classes: who knows them, and how the names of data and of heads are paired."""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_merge.checkpoints.input_file import InputFile
from lit_merge.checkpoints.json_text import read_object
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError

# What transformers takes by default: two classes without names.
UNNAMED = {0: "LABEL_0", 1: "LABEL_1"}


class ClassNames(ABC):
    """Tasks, and the names of their classes in the order of the labels."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""

    @abstractmethod
    def class_names(self, task: str) -> Sequence[str] | None:
        """Names of the rows of the task's head; None where they are not known."""


def readable_name(name: str) -> str:
    """A class name as a text would have it: `aquarium_fish`, `SeaLake`, `a/abbey` and `3 - three` in words.

    >>> readable_name("SeaLake"), readable_name("/b/bazaar/indoor"), readable_name("3 - three")
    ('Sea Lake', 'bazaar indoor', '3')
    """
    if re.fullmatch(r"([A-Z][a-z]+){2,}", name):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    if digit := re.fullmatch(r"(\d) - [a-z]+", name):
        name = digit[1]
    name = re.sub(r"^/?[a-z]/(?=\w)", "", name)
    return " ".join(re.sub(r"[_/]", " ", name).split())


def plainest_name(name: str) -> str:
    """A class name without case, spaces, leading zeros, and what stands for spaces: `T-shirt`, `t shirt`.

    >>> plainest_name("Aquarium_Fish"), plainest_name("T-shirt"), plainest_name("007")
    ('aquariumfish', 'tshirt', '7')
    """
    plain = unicodedata.normalize("NFKC", readable_name(name)).casefold()
    plain = re.sub(r"(?<=\w)[-\s]+(?=\w)", "", plain)
    return str(int(plain)) if plain.isdecimal() else plain


def match(names: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Place of a name → place of the same name among others, however it is written, as far as that is clear."""
    found: dict[int, int] = {}
    for write in (str, readable_name, plainest_name):
        # What is written alike is paired first: of `cat` and `Cat` each goes to its own.
        rest = _once({i: write(name) for i, name in enumerate(names) if i not in found})
        open_ = _once({i: write(name) for i, name in enumerate(others) if i not in found.values()})
        found |= {rest[name]: open_[name] for name in rest.keys() & open_.keys()}
    return found


def pair(task: str, names: Sequence[str], rows: Sequence[str], strict: bool = True) -> list[int] | None:
    """Which row of a head each class of the data is; None where one of them only numbers its classes: go by place.

    Args:
        task: for messages.
        names: of the data's classes.
        rows: of the head's.
        strict: False where the data does not have the names itself: then others are no mistake.

    Raises:
        MergeError: a class that only one of them has.
    """
    found = match(names, rows)
    if len(found) == len(names) == len(rows):
        return [found[i] for i in range(len(names))]
    if not strict or numbered(names) or numbered(rows):
        return None
    ours = [name for i, name in enumerate(names) if i not in found]
    theirs = [name for i, name in enumerate(rows) if i not in found.values()]
    raise MergeError(
        f"task {task}: the data's classes are not those of its head: only the data has {_listed(ours)}, only the head "
        f"{_listed(theirs)}: call them alike (a line of a class file may hold the data's name, a tab, and the words "
        "for the text; or take the data's own names with classes: ${data})",
        task=task,
    )


def numbered(names: Sequence[str]) -> bool:
    """Whether these are numbers rather than names, as `LABEL_0` and `7` are."""
    return all(re.fullmatch(r"(LABEL_)?[0-9]+", name) for name in names)


def id2label(about: Mapping[str, Any]) -> list[str]:
    """Names of classes from the configuration of a model of transformers.

    Raises:
        ValueError, KeyError, AttributeError, TypeError: there are none.
    """
    # transformers leaves out what it takes by default.
    classifies = "ForSequenceClassification" in str(about.get("architectures"))
    message = about["id2label"] if "id2label" in about or not classifies else UNNAMED
    names = {int(row): str(name) for row, name in message.items()}
    return [names[row] for row in sorted(names)]


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file that are not blank, without the space around them; `what` says it in messages.

    Raises:
        MergeError: no such file, or no text in UTF-8.
    """
    if not path.exists():
        raise MergeError(f"{path} ({what}): no such file")
    try:
        lines = InputFile(path, what).text(what).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise MergeError(
            f"{path} ({what}) is no text in UTF-8: {error.reason} at byte {error.start}: save it in UTF-8"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def read_class_names(task: str, location: str) -> list[str]:
    """Names of a head's rows: from the folder of a fine-tuned model, or a text file with one on every line.

    Raises:
        MergeError: no such file, no names in it, or one twice.
    """
    path = resolve(location)
    names = _of_model(path) if path.is_dir() else read_lines(path, f"class names of task {task}")
    return distinct_names(task, [name for name in names if name], str(path))


def _of_model(folder: Path) -> list[str]:
    path = folder / "config.json"
    about = read_object(path, "configuration")
    try:
        return id2label(about)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MergeError(f"{path} names no classes (id2label): give a text file with one name on every line") from error


def distinct_names(task: str, names: Sequence[str], where: str) -> list[str]:
    """The names of a task's classes; MergeError where there is none, or one is there twice. `where` says it."""
    if not names:
        raise MergeError(f"{where} (class names of task {task}) holds no name: expected one on every line", task=task)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MergeError(
            f"{where} (class names of task {task}) names {', '.join(map(repr, twice))} more than once: give every "
            "class a name of its own, in the order of the head's rows",
            task=task,
        )
    return list(names)


def _once(written: Mapping[int, str]) -> dict[str, int]:
    """Name → its place, of those that are there once."""
    counts = Counter(written.values())
    return {name: i for i, name in written.items() if name and counts[name] == 1}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "") if names else "none"


MIXED = "mixed"
MIXED_PROTOCOL = "tasks mixed in one stream: a prediction counts where it is right among the classes of all tasks"
