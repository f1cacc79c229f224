"""ClassNames: whatever knows what the rows of heads are called."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence


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
